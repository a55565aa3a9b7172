"""Curves over the layers of a model, labelled where they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from cone_kernels.names import OUTPUT
from cone_kernels.report.figures.canvas import SMALL, Canvas, Hover, layer_scale, points, scale, spread
from cone_kernels.report.figures.grid import grid
from cone_kernels.report.inline import Inline, Number, Parts, count, fixed, stderr
from cone_kernels.report.node import Node, known
from cone_kernels.report.palette import GHOST, MUTED, PAPER

_TOP, _BOTTOM, _LEFT = 30, 40, 40
_LINE_HEIGHT = 15
_BEYOND = 34  # pixels from the last layer to the output


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: what stands at its end.
        colour: one of the palette.
        values: one for each layer, with gaps where a layer has none.
        errors: standard errors, for a band of two on both sides.
        at: where the values lie on the axis of layers; None for one at each layer.
        dashed: a curve that was not measured here, or the second one of its colour.
        layers: the layers' numbers in the results, for what a point says where a pointer rests on it; None: nothing.
        shown: how it says its value.
        beyond: the value of the model's own output, a ring after the last layer.
        series: the model it is of, where a figure has several; a page can hide one.
    """

    name: Inline
    colour: str
    values: Sequence[Node]
    errors: Sequence[Node] | None = None
    at: Sequence[float] | None = None
    dashed: bool = False
    layers: Sequence[Node] | None = None
    shown: Callable[[Node], Number] = fixed
    beyond: Node | None = None
    series: str = ""


def curve_height(width: float) -> float:
    """Pixels that a figure of curves over the layers takes at a width."""
    return 330 if width < 500 else 370


def curve_axes(
    canvas: Canvas,
    numbers: Sequence[int],
    curves: Sequence[Curve],
    title: str,
    along: str = "layer",
    room: tuple[int, int] = (84, 132),
) -> Axes:
    """Axes with the curves, their bands, and their names at the right; the baseline is zero.

    Args:
        canvas: all of it is used.
        numbers: the layers.
        curves: the last one is drawn on top.
        title: what is on the vertical axis.
        along: what is on the horizontal one.
        room: pixels for the names, on a phone and elsewhere.
    """
    right = room[0] if canvas.width < 500 else room[1]
    width, height = canvas.width - _LEFT - right, canvas.height - _TOP - _BOTTOM
    ax = canvas.axes(_LEFT, _TOP, width, height)
    bounds = [bound for curve in curves for bound in _bounds(curve)]
    scale(ax, min([0.0, *bounds]), max([0.0, *bounds]) if bounds else 1.0)
    layer_scale(ax, numbers, width)
    canvas.write(0, 12, [title], fontsize=points(SMALL), color=MUTED)
    canvas.write(_LEFT + width / 2, canvas.height - 4, [along], ha="center", fontsize=points(SMALL), color=MUTED)
    for curve in curves:
        draw_curve(canvas, ax, curve, numbers)
    end: float = numbers[-1]
    if any(curve.beyond is not None and curve.beyond.known for curve in curves):
        end = _room_beyond(ax, width)
        for curve in curves:
            _draw_beyond(canvas, ax, curve, end)
    _name_ends(canvas, ax, curves, end, height)
    return ax


