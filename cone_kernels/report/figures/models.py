"""Figures that set the models of a run side by side: one curve a model, or one cell a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes

from cone_kernels.names import GEOMETRY, POOLINGS, is_share, label_of
from cone_kernels.report.figures.canvas import SMALL, Canvas, layer_scale, points, scale
from cone_kernels.report.figures.curves import Curve, curve_axes, draw_curve
from cone_kernels.report.figures.grid import grid, grid_height
from cone_kernels.report.figures.key import draw_key, key_height
from cone_kernels.report.figures.layers import layer_numbers, level_curve
from cone_kernels.report.figures.layers import panels as layers_panels
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.figures.pooling import level_curves, shade_gap
from cone_kernels.report.inline import Inline, Parts, Text, fixed, joined, name, one_line, percent, significant
from cone_kernels.report.node import Node
from cone_kernels.report.palette import BLUE, GREEN, INK, ORANGE, PREDICTED, PURPLE, SENTENCE, TOKEN
from cone_kernels.report.words import measured_poolings

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
_LEVELS: list[tuple[str, Parts]] = [
    (TOKEN, ["tokens"]),
    (SENTENCE, ["sentences"]),
    (PREDICTED, ["what averaging alone predicts"]),
]


def overview_panel(results: Sequence[Node]) -> Panel:
    """The curves of all models over their layers; of one model its levels, with peak, dips and crash.

    Args:
        results: of `layers`, at least one.
    """
    if len(results) == 1:
        return layers_panels(results[0])[0]
    peaks: list[Parts] = [
        [name(result["model"]), " ", fixed(result["shape"]["peak"]["anisotropy"], 2)]
        for result in results
        if result.get("shape").known
    ]
    listed: Parts = [" The peaks: ", *joined(peaks), "."] if peaks else []
    return Panel(
        "overview",
        "How tight the cone is at every layer",
        ["Mean cosine of two sentences picked at random, with bands of two standard errors; a ring is what the model "
         "itself gives for a sentence."],
        ["Line chart of the sentence level of all models.", *listed],
        lambda width: 260 if width < 500 else 270,
        lambda canvas: _draw_overlaid(canvas, results, "sentence"),
    )  # fmt: skip


def compared_layers(results: Sequence[Node]) -> list[Panel]:
    """What the overview does not show of the layers of several models: their tokens, their geometry."""
    found = [
        Panel(
            "tokens",
            "How tight the cone of the tokens is",
            ["Mean cosine of two tokens picked at random, with bands of two standard errors."],
            ["Line chart of the token level of all models: at the last layer ", *_last(results, "token"), "."],
            lambda width: 230 if width < 500 else 240,
            lambda canvas: _draw_overlaid(canvas, results, "token"),
        )
    ]
    measures = [key for key in GEOMETRY if any(_geometry(row, key).known for one in results for row in one["layers"])]
    if measures:
        found.append(_geometry_panel(results, measures))
    return found


def compared_pooling(results: Sequence[Node]) -> list[Panel]:
    """Tokens, sentences and prediction of each model, and each pooling of all models where there are several."""
    found = [
        Panel(
            "levels",
            "Tokens, sentences, and what averaging alone would do",
            ["The shaded gap is what pooling adds; where the green curve meets the blue one, averaging alone "
             "explains it."],
            ["Line charts of one model each: at the last layer the sentences have ", *_last(results, "sentence"), "."],
            lambda width: key_height(_LEVELS, width) + grid_height(len(results), width),
            lambda canvas: _draw_levels(canvas, results),
        )
    ]  # fmt: skip
    poolings = list(dict.fromkeys(key for result in results for key in measured_poolings(result)))
    if len(poolings) > 1:
        found.append(_poolings_panel(results, poolings))
    return found


def _last(results: Sequence[Node], level: str) -> Parts:
    return joined([[name(one["model"]), " ", fixed(one["layers"][-1][level].get("anisotropy"), 2)] for one in results])


def _geometry_panel(results: Sequence[Node], measures: Sequence[str]) -> Panel:
    described: list[Parts] = []
    for key in measures:
        shown = percent if is_share(key) else significant
        ends = joined([[shown(_geometry(result["layers"][-1], key), 3)] for result in results])
        described.append([f"{label_of(GEOMETRY, key)} ", *ends])
    return Panel(
        "geometry",
        "How many directions the sentence vectors use",
        ["Participation ratio, effective rank and RankMe count directions, up to the width of the model; IsoScore lies "
         "between 0 (one direction) and 1 (all alike). All grow with the number of sentences: compare models at equal "
         "numbers."],
        ["At the last layers: ", *joined(described, "; "), "."],
        lambda width: key_height(_models_key(results), width) + grid_height(len(measures), width),
        lambda canvas: _draw_geometry(canvas, results, measures),
    )  # fmt: skip


def _draw_geometry(canvas: Canvas, results: Sequence[Node], measures: Sequence[str]) -> None:
    def curve(result: Node, key: str) -> Curve:
        shown = percent if is_share(key) else significant
        return replace(_curve(result, "sentence"), values=[_geometry(row, key) for row in result["layers"]],
                       errors=None, shown=shown)  # fmt: skip

    cells: list[tuple[Inline, list[Curve]]] = [
        (label_of(GEOMETRY, key), [curve(result, key) for result in results]) for key in measures
    ]
    _draw_cells(canvas, results, cells, shares=[is_share(key) for key in measures])


def _geometry(row: Node, key: str) -> Node:
    return row.get("geometry").get(key)


def _poolings_panel(results: Sequence[Node], poolings: Sequence[str]) -> Panel:
    return Panel(
        "poolings",
        "The cone under each pooling",
        ["Mean cosine of two pooled sentences at every layer."],
        ["One line chart for each of ", *joined([[label_of(POOLINGS, key)] for key in poolings]), "."],
        lambda width: key_height(_models_key(results), width) + grid_height(len(poolings), width),
        lambda canvas: _draw_poolings(canvas, results, poolings),
    )


def _draw_poolings(canvas: Canvas, results: Sequence[Node], poolings: Sequence[str]) -> None:
    def curve(result: Node, key: str) -> Curve:
        levels = [row["poolings"].get(key) for row in result["layers"]]
        values, errors = ([level.get(what) for level in levels] for what in ("anisotropy", "stderr"))
        return replace(_curve(result, "sentence"), values=values, errors=errors)

    cells: list[tuple[Inline, list[Curve]]] = [
        (label_of(POOLINGS, key), [curve(result, key) for result in results]) for key in poolings
    ]
    _draw_cells(canvas, results, cells, shares=[False] * len(poolings))


def _draw_cells(
    canvas: Canvas, results: Sequence[Node], cells: Sequence[tuple[Inline, list[Curve]]], *, shares: Sequence[bool]
) -> None:
    """A cell for each measure with the curves of all models, under one key."""
    key = _models_key(results)
    draw_key(canvas, key, 12)
    head = key_height(key, canvas.width)
    rest = canvas.region(0, head, canvas.width, canvas.height - head)
    for (words, curves), share, cell in zip(cells, shares, grid(rest, len(cells)), strict=True):
        width = cell.width - 52
        ax = cell.axes(38, 30, width, cell.height - 62)
        values = [float(node.number) for curve in curves for node in curve.values if node.known]
        scale(ax, min([0.0, *values]), max(values, default=1.0), steps=3, percent=share)
        _scale_layers(ax, results, width)
        for curve in _told_apart(results, curves):
            draw_curve(canvas, ax, curve, (), size=3.5)
        cell.write(0, 14, [words], fontsize=points(SMALL), color=INK)


def _draw_levels(canvas: Canvas, results: Sequence[Node]) -> None:
    draw_key(canvas, _LEVELS, 12)
    head = key_height(_LEVELS, canvas.width)
    rest = canvas.region(0, head, canvas.width, canvas.height - head)
    drawn = [level_curves(result["layers"]) for result in results]
    values = [float(node.number) for curves in drawn for curve in curves for node in curve.values if node.known]
    for result, curves, cell in zip(results, drawn, grid(rest, len(results)), strict=True):
        numbers = layer_numbers(result["layers"])
        width = cell.width - 50
        ax = cell.axes(30, 30, width, cell.height - 62)
        scale(ax, min([0.0, *values]), max(values, default=1.0), steps=4)
        layer_scale(ax, numbers, width)
        shade_gap(ax, numbers, curves)
        for curve in curves:
            draw_curve(canvas, ax, curve, numbers, size=3.5)
        cell.write(0, 14, [_short(result, cell.width)], fontsize=points(SMALL))


def _draw_overlaid(canvas: Canvas, results: Sequence[Node], level: str) -> None:
    room = 11 if canvas.width < 500 else 19
    curves = _told_apart(results, [_curve(result, level, room) for result in results])
    if level == "sentence":
        outputs = [result.get("output").get("sentence").get("anisotropy") for result in results]
        curves = [replace(curve, beyond=output) for curve, output in zip(curves, outputs, strict=True)]
    words = f"mean cosine of two {level}s at random"
    if _alike(results):
        curve_axes(canvas, layer_numbers(results[0]["layers"]), curves, words)
    else:
        curve_axes(canvas, range(0, 101, 25), curves, words, along="depth, in percent of the layers")


def _curve(result: Node, level: str, room: int = 32) -> Curve:
    whole = name(result["model"])
    curve = level_curve(result["layers"], level, "", SENTENCE)
    return replace(curve, name=Text(whole.node, one_line(whole.shown, room)), series=whole.shown)


def _short(result: Node, width: float) -> Text:
    whole = name(result["model"])
    return Text(whole.node, one_line(whole.shown, int(width / 7)))


def _models_key(results: Sequence[Node]) -> list[tuple[str, Parts]]:
    return [(_COLOURS[at % len(_COLOURS)], [_short(result, 300)]) for at, result in enumerate(results)]


def _told_apart(results: Sequence[Node], curves: Sequence[Curve]) -> list[Curve]:
    """The curves of the models, each in its colour, dashed where another has it already, over the common axis."""
    return [
        replace(curve, colour=_COLOURS[at % len(_COLOURS)], dashed=at >= len(_COLOURS), at=places)
        for at, (curve, places) in enumerate(zip(curves, _places(results), strict=True))
    ]


def _alike(results: Sequence[Node]) -> bool:
    """Whether the models have the same layers, so that one axis of layer numbers holds for all."""
    return len({tuple(layer_numbers(result["layers"])) for result in results}) == 1


def _places(results: Sequence[Node]) -> list[list[float]]:
    """Where the layers of each model lie on the common axis: at their numbers, or at their depth in percent."""
    every = [[float(number) for number in layer_numbers(result["layers"])] for result in results]
    if _alike(results):
        return every
    return [[100 * (at - numbers[0]) / max(1.0, numbers[-1] - numbers[0]) for at in numbers] for numbers in every]


def _scale_layers(ax: Axes, results: Sequence[Node], width: float) -> None:
    numbers = layer_numbers(results[0]["layers"]) if _alike(results) else range(0, 101, 25)
    layer_scale(ax, numbers, width)
