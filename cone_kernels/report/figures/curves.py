"""Curves over the layers of a model, labelled where they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from cone_kernels.report.figures.canvas import SMALL, Canvas, layer_scale, points, scale, spread
from cone_kernels.report.figures.grid import grid
from cone_kernels.report.inline import Inline, Parts
from cone_kernels.report.node import Node, known
from cone_kernels.report.palette import GHOST, MUTED, PAPER

_TOP, _BOTTOM, _LEFT = 30, 40, 40
_LINE_HEIGHT = 15


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: what stands at its end.
        colour: one of the palette.
        values: one for each layer, with gaps where a layer has none.
        errors: standard errors, for a band of two on both sides.
        at: where the values lie on the axis of layers; None for one at each layer.
        dashed: a curve that was not measured here.
    """

    name: Inline
    colour: str
    values: Sequence[Node]
    errors: Sequence[Node] | None = None
    at: Sequence[float] | None = None
    dashed: bool = False


def curve_axes(canvas: Canvas, numbers: Sequence[int], curves: Sequence[Curve], title: str) -> Axes:
    """Axes with the curves, their bands, and their names at the right; the baseline is zero.

    Args:
        canvas: all of it is used.
        numbers: the layers.
        curves: the last one is drawn on top.
        title: what is on the vertical axis.
    """
    right = 84 if canvas.width < 500 else 132
    width, height = canvas.width - _LEFT - right, canvas.height - _TOP - _BOTTOM
    ax = canvas.axes(_LEFT, _TOP, width, height)
    bounds = [bound for curve in curves for bound in _bounds(curve)]
    scale(ax, min([0.0, *bounds]), max([0.0, *bounds]) if bounds else 1.0)
    layer_scale(ax, numbers, width)
    canvas.write(0, 12, [title], fontsize=points(SMALL), color=MUTED)
    canvas.write(_LEFT + width / 2, canvas.height - 4, ["layer"], ha="center", fontsize=points(SMALL), color=MUTED)
    for curve in curves:
        draw_curve(ax, curve, numbers)
    _name_ends(canvas, ax, curves, numbers, height)
    return ax


def draw_curve(ax: Axes, curve: Curve, numbers: Sequence[int], *, size: float = 4.5, **options: Any) -> None:
    """One curve with a dot a layer and a band of two standard errors."""
    x = list(curve.at if curve.at is not None else numbers)
    y = [float(node.number) if node.known else math.nan for node in curve.values]
    if curve.errors is not None:
        low, high = zip(*(_band(*pair) for pair in zip(curve.values, curve.errors, strict=True)), strict=True)
        ax.fill_between(x, low, high, color=curve.colour, alpha=0.22, linewidth=0, clip_on=False)
    line: dict[str, Any] = {"color": curve.colour, "linewidth": points(2), "clip_on": False, "zorder": 3}
    if curve.dashed:
        line |= {"linewidth": points(1.5), "dashes": (3, 2)}
    else:
        line |= {"marker": "o", "markersize": points(size if len(x) < 40 else 0), "markeredgewidth": 0}
    ax.plot(x, y, **line | options)


def draw_multiples(canvas: Canvas, curves: Sequence[Curve], scale_x: Callable[[Axes, float], None]) -> None:
    """A cell for each curve, named above it, with the others in grey behind it.

    Args:
        canvas: as high as `grid_height` says.
        curves: all with `at`.
        scale_x: sets the horizontal scale of axes of a width.
    """
    found = [bound for curve in curves for bound in _bounds(curve)]
    for curve, cell in zip(curves, grid(canvas, len(curves)), strict=True):
        width = cell.width - 50
        ax = cell.axes(30, 30, width, cell.height - 62)
        scale(ax, min([0.0, *found]), max(found, default=1.0), steps=4)
        scale_x(ax, width)
        for other in curves:
            if other is not curve:
                behind = Curve("", GHOST, other.values, at=other.at)
                draw_curve(ax, behind, (), size=0, linewidth=points(1), alpha=0.7, zorder=2)
        draw_curve(ax, curve, (), size=3.5)
        cell.write(0, 14, [curve.name], fontsize=points(SMALL))


def mark(canvas: Canvas, ax: Axes, at: tuple[float, float], parts: Parts, colour: str, *, above: bool = True) -> None:
    """A ring around a point of a curve and words next to it that stay within the axes."""
    ax.plot(*at, "o", markersize=points(9), markeredgewidth=points(1.5), markeredgecolor=colour, markerfacecolor=PAPER,
            clip_on=False, zorder=4)  # fmt: skip
    low, high = ax.get_xlim()
    place = (at[0] - low) / (high - low)
    ha = "left" if place < 0.2 else "right" if place > 0.8 else "center"
    dx = {"left": -4, "right": 4, "center": 0}[ha]
    canvas.note(ax, at, parts, dx=dx, dy=9 if above else -9, ha=ha, va="bottom" if above else "top", color=colour)


def value_at(rows: Node, layer: float, *path: str) -> Node | None:
    """The value of the row with this layer number, where it has one."""
    for row in rows:
        if row["layer"].number == layer:
            for key in path:
                row = row.get(key)
            return row if row.known else None
    return None


def _band(value: Node, error: Node) -> tuple[float, float]:
    if not known(value, error):
        return math.nan, math.nan
    return value.number - 2 * error.number, value.number + 2 * error.number


def _bounds(curve: Curve) -> list[float]:
    values = [float(node.number) for node in curve.values if node.known]
    bands = [_band(*pair) for pair in zip(curve.values, curve.errors or (), strict=False)]
    return values + [bound for band in bands for bound in band if math.isfinite(bound)]


def _name_ends(canvas: Canvas, ax: Axes, curves: Sequence[Curve], numbers: Sequence[int], height: float) -> None:
    ends = [(curve, next((node for node in reversed(curve.values) if node.known), None)) for curve in curves]
    named = [(curve, float(node.number)) for curve, node in ends if node is not None and curve.name]
    low, high = ax.get_ylim()
    unit = (high - low) / height
    places = spread([value for _, value in named], _LINE_HEIGHT * unit, low, high)
    for (curve, _), place in zip(named, places, strict=True):
        canvas.note(ax, (numbers[-1], place), [curve.name], dx=10, color=curve.colour)
