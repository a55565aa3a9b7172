"""Figures of `pooling`: tokens against sentences and what averaging alone predicts; the poolings side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from cone_kernels.names import POOLINGS, label_of
from cone_kernels.report.figures.canvas import Canvas, layer_scale, points
from cone_kernels.report.figures.curves import Curve, curve_axes, curve_height, draw_multiples
from cone_kernels.report.figures.grid import grid_height
from cone_kernels.report.figures.layers import layer_numbers, level_curve
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Inline, Parts, count, fixed, joined
from cone_kernels.report.node import Node, known
from cone_kernels.report.palette import INK, PREDICTED, RULE, SENTENCE, TOKEN
from cone_kernels.report.words import measured_poolings, widest_gap


def panels(result: Node) -> list[Panel]:
    """The figures that the result has the numbers for."""
    found = [_levels_panel(result)]
    poolings = measured_poolings(result)
    if len(poolings) > 1:
        found.append(_poolings_panel(result, poolings))
    return found


def _levels_panel(result: Node) -> Panel:
    return Panel(
        "levels",
        "Tokens, sentences, and what averaging alone would do",
        [
            "The shaded gap is what pooling adds to the cone of the tokens. The green curve is what averaging alone "
            "gives, of tokens taken at length 1: where it meets the blue one, it explains the gap, and what is between "
            "them is what tokens of unlike length do."
        ],
        _levels_description(result),
        curve_height,
        lambda canvas: _draw_levels(canvas, result),
    )


def _levels_description(result: Node) -> Parts:
    widest = widest_gap(result)
    if widest is None:
        return ["Line chart of the token level, the sentence level and the predicted anisotropy at every layer."]
    parts: list[Inline] = [
        "The gap between sentences and tokens is widest at layer ",
        count(widest["layer"]),
        ": tokens ",
    ]
    parts += [fixed(widest["token"].get("anisotropy"), 2), ", sentences "]
    parts += [
        fixed(widest["sentence"].get("anisotropy"), 2),
        ", a gap of ",
        fixed(widest["gap"]["value"], 2, sign=True),
    ]
    return [*parts, "; averaging alone predicts ", fixed(widest["predicted"].get("value"), 2), " there."]


def level_curves(rows: Node) -> list[Curve]:
    """The tokens, what averaging alone predicts, and the sentences."""
    predicted = [row["predicted"].get("value") for row in rows]
    errors = [row["predicted"].get("stderr") for row in rows]
    return [
        level_curve(rows, "token", "tokens", TOKEN),
        Curve("predicted", PREDICTED, predicted, errors, layers=[row["layer"] for row in rows]),
        level_curve(rows, "sentence", "sentences", SENTENCE),
    ]


def shade_gap(ax: Axes, numbers: Sequence[int], curves: Sequence[Curve]) -> None:
    """What lies between the first of `level_curves` and the last."""
    low, high = ([float(node.number) if node.known else math.nan for node in curve.values] for curve in curves[::2])
    ax.fill_between(numbers, low, high, color=RULE, alpha=0.45, linewidth=0, clip_on=False, zorder=1)


def _draw_levels(canvas: Canvas, result: Node) -> None:
    rows = result["layers"]
    numbers, curves = layer_numbers(rows), level_curves(rows)
    ax = curve_axes(canvas, numbers, curves, "mean cosine of two at random")
    shade_gap(ax, numbers, curves)
    widest = widest_gap(result)
    if widest is not None:
        _draw_gap(canvas, ax, widest)


def _draw_gap(canvas: Canvas, ax: Axes, row: Node) -> None:
    ends = [row[level].get("anisotropy") for level in ("token", "sentence")]
    if not known(*ends):
        return
    x, (low, high) = row["layer"].number, (float(end.number) for end in ends)
    ax.plot([x, x], [low, high], color=INK, linewidth=points(1.25), clip_on=False, zorder=2.5)
    at_right = x > sum(ax.get_xlim()) / 2
    words: Parts = ["gap ", fixed(row["gap"]["value"], 2, sign=True)]
    place = (x, low + (high - low) * 0.4)
    canvas.note(ax, place, words, dx=-6 if at_right else 6, ha="right" if at_right else "left")


def _poolings_panel(result: Node, poolings: Sequence[str]) -> Panel:
    rows = result["layers"]
    last: list[Parts] = [
        [f"{label_of(POOLINGS, key)} ", fixed(rows[-1]["poolings"][key].get("anisotropy"), 2)] for key in poolings
    ]
    return Panel(
        "poolings",
        "The cone under each pooling",
        ["Mean cosine of two pooled sentences at every layer; the other poolings are grey, for comparison."],
        ["At the last layer: ", *joined(last), "."],
        lambda width: grid_height(len(poolings), width),
        lambda canvas: _draw_poolings(canvas, rows, poolings),
    )


def _draw_poolings(canvas: Canvas, rows: Node, poolings: Sequence[str]) -> None:
    numbers = layer_numbers(rows)
    curves = []
    for key in poolings:
        levels = [row["poolings"][key] for row in rows]
        values, errors = ([level.get(name) for level in levels] for name in ("anisotropy", "stderr"))
        curves.append(Curve(label_of(POOLINGS, key), SENTENCE, values, errors, at=numbers))
    draw_multiples(canvas, curves, lambda ax, width: layer_scale(ax, numbers, width))
