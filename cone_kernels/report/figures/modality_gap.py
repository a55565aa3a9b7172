"""Figures of `modality_gap`: the gap beside what chance makes, and how tight both cones are at every layer."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.axes import Axes

from cone_kernels.report.figures.canvas import SMALL, Canvas, Hover, points, scale
from cone_kernels.report.figures.curves import Curve, curve_axes, curve_height
from cone_kernels.report.figures.layers import layer_numbers, level_curve
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Inline, Parts, count, estimate, fixed
from cone_kernels.report.node import Node, known
from cone_kernels.report.palette import BLUE, INK, MUTED, ORANGE, PURPLE, RULE

_TOWERS = (("images", BLUE), ("texts", ORANGE))
_ROW, _LABEL, _HEAD = 46, 20, 8  # pixels of a row, of the words above its line, above all rows


def panels(result: Node) -> list[Panel]:
    """The figures that the result has the numbers for."""
    return [_gap_panel(result), _curve_panel(result)]


def _gap_panel(result: Node) -> Panel:
    chance = result.get("gap_by_chance")
    caption: list[Inline] = ["Dots are estimates, lines two standard errors on both sides."]
    if chance.get("at_most").known:
        caption += [
            " Grey is what the distance of the means of as many images and texts of one cone is by chance: up to ",
            fixed(chance["at_most"], 3),
            " in 19 of 20 draws.",
        ]
    described: list[Inline] = ["The means are ", *estimate(result["gap"]["value"], result["gap"]["stderr"], 3)]
    return Panel(
        "gap",
        "How far apart images and texts are",
        caption,
        [*described, " apart, and have a cosine of ", fixed(result["cosine_of_means"]["value"], 3), "."],
        lambda width: _HEAD + _ROW * len(_rows(result)) + 26,
        lambda canvas: _draw_gap(canvas, result),
    )


def _rows(result: Node) -> list[tuple[str, Node, Node, str]]:
    """Words, value, error and colour of each row."""
    of_both = (("distance of the two means", "gap"), ("cosine of the two means", "cosine_of_means"))
    rows = [(words, result[key]["value"], result[key]["stderr"], PURPLE) for words, key in of_both]
    across = result["across"]
    rows.append(("mean cosine of an image and a text", across["value"], across["stderr"], PURPLE))
    for tower, colour in _TOWERS:
        level = result[tower]["output"]["sentence"]
        rows.append((f"mean cosine of two {tower}", level["anisotropy"], level["stderr"], colour))
    return rows


def _draw_gap(canvas: Canvas, result: Node) -> None:
    rows = _rows(result)
    height = _ROW * len(rows)
    ax = canvas.axes(8, _HEAD, canvas.width - 16, height)
    chance = result.get("gap_by_chance").get("at_most")
    ends = [
        float(value.number) + side * 2 * float(error.number)
        for _, value, error, _ in rows
        if known(value, error)
        for side in (-1, 1)
    ]
    ends += [float(value.number) for _, value, _, _ in rows if value.known]
    scale(ax, min([0.0, *ends]), max([0.0, *ends, *([float(chance.number)] if chance.known else [])]), axis="x")
    ax.set_ylim(height, 0)
    if chance.known:
        ax.fill_betweenx([_LABEL, _ROW - 4], 0, float(chance.number), color=RULE, alpha=0.8, linewidth=0, zorder=1)
    for at, (words, value, error, colour) in enumerate(rows):
        top = _HEAD + at * _ROW
        shown: Parts = [f"{words}: ", *estimate(value, error, 3)]
        canvas.write(8, top + 13, shown, halo=True, fontsize=points(SMALL), color=INK if value.known else MUTED)
        if value.known:
            _draw_row(canvas, ax, at * _ROW + (_LABEL + _ROW - 4) / 2, value, error, colour, shown)


def _draw_row(canvas: Canvas, ax: Axes, y: float, value: Node, error: Node, colour: str, shown: Parts) -> None:
    x = float(value.number)
    if error.known:
        reach = 2 * float(error.number)
        ax.plot([x - reach, x + reach], [y, y], color=colour, linewidth=points(2), clip_on=False, zorder=3)
    ax.plot(x, y, "o", color=colour, markersize=points(8), markeredgewidth=0, clip_on=False, zorder=4)
    canvas.hovers.append(Hover(ax, (x, y), shown))


def _curve_panel(result: Node) -> Panel:
    description: list[Inline] = []
    for tower, _ in _TOWERS:
        last, output = result[tower]["layers"][-1], result[tower]["output"]["sentence"]
        description += [f"Two {tower} have a mean cosine of ", fixed(last["sentence"]["anisotropy"], 2), " at layer "]
        description += [count(last["layer"]), " and of ", fixed(output["anisotropy"], 2), " at the output. "]
    return Panel(
        "curve",
        "How tight the cones of images and texts are at every layer",
        [
            "Mean cosine of two images and of two texts picked at random, at every layer of the tower of each; a ring "
            "is of the vectors in the space of both. The bands are two standard errors on both sides."
        ],
        description,
        curve_height,
        lambda canvas: _draw_curves(canvas, result),
    )


def _draw_curves(canvas: Canvas, result: Node) -> None:
    curves: list[Curve] = []
    for tower, colour in _TOWERS:
        layers, output = result[tower]["layers"], result[tower]["output"]["sentence"]["anisotropy"]
        curve = level_curve(layers, "sentence", tower, colour)
        curves.append(replace(curve, at=layer_numbers(layers), beyond=output))
    # The towers may have unlike numbers of layers.
    longest = max((result[tower]["layers"] for tower, _ in _TOWERS), key=len)
    curve_axes(canvas, layer_numbers(longest), curves, "mean cosine of two at random")
