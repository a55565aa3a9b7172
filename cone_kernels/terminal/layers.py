"""The table of all layers, with a bar for each level."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cone_kernels.names import GEOMETRY, OUTPUT, POOLINGS
from cone_kernels.terminal.columns import BARS, COUNTS, ERRORS, Column, print_columns
from cone_kernels.terminal.console import bar, number

if TYPE_CHECKING:
    from cone_kernels.experiments.layers_result import Layer, LayersResult, Output
    from cone_kernels.metrics import Geometry

_BAR_WIDTH = 10


def print_layers(console: Console, result: LayersResult) -> None:
    """The table of all layers, with a bar from 0 to 1 for each level; then what the curve says."""
    width = min(24, _BAR_WIDTH + max(0, console.width - 80) // 2)
    output = result.output.sentence if result.output else None
    sentences = [row.sentence for row in result.layers] + ([output] if output else [])
    tokens = [row.token for row in result.layers]
    names = [str(row.layer) for row in result.layers] + ([OUTPUT] if output else [])
    # The output has no tokens.
    blank = [""] * (len(names) - len(tokens))
    columns = [Column("layer", names)]
    for heading, levels, rest, colour in (("sentence", sentences, [], "cyan"), ("token", tokens, blank, "magenta")):
        columns.append(Column(heading, [number(level.anisotropy) for level in levels] + rest))
        columns.append(Column("s.e.", [number(level.stderr) for level in levels] + rest, ERRORS, style="dim"))
        bars = [bar(level.anisotropy, width, console) for level in levels]
        columns.append(Column("", bars + rest, BARS, justify="left", style=colour))
    columns.append(Column("sentences", [f"{level.count:,}" for level in sentences], COUNTS))
    columns.append(Column("tokens", [f"{level.count:,}" for level in tokens] + blank, COUNTS))
    headings = print_columns(console, columns)
    made = "" if result.state.pooling == "mean" else f", each {POOLINGS[result.state.pooling].phrase} of its tokens"
    error = "; s.e.: standard error" if "s.e." in headings else ""
    console.print(f"mean cosine of two sentences{made}, of two tokens{error}", style="dim")
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
    rows: list[tuple[str, Layer | Output]] = [(str(layer.layer), layer) for layer in result.layers]
    rows += [(OUTPUT, result.output)] if result.output and result.output.geometry else []
    columns = [Column("layer", [name for name, _ in rows])]
    for metric, about in GEOMETRY.items():
        columns.append(Column(about.heading, [geometry_value(metric, row.geometry) for _, row in rows]))
        if metric == "participation_ratio":
            columns.append(Column("corrected", [corrected_ratio(row.geometry) for _, row in rows]))
    rogue = [", ".join(f"{one.dimension} ({one.share:.0%})" for one in row.rogue_dimensions) for _, row in rows]
    columns.append(Column("rogue dimensions", rogue, justify="left"))
    print_columns(console, columns)
    what = (
        "of the sentence vectors around their mean; PR: participation ratio, corrected: for n, +/- its standard error; "
        ">: more than 5% below that of more sentences; in brackets: share of the mean cosine"
    )
    console.print(what, style="dim")


def geometry_value(metric: str, geometry: Geometry | None) -> str:
    """A metric of `cone_kernels.names.GEOMETRY`, as it is shown; ">" before a rank that more rows would raise much."""
    value = math.nan if geometry is None else geometry.values[metric]
    if geometry is None or not math.isfinite(value):
        return "-"
    shown = {"directions": f"{value:.1f}", "score": number(value), "share": f"{value:.1%}"}[GEOMETRY[metric].shown]
    lacks = metric in ("effective_rank", "rank_me") and geometry.population.lack(metric).verdict == "greater"
    return f">{shown}" if lacks else shown


def corrected_ratio(geometry: Geometry | None) -> str:
    """The participation ratio corrected for n and its standard error; "-" where these rows do not tell it."""
    if geometry is None or not math.isfinite(geometry.population.participation_ratio):
        return "-"
    found = geometry.population
    return f"{found.participation_ratio:.1f} +/- {found.participation_ratio_stderr:.1f}"


def _print_published(console: Console, published: dict[str, Any]) -> None:
    curve = ", ".join(f"{value:.3f}" for value in published["anisotropy"])
    last = len(published["anisotropy"]) - 1
    console.print(f"\n{published['source']}, layers 0 to {last}: {curve}", style="dim")
