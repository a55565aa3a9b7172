"""The table of all layers, with a bar for each level."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cone_kernels.names import GEOMETRY, OUTPUT, POOLINGS
from cone_kernels.terminal.console import bar, number

if TYPE_CHECKING:
    from cone_kernels.experiments.layers_result import Layer, LayersResult, Output

_BAR_WIDTH = 10


def print_layers(console: Console, result: LayersResult) -> None:
    """The table of all layers, with a bar from 0 to 1 for each level; then what the curve says."""
    width = min(24, _BAR_WIDTH + max(0, console.width - 80) // 2)
    table = _table("layer")
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
            cells += [number(level.anisotropy), number(level.stderr), drawn]
        table.add_row(*cells, f"{row.sentence.count:,}", f"{row.token.count:,}")
    output = result.output.sentence if result.output else None
    if output is not None:
        drawn = Text(bar(output.anisotropy, width, console), "cyan")
        given = (number(output.anisotropy), number(output.stderr), drawn)
        table.add_row(OUTPUT, *given, "", "", "", f"{output.count:,}", "")
    console.print(table)
    made = "" if result.state.pooling == "mean" else f", each {POOLINGS[result.state.pooling].phrase} of its tokens"
    console.print(f"mean cosine of two sentences{made}, of two tokens; s.e.: standard error", style="dim")
    levels = [level for row in result.layers for level in (row.sentence, row.token)]
    reasons = (level.reason for level in [*levels, output] if level)
    for reason in dict.fromkeys(reason for reason in reasons if reason):
        console.print(f"- is not defined: {reason}", style="yellow")
    if any(row.geometry for row in result.layers):
        console.print()
        _print_geometry(console, result)
    if result.published:
        _print_published(console, result.published)
    if result.summary():
        console.print()
    for line in result.summary():
        console.print(line.replace("±", "+/-") if console.options.ascii_only else line)


def _print_geometry(console: Console, result: LayersResult) -> None:
    table = _table("layer", *(metric.heading for metric in GEOMETRY.values()))
    table.add_column("rogue dimensions")
    rows: list[tuple[str, Layer | Output]] = [(str(layer.layer), layer) for layer in result.layers]
    rows += [(OUTPUT, result.output)] if result.output and result.output.geometry else []
    for name, row in rows:
        rogue = ", ".join(f"{one.dimension} ({one.share:.0%})" for one in row.rogue_dimensions)
        table.add_row(
            name, *(geometry_value(metric, getattr(row.geometry, metric, math.nan)) for metric in GEOMETRY), rogue
        )
    console.print(table)
    what = "of the sentence vectors around their mean; PR: participation ratio; in brackets: share of the mean cosine"
    console.print(what, style="dim")


def geometry_value(metric: str, value: float) -> str:
    """A value of a metric of `cone_kernels.names.GEOMETRY`, as it is shown."""
    if not math.isfinite(value):
        return "-"
    return {"directions": f"{value:.1f}", "score": number(value), "share": f"{value:.1%}"}[GEOMETRY[metric].shown]


def _print_published(console: Console, published: dict[str, Any]) -> None:
    curve = ", ".join(f"{value:.3f}" for value in published["anisotropy"])
    last = len(published["anisotropy"]) - 1
    console.print(f"\n{published['source']}, layers 0 to {last}: {curve}", style="dim")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
