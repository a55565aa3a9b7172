"""The progress line of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.segment import ControlType
from rich.table import Column

if TYPE_CHECKING:
    from cone_kernels.runs.progress import Progress

_TO_START_OF_LINE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


@contextmanager
def progress_line(console: Console, begins: str = "loading the model") -> Iterator[Callable[[Progress], None]]:
    """A progress line, as the `progress` of `layers`: sentences done, rates, shares, time left; gone at the end.

    Before the first report and after the last one of a model nothing is redrawn, so that the bars of the hub, which
    downloads models then, have the line.

    Args:
        console: what it is on.
        begins: what is said before the first report.
    """
    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        # What does not fit is the bar's loss, down to nothing.
        TextColumn("{task.fields[told]}", style="dim", table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    )
    task = bars.add_task(begins, total=None, told="")

    def say(words: str) -> None:
        if console.is_terminal:
            console.control(_TO_START_OF_LINE)
            console.print(words, style="dim", end="")

    say(begins)
    try:

        def report(done: Progress) -> None:
            bars.update(
                task,
                description=f"{done.sentences:,}",
                total=done.expected,
                completed=done.sentences,
                told=told(done, console.width),
            )
            if not bars.live.is_started:
                say("")
                bars.start()
            if done.expected is not None and done.sentences >= done.expected:
                bars.stop()
                say("computing, or loading the next model")

        yield report
    finally:
        bars.stop()
        say("")


def told(done: Progress, width: int = 120) -> str:
    """Rates, share of padding and of the statistics, and time left, shorter on a narrow terminal.

    Examples:
        >>> told(Progress(300, 4000, 600, elapsed=2.0, statistics=0.02))
        '150 sentences/s, 2,000 tokens/s, 0% padding, 2% statistics, 0:00:02 left'
    """
    if math.isnan(done.sentences_per_second):
        return ""
    left = [] if done.remaining is None else [f"{timedelta(seconds=round(done.remaining))} left"]
    if done.unit != "sentences":
        return ", ".join([f"{done.sentences_per_second:,.0f} {done.unit}/s", *left])
    wide = width >= 110
    units = ("sentences/s", "tokens/s", "padding", "statistics") if wide else ("sent/s", "tok/s", "pad", "stat")
    rates = [f"{rate:,.0f}" for rate in (done.sentences_per_second, done.tokens_per_second)]
    shares = [f"{share:.0%}" for share in (done.padding, done.statistics)]
    parts = [f"{value} {unit}" for value, unit in zip([*rates, *shares], units, strict=True)]
    return ", ".join([*(parts if width >= 80 else parts[:1]), *left])


def rates_of(sentences: int, tokens: int, seconds: float) -> str:
    """Sentences and tokens a second, in words."""
    return f"{sentences / seconds:,.0f} sentences/s, {tokens / seconds:,.0f} tokens/s"
