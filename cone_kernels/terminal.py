"""What a person sees of a result in the terminal: the table with its bars, the progress line, the notes below."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cone_kernels.experiments.layers import LayersResult
    from cone_kernels.runner import Progress

_BAR_WIDTH = 10
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def stdout_console() -> Console:
    """The console for results."""
    return Console(highlight=False, soft_wrap=False)


def stderr_console() -> Console:
    """The console for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def print_layers(console: Console, result: LayersResult) -> None:
    """The table of all layers, with a bar a level that starts at 0 and ends at 1."""
    width = min(24, _BAR_WIDTH + max(0, console.width - 80) // 2)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("layer", justify="right", no_wrap=True)
    for heading in ("sentence", "token"):
        table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("s.e.", justify="right", style="dim", no_wrap=True)
        table.add_column("", no_wrap=True)
    table.add_column("sentences", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    for row in result.layers:
        cells: list[str | Text] = [str(row.layer)]
        for level, colour in ((row.sentence, "cyan"), (row.token, "magenta")):
            drawn = Text(bar(level.anisotropy, width, console), colour)
            cells += [_number(level.anisotropy), _number(level.stderr), drawn]
        table.add_row(*cells, f"{row.sentence.count:,}", f"{row.token.count:,}")
    console.print(table)
    console.print("mean cosine of two sentences, of two tokens; s.e.: standard error", style="dim")
    reasons = (level.reason for row in result.layers for level in (row.sentence, row.token))
    for reason in dict.fromkeys(reason for reason in reasons if reason):
        console.print(f"- is not defined: {reason}", style="yellow")


def print_notes(console: Console, result: LayersResult) -> None:
    """How fast it went, and what was left out, cut or replaced, where anything was."""
    corpus = result.corpus
    seconds = result.manifest["seconds"]["run"]
    ran = f"{corpus['sentences']:,} sentences, {corpus['tokens']:,} tokens in {seconds:.1f} s"
    console.print(f"{ran}: {_rates(corpus['sentences'], corpus['tokens'], seconds)}", style="dim")
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
                rates = _rates(done.sentences - before.sentences, done.tokens - before.tokens, now - started)
            description = f"{done.sentences:,} sentences"
            bars.update(task, description=description, total=done.expected, completed=done.sentences, rates=rates)

        yield report


def _rates(sentences: int, tokens: int, seconds: float) -> str:
    return f"{sentences / seconds:,.0f} sentences/s, {tokens / seconds:,.0f} tokens/s"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def print_doctor(console: Console, found: dict[str, Any]) -> None:
    """What `cone_kernels.doctor.examine` found."""
    installed = (f"{name} {version or '(not installed)'}" for name, version in found["versions"].items())
    console.print("[bold]versions[/]   " + ", ".join(installed), soft_wrap=True)
    console.print("[bold]backends[/]")
    for backend in found["backends"]:
        mark = "[green]yes[/]" if backend["available"] else "[yellow]no [/]"
        what = backend["reason"] or f"{', '.join(backend['ops'])} on {', '.join(backend['devices'])}"
        console.print(f"  {mark} {backend['backend']:<9} {what}", soft_wrap=True)
    cpu = found["cpu"]
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores usable"
    console.print(f"[bold]cpu[/]        {cpu['name']}, {cores}, torch threads: {cpu['torch_threads'] or '-'}")
    isas = ", ".join(cpu["supported_isas"]) or "-"
    console.print(f"[bold]isa[/]        {cpu['isa'] or '-'} (this machine runs: {isas})")
    for gpu in found["gpus"]:
        console.print(f"[bold]gpu[/]        {gpu['name']}, {_gib(gpu['memory_bytes'])}, sm {gpu['capability']}")
    memory = {what.removesuffix("_bytes"): size for what, size in found["memory"].items() if size is not None}
    console.print("[bold]memory[/]     " + ", ".join(f"{what} {_gib(size)}" for what, size in memory.items()))
    measured = found["bandwidth"]
    console.print(f"[bold]bandwidth[/]  {measured['gb_per_s']:.1f} GB/s ({measured['method']})")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
