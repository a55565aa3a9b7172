"""The progress line of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from cone_kernels.progress import Progress


@contextmanager
def progress_line(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A progress bar with sentences/s, tokens/s and time left, as the `progress` of `layers`; gone when it is done."""
    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[rates]}", style="dim"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    first: tuple[float, Progress] | None = None
    with bars:
        task = bars.add_task("loading the model", total=None, rates="")

        def report(done: Progress) -> None:
            nonlocal first
            now = time.perf_counter()
            started, before = first = first or (now, done)
            rates = ""
            if now > started:
                rates = rates_of(done.sentences - before.sentences, done.tokens - before.tokens, now - started)
            description = f"{done.sentences:,} sentences"
            bars.update(task, description=description, total=done.expected, completed=done.sentences, rates=rates)

        yield report


def rates_of(sentences: int, tokens: int, seconds: float) -> str:
    """Sentences and tokens a second, in words."""
    return f"{sentences / seconds:,.0f} sentences/s, {tokens / seconds:,.0f} tokens/s"
