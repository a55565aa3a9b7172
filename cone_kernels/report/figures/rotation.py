"""Figures of `rotation`: one matrix each for the comparisons of two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cone_kernels.report.figures.canvas import SMALL, Canvas, points
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Inline, Parts, fixed, one_line, text
from cone_kernels.report.node import Node
from cone_kernels.report.palette import BLUE, GHOST, INK, MUTED, ORANGE, RULE
from cone_kernels.report.words import MATRICES, Matrix, chance, letter

_CELL = 46  # pixels at least, for a number in it
_LABEL, _LONG_LABEL = 110, 210
_HEAD = 22
STRONGEST = 0.45  # opacity of a cell of ±1: its number stays readable on it, light and dark


def panels(result: Node) -> list[Panel]:
    """A figure for each matrix that has a number off its diagonal."""
    return [_panel(result, matrix) for matrix in MATRICES if _compares(result.get(matrix.key))]


def _compares(matrix: Node) -> bool:
    return matrix.known and any(matrix[i][j].known for i in range(len(matrix)) for j in range(len(matrix[i])) if i != j)


def _panel(result: Node, matrix: Matrix) -> Panel:
    values, models = result[matrix.key], list(result["models"])
    caption: list[Inline] = [matrix.caption]
    random = chance(result) if matrix.key == "axis_cosine" else None
    if random:
        caption += [" ", *random]
    return Panel(
        matrix.key.replace("_", "-"),
        matrix.title,
        caption,
        _description(values, models),
        lambda width: _HEAD + len(models) * _side(width, len(models))[1] + 4,
        lambda canvas: _draw(canvas, values, models),
        least_width=_LABEL + _CELL * len(models),
    )


def _description(values: Node, models: Sequence[Node]) -> Parts:
    pairs = [values[i][j] for i in range(len(models)) for j in range(len(models)) if i != j and values[i][j].known]
    low, high = (pick(pairs, key=lambda node: node.number) for pick in (min, max))
    parts: list[Inline] = [
        "Matrix of the models ",
        *(part for at, model in enumerate(models) for part in (", " * (at > 0), text(model["name"]))),
    ]
    return [*parts, ". Beside the diagonal the values go from ", fixed(low, 3), " to ", fixed(high, 3), "."]


def _side(width: float, models: int) -> tuple[float, float]:
    """Width and height of a cell."""
    across = min(92.0, (width - _label_width(width, models)) / models)
    return across, min(44.0, max(30.0, across))


def _label_width(width: float, models: int) -> float:
    return _LONG_LABEL if width >= _LONG_LABEL + _CELL * models else _LABEL


def _draw(canvas: Canvas, values: Node, models: Sequence[Node]) -> None:
    left = _label_width(canvas.width, len(models))
    across, down = _side(canvas.width, len(models))
    ax = canvas.axes(left, _HEAD, across * len(models), down * len(models))
    ax.set_xlim(0, len(models))
    ax.set_ylim(len(models), 0)
    for i, model in enumerate(models):
        shown = text(model["name"])
        words = one_line(shown.shown, 26 if left > _LABEL else 12)
        canvas.write(0, _HEAD + (i + 0.5) * down + 4, [letter(i)], weight="bold", fontsize=points(SMALL))
        label = [type(shown)(shown.node, words)]
        canvas.write(18, _HEAD + (i + 0.5) * down + 4, label, fontsize=points(SMALL))
        head = left + (i + 0.5) * across
        canvas.write(head, _HEAD - 8, [letter(i)], weight="bold", ha="center", fontsize=points(SMALL), color=MUTED)
        for j in range(len(models)):
            _draw_cell(canvas, ax, (i, j), values[i][j])


def _draw_cell(canvas: Canvas, ax: Axes, at: tuple[int, int], value: Node) -> None:
    row, column = at
    place = ((column + 0.02, row + 0.03), 0.96, 0.94)
    frame: dict[str, Any] = {"linewidth": 0, "clip_on": False}
    shown = fixed(value, 3)
    if not value.known:
        ax.add_patch(
            Rectangle(
                *place, facecolor="none", edgecolor=GHOST, linewidth=points(1), linestyle=(0, (2, 2)), clip_on=False
            )
        )
    else:
        strength = min(1.0, abs(value.number)) * STRONGEST
        # A cell of zero is a cell too.
        ax.add_patch(Rectangle(*place, facecolor=RULE, alpha=0.4, **frame))
        ax.add_patch(Rectangle(*place, facecolor=BLUE if value.number >= 0 else ORANGE, alpha=strength, **frame))
    colour = INK if value.known else MUTED
    canvas.note(ax, (column + 0.5, row + 0.5), [shown], halo=False, ha="center", va="center", color=colour)
