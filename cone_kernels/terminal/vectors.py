"""Vectors that somebody has already: the cone in a few lines, what carries it, what lies along its axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cone_kernels.names import GEOMETRY
from cone_kernels.terminal.axis import ends_table
from cone_kernels.terminal.console import bar, number
from cone_kernels.terminal.layers import corrected_ratio, geometry_value

if TYPE_CHECKING:
    from cone_kernels.experiments.vectors_result import VectorAxis, VectorsResult

_BAR_WIDTH = 20


def print_vectors(console: Console, result: VectorsResult) -> None:
    """What they are, the mean cosine with a bar, the shape of the cone, each axis with its ends, plain sentences."""
    about, level = result.vectors, result.level
    scale = f", times {about['scale']:g}" if about["scale"] is not None else ""
    kind = f"{about['rows']:,} vectors, {about['dim']:,} wide, {about['dtype']}{scale}"
    console.print(Text.assemble((f"{about['name']}", "bold"), f": {kind}"), soft_wrap=True)
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    cosine = Text(f"{number(level.anisotropy)} ± {number(level.stderr)}  ", "bold")
    table.add_row("mean cosine", cosine.append(bar(level.anisotropy, _BAR_WIDTH, console), "cyan"))
    table.add_row("mean norm", f"{level.mean_norm:.4g}" if math.isfinite(level.mean_norm) else "-")
    if result.rogue_dimensions:
        shares = [f" ({one.share:.0%} of it)" if math.isfinite(one.share) else "" for one in result.rogue_dimensions]
        rogue = [f"{one.dimension}{share}" for one, share in zip(result.rogue_dimensions, shares, strict=True)]
        without = result.without_rogue
        rough = "" if without.count else "about "
        told = f"; without them {rough}{without.value:.2f}" if math.isfinite(without.value) else ""
        table.add_row("dimensions", f"{', '.join(rogue)}{told}")
    for name, metric in GEOMETRY.items() if result.geometry else ():
        table.add_row(metric.label, geometry_value(name, result.geometry))
        if name == "participation_ratio":
            table.add_row("  corrected for n", corrected_ratio(result.geometry))
    console.print(table)
    if level.reason:
        console.print(Text(f"- is not defined: {level.reason}", style="yellow"))
    for at, component in enumerate(result.axis.components if result.axis else (), start=1):
        _print_axis(console, at, component)
    for reason in result.axis.reasons if result.axis else ():
        console.print(Text(f"- {reason}", style="yellow"))
    console.print()
    for line in result.summary():
        console.print(Text(line))


def _print_axis(console: Console, at: int, component: VectorAxis) -> None:
    console.print()
    said = f"  {component.explained_variance_ratio:.1%} of the variance"
    console.print(Text.assemble((f"axis {at}", "bold"), said))
    ends = [[(one.projection, one.label) for one in end] for end in (component.top, component.bottom)]
    console.print(Padding(ends_table(console, *ends), (0, 0, 0, 2)))
