"""What a person sees of a result in the terminal: the table with its bars, the progress line, the notes below."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cone_kernels.experiments.layers import LayersResult, Level
    from cone_kernels.runner import Progress

_BAR_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def stdout_console() -> Console:
    """The console for results."""
    return Console(highlight=False, soft_wrap=False)


def stderr_console() -> Console:
    """The console for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def print_layers(console: Console, result: LayersResult) -> None:
    """The table of all layers, with a bar a level that starts at 0 and ends at 1."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("layer", justify="right")
    for level in ("sentence", "token"):
        table.add_column(level, justify="right", no_wrap=True)
        table.add_column("±", justify="right", style="dim", no_wrap=True)
        table.add_column("", no_wrap=True)
    fixed = _counts_agree(result)
    if not fixed:
        table.add_column("sentences", justify="right")
        table.add_column("tokens", justify="right")
    width = _BAR_WIDTH if fixed else _BAR_WIDTH // 2
    for row in result.layers:
        cells: list[str | Text] = [str(row.layer)]
        for level, colour in ((row.sentence, "cyan"), (row.token, "magenta")):
            cells += [
                _number(level.anisotropy),
                _number(level.stderr),
                Text(bar(level.anisotropy, width, console), colour),
            ]
        if not fixed:
            cells += [f"{row.sentence.count:,}", f"{row.token.count:,}"]
        table.add_row(*cells)
    console.print(table)
    first = result.layers[0]
    if fixed:
        console.print(
            f"anisotropy = mean cosine of two distinct vectors; every layer: {first.sentence.count:,} sentences, "
            f"{first.token.count:,} tokens",
            style="dim",
        )
    for reason in dict.fromkeys(level.reason for row in result.layers for level in (row.sentence, row.token)):
        if reason:
            console.print(f"- = not defined: {reason}", style="yellow")


def print_notes(console: Console, result: LayersResult) -> None:
    """What was left out, cut or replaced, where anything was."""
    corpus = result.corpus
    dropped = {reason: count for reason, count in corpus["dropped"].items() if count}
    for what, counts in (("dropped", dropped), ("replaced", {k: v for k, v in corpus["replaced"].items() if v})):
        if counts:
            listed = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())
            console.print(f"{what}: {listed}", style="yellow", soft_wrap=True)
    for example in corpus["examples"]:
        console.print(f"  {example}", style="yellow", soft_wrap=True, markup=False)
    if corpus["truncated"]:
        limit = result.model["max_length"]
        console.print(f"truncated: {corpus['truncated']:,} sentences at {limit} tokens", style="yellow")
    left_out = max(row.sentence.n_zero + row.sentence.n_nonfinite for row in result.layers)
    if left_out:
        console.print(f"left out: up to {left_out:,} sentence vectors of a layer, zero or not finite", style="yellow")
    if result.manifest["out_of_memory"]:
        budget = result.manifest["token_budget"]
        console.print(f"out of memory: batches were halved down to {budget:,} tokens", style="yellow")


def bar(value: float, width: int, console: Console) -> str:
    """A bar of `width` cells for 1, empty for values at or below 0."""
    if not math.isfinite(value):
        return ""
    eighths = round(min(max(value, 0.0), 1.0) * width * 8)
    if console.options.ascii_only:
        return "#" * (eighths // 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(width)


@contextmanager
def progress_line(console: Console, shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """A progress bar with sentences/s, tokens/s and time left, as the `progress` of `layers`; gone when it is done."""
    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        _Rate("sentences"),
        _Rate("tokens"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    with bars:
        task = bars.add_task("loading the model", total=None, tokens=0)

        def report(done: Progress) -> None:
            description = f"{done.sentences:,} sentences"
            bars.update(
                task, description=description, total=done.expected, completed=done.sentences, tokens=done.tokens
            )

        yield report


class _Rate(ProgressColumn):
    """Sentences or tokens a second, over the time since the first batch."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first: tuple[float, int] | None = None

    def render(self, task: Task) -> Text:
        done: Any = task.completed if self.what == "sentences" else task.fields["tokens"]
        elapsed = task.elapsed or 0.0
        if not done:
            return Text("")
        if self.first is None:
            self.first = (elapsed, int(done))
        seconds, start = elapsed - self.first[0], self.first[1]
        rate = (done - start) / seconds if seconds > 0 else 0.0
        return Text(f"{rate:,.0f} {self.what}/s" if rate else "", "dim")


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _counts_agree(result: LayersResult) -> bool:
    def counts(level: Level) -> tuple[int, int, int]:
        return level.count, level.n_zero, level.n_nonfinite

    return len({(counts(row.sentence), counts(row.token)) for row in result.layers}) == 1