def draw_curve(
    canvas: Canvas, ax: Axes, curve: Curve, numbers: Sequence[int], *, size: float = 4.5, **options: Any
) -> None:
    """One curve with a dot a layer and a band of two standard errors."""
    x = list(curve.at if curve.at is not None else numbers)
    y = [float(node.number) if node.known else math.nan for node in curve.values]
    if curve.errors is not None:
        low, high = zip(*(_band(*pair) for pair in zip(curve.values, curve.errors, strict=True)), strict=True)
        band = ax.fill_between(x, low, high, color=curve.colour, alpha=0.22, linewidth=0, clip_on=False)
        band.set_gid(canvas.gid(curve.series))
    line: dict[str, Any] = {"color": curve.colour, "linewidth": points(2), "clip_on": False, "zorder": 3}
    if curve.dashed:
        line |= {"linewidth": points(1.5), "dashes": (3, 2)}
    else:
        line |= {"marker": "o", "markersize": points(size if len(x) < 40 else 0), "markeredgewidth": 0}
    (drawn,) = ax.plot(x, y, **line | options)
    drawn.set_gid(canvas.gid(curve.series))
    for at, (layer, value) in enumerate(zip(curve.layers or (), curve.values, strict=False)):
        if value.known:
            error = curve.errors[at] if curve.errors is not None else None
            words = [curve.name, ", layer ", count(layer), ": ", *_said(curve, value, error)]
            canvas.hovers.append(Hover(ax, (x[at], y[at]), words, curve.series))


def _said(curve: Curve, value: Node, error: Node | None = None) -> Parts:
    return [curve.shown(value), " ± ", stderr(error)] if error is not None and error.known else [curve.shown(value)]


def _room_beyond(ax: Axes, width: float) -> float:
    """Where the output stands after the last layer; the axis then reaches that far and names it."""
    low, high = ax.get_xlim()
    end = high + max(1.0, _BEYOND * (high - low) / (width - _BEYOND))
    format_tick = ax.xaxis.get_major_formatter()
    ax.xaxis.set_major_locator(FixedLocator([*ax.get_xticks(), end]))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, place: OUTPUT if value == end else format_tick(value, place))
    )
    ax.set_xlim(low, end)
    return end


def _draw_beyond(canvas: Canvas, ax: Axes, curve: Curve, end: float) -> None:
    """The output as a ring, joined to the last layer by dots."""
    value = curve.beyond
    if value is None or not value.known:
        return
    y, gid = float(value.number), canvas.gid(curve.series)
    last = next((node for node in reversed(curve.values) if node.known), None)
    if last is not None:
        x = curve.at[-1] if curve.at is not None else ax.get_xticks()[-2]
        ax.plot([x, end], [float(last.number), y], color=curve.colour, linewidth=points(1.25), dashes=(1, 2),
                clip_on=False, gid=gid)  # fmt: skip
    ax.plot(end, y, "o", markersize=points(8), markeredgewidth=points(1.75), markeredgecolor=curve.colour,
            markerfacecolor=PAPER, clip_on=False, zorder=4, gid=gid)  # fmt: skip
    canvas.hovers.append(Hover(ax, (end, y), [curve.name, f", {OUTPUT}: ", *_said(curve, value)], curve.series))


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
                draw_curve(canvas, ax, behind, (), size=0, linewidth=points(1), alpha=0.7, zorder=2)
        draw_curve(canvas, ax, curve, (), size=3.5)
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
    shown = [*curve.values, *([curve.beyond] if curve.beyond is not None else [])]
    values = [float(node.number) for node in shown if node.known]
    bands = [_band(*pair) for pair in zip(curve.values, curve.errors or (), strict=False)]
    return values + [bound for band in bands for bound in band if math.isfinite(bound)]


def _name_ends(canvas: Canvas, ax: Axes, curves: Sequence[Curve], end: float, height: float) -> None:
    """The names of the curves at the right, each as high as the last value of its curve."""
    shown = [[*curve.values, *([curve.beyond] if curve.beyond is not None else [])] for curve in curves]
    ends = [
        (curve, next((node for node in reversed(nodes) if node.known), None))
        for curve, nodes in zip(curves, shown, strict=True)
    ]
    named = [(curve, float(node.number)) for curve, node in ends if node is not None and curve.name]
    low, high = ax.get_ylim()
    unit = (high - low) / height
    places = spread([value for _, value in named], _LINE_HEIGHT * unit, low, high)
    for (curve, _), place in zip(named, places, strict=True):
        canvas.note(ax, (end, place), [curve.name], dx=10, color=curve.colour, series=curve.series)
