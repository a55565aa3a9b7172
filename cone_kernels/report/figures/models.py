"""Figure of several models: the curve of each with those of the others behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from cone_kernels.report.figures.canvas import Canvas, scale
from cone_kernels.report.figures.curves import Curve, draw_multiples
from cone_kernels.report.figures.grid import grid_height
from cone_kernels.report.figures.layers import layer_numbers, level_curve
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Parts, Text, fixed, joined, name, one_line
from cone_kernels.report.node import Node
from cone_kernels.report.palette import SENTENCE


def models_panels(results: Sequence[Node]) -> list[Panel]:
    """One figure for the layers of two or more models; none for one."""
    if len(results) < 2:
        return []
    peaks: list[Parts] = [
        [name(result["model"]), " ", fixed(result["shape"]["peak"]["anisotropy"], 2)]
        for result in results
        if result.get("shape").known
    ]
    return [
        Panel(
            "models",
            "The models side by side",
            ["Mean cosine of two sentences picked at random, from the embeddings (0%) to the last layer (100%)."],
            ["The peaks: ", *joined(peaks), "."] if peaks else ["Curves of the models over their relative depth."],
            lambda width: grid_height(len(results), width),
            lambda canvas: _draw(canvas, results),
        )
    ]


def _draw(canvas: Canvas, results: Sequence[Node]) -> None:
    curves = []
    for result in results:
        numbers, whole = layer_numbers(result["layers"]), name(result["model"])
        depth = [(number - numbers[0]) / max(1, numbers[-1] - numbers[0]) for number in numbers]
        curve: Any = level_curve(result["layers"], "sentence", "", SENTENCE)
        label = Text(whole.node, one_line(whole.shown, 22 if canvas.width < 500 else 32))
        curves.append(Curve(label, SENTENCE, curve.values, curve.errors, at=depth))
    draw_multiples(canvas, curves, _depth_scale)


def _depth_scale(ax: Axes, width: float) -> None:
    scale(ax, 0, 1, axis="x", steps=2, percent=True, grid=False)
