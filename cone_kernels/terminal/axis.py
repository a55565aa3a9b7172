"""The ends of each axis, sentences and tokens, what it goes with, and the angles between the three directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cone_kernels.experiments.axis_result import degrees, excerpt
from cone_kernels.names import place, spaced
from cone_kernels.terminal.console import bar

if TYPE_CHECKING:
    from cone_kernels.experiments.axis_result import AxisResult, Component
    from cone_kernels.experiments.vocabulary import TokenProjection

_BAR_WIDTH = 8
_UPPER, _LOWER = "cyan", "magenta"


def print_axis(console: Console, result: AxisResult) -> None:
    """Each axis with its ends, the angles, what is not defined, and the plain sentences."""
    where = f"{place(result.layer)}, {result.layer_name}: {result.sentences:,} sentence vectors"
    console.print(Text(where, style="bold"), soft_wrap=True)
    for number, component in enumerate(result.components, start=1):
        console.print()
        console.print(_heading(number, component))
        ends = [[(one.projection, one.text) for one in end] for end in (component.top, component.bottom)]
        for part in (ends_table(console, *ends), _tokens(component), _correlations(component)):
            console.print(Padding(part, (0, 0, 0, 2)))
    console.print()
    console.print(_angles(result))
    if "reason" in result.vocabulary:
        console.print(Text(f"no tokens: {result.vocabulary['reason']}", style="yellow"))
    for reason in result.reasons:
        console.print(Text(f"- {reason}", style="yellow"))
    console.print()
    for line in result.summary():
        console.print(Text(line))


def _heading(number: int, component: Component) -> Text:
    heading = Text(f"axis {number}", style="bold")
    heading.append(f"  {component.explained_variance_ratio:.1%} of the variance", style="not bold")
    gap = f", {component.eigengap:.4g} above the next" if math.isfinite(component.eigengap) else ""
    return heading.append(f"  eigenvalue {component.eigenvalue:.4g}{gap}", style="not bold dim")


def ends_table(console: Console, top: Sequence[tuple[float, str]], bottom: Sequence[tuple[float, str]]) -> Table:
    """The upper end from the highest down, then the lower end down to the lowest.

    Args:
        console: what it is drawn for.
        top, bottom: (projection, text) of what lies at the ends, the furthest first.
    """
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, width=_BAR_WIDTH)
    table.add_column(no_wrap=True, overflow="ellipsis")
    largest = max(abs(projection) for projection, _ in (*top, *bottom)) or 1.0
    decimals = max(0, 2 - math.floor(math.log10(largest)))

    def add(end: Sequence[tuple[float, str]], colour: str) -> None:
        for projection, text in end:
            drawn = bar(abs(projection) / largest, _BAR_WIDTH, console)
            table.add_row(f"{projection:+.{decimals}f}", Text(drawn, colour), Text(excerpt(text, 200)))

    add(top, _UPPER)
    table.add_row("", "", Text("⋯" if not console.options.ascii_only else "...", style="dim"))
    add(bottom[::-1], _LOWER)
    return table


def _tokens(component: Component) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    if component.tokens_top:
        table.add_row("tokens up", Text(_joined(component.tokens_top), _UPPER))
        table.add_row("tokens down", Text(_joined(component.tokens_bottom), _LOWER))
    return table


def _joined(tokens: Sequence[TokenProjection]) -> str:
    return "  ".join(excerpt(token.token, 30) for token in tokens)


def _correlations(component: Component) -> Text:
    line = Text("goes with    ", style="dim")
    for name, r in component.correlations.items():
        line.append(f"{spaced(name)} ", style="not dim")
        line.append(f"{r:+.2f}   " if math.isfinite(r) else "-   ", style="not dim bold")
    return line


def _angles(result: AxisResult) -> Text:
    line = Text("angles", style="bold")
    for what, angle in _named_angles(result):
        line.append(f"   {what} ", style="not bold")
        line.append(f"{angle:.1f}°" if math.isfinite(angle) else "-")
    return line


def _named_angles(result: AxisResult) -> Iterator[tuple[str, float]]:
    yield "axis 1, mean", degrees(result.mean_cosine)
    yield "uncentred, mean", degrees(result.uncentered_mean_cosine)
    yield "axis 1, uncentred", degrees(result.centered_uncentered_cosine)
