"""Figures of a comparison of two states: the cone in both, what changed at every layer, how far directions turned."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from cone_kernels.report.figures.canvas import Canvas, points
from cone_kernels.report.figures.curves import Curve, curve_axes
from cone_kernels.report.figures.layers import layer_numbers
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Inline, Parts, Text, count, fixed, one_line, text
from cone_kernels.report.node import Node
from cone_kernels.report.palette import GREEN, MUTED, PAPER, PURPLE, SENTENCE, TOKEN

_LEVELS = (("token", "tokens", TOKEN), ("sentence", "sentences", SENTENCE))
_DIRECTIONS = (("mean_cosine", "means", PURPLE), ("axis_cosine", "axes", GREEN))


def panels(result: Node) -> list[Panel]:
    """The figures that the result has the numbers for."""
    # The output is no point of a curve over layers; it is in the tables.
    rows = _layers(result)
    if not rows:
        return []
    found = [_both_panel(result), _changes_panel(result)]
    if any(row.get(key).known for row in rows for key, _, _ in _DIRECTIONS):
        found.append(_directions_panel(result))
    return found


def _layers(result: Node) -> list[Node]:
    return [row for row in result["layers"] if row["layer"].numeric]


def _both_panel(result: Node) -> Panel:
    a, b = (text(result[side]["name"]) for side in "ab")
    return Panel(
        "both",
        "The cone in both states",
        ["Mean cosine of two sentences picked at random, at every layer: grey in ", a, ", blue in ", b, "."],
        ["Line chart of the anisotropy of sentences in both states.", *_most(result)],
        lambda width: 280 if width < 500 else 310,
        lambda canvas: _draw_both(canvas, result),
    )


def _most(result: Node) -> Parts:
    """Where the sentence level changed most, in words; nothing where no change is defined."""
    defined = [row for row in _layers(result) if row["sentence"].get("difference").known]
    if not defined:
        return []
    row = max(defined, key=lambda row: abs(row["sentence"]["difference"].number))
    values = [fixed(row["sentence"][side], 2) for side in "ab"]
    return [" It changes most at layer ", count(row["layer"]), ": from ", values[0], " to ", values[1], "."]


def _draw_both(canvas: Canvas, result: Node) -> None:
    rows, room = _layers(result), 11 if canvas.width < 500 else 17
    curves = []
    for side, colour in (("a", MUTED), ("b", SENTENCE)):
        whole = text(result[side]["name"])
        label: Inline = Text(whole.node, one_line(whole.shown, room))
        curves.append(Curve(label, colour, [row["sentence"].get(side) for row in rows]))
    curve_axes(canvas, layer_numbers(rows), curves, "mean cosine of two sentences")


def _changes_panel(result: Node) -> Panel:
    caption: list[Inline] = [
        "The second state less the first, with bands of two standard errors. A ring marks a change that is more than "
        "chance, all layers taken together (",
        fixed(result["alpha"], 2),
        ").",
    ]
    changed = [row["layer"] for row in _layers(result) if row["sentence"]["significant"].value]
    marked: list[Inline] = ["no layer"] if not changed else []
    for at, layer in enumerate(changed):
        marked += [", " if at else "layer " if len(changed) == 1 else "layers ", count(layer)]
    return Panel(
        "changes",
        "What changed at every layer",
        caption,
        ["Line chart of the change of tokens and sentences; that of sentences is more than chance at ", *marked, "."],
        lambda width: 280 if width < 500 else 310,
        lambda canvas: _draw_changes(canvas, _layers(result)),
    )


def _draw_changes(canvas: Canvas, rows: Sequence[Node]) -> None:
    numbers = layer_numbers(rows)
    curves = [
        Curve(name, colour, [row[key].get("difference") for row in rows], [row[key].get("stderr") for row in rows])
        for key, name, colour in _LEVELS
    ]
    ax = curve_axes(canvas, numbers, curves, "change of the mean cosine")
    ax.axhline(0, color=MUTED, linewidth=points(1), clip_on=False, zorder=1.5)
    for key, _, colour in _LEVELS:
        _draw_rings(ax, numbers, [row[key] for row in rows], colour)


def _draw_rings(ax: Axes, numbers: Sequence[int], changes: Sequence[Node], colour: str) -> None:
    found = [(x, one["difference"].number) for x, one in zip(numbers, changes, strict=True) if one["significant"].value]
    if found:
        ax.plot(*zip(*found, strict=True), "o", markersize=points(8), markeredgewidth=points(1.5),
                markeredgecolor=colour, markerfacecolor=PAPER, clip_on=False, zorder=4)  # fmt: skip


def _directions_panel(result: Node) -> Panel:
    chance = result["random_cosine"]["p95"]
    return Panel(
        "directions",
        "How far the cone's directions turned",
        ["|cos| of the means, and of the cone's axes, of the two states at every layer: 1 is the same direction. Of "
         "random directions 95 in 100 are below ", fixed(chance, 3), "."],
        ["Line chart of |cos| of the two states' means and axes at every layer."],
        lambda width: 260 if width < 500 else 280,
        lambda canvas: _draw_directions(canvas, _layers(result)),
    )  # fmt: skip


def _draw_directions(canvas: Canvas, rows: Sequence[Node]) -> None:
    known = [(key, name, colour) for key, name, colour in _DIRECTIONS if any(row.get(key).known for row in rows)]
    curves = [Curve(name, colour, [row.get(key) for row in rows]) for key, name, colour in known]
    curve_axes(canvas, layer_numbers(rows), curves, "|cos| of the two states' directions")
