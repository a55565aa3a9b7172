"""Figure of what labelled pairs say: the measure as it is and after each method, over the layers."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.names import OUTPUT, QUALITY_METHODS, label_of, measure_label
from cone_kernels.report.figures.canvas import Canvas
from cone_kernels.report.figures.curves import Curve, curve_axes
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Parts, fixed
from cone_kernels.report.node import Node
from cone_kernels.report.palette import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE
from cone_kernels.report.words import place

_COLOURS = (BLUE, MUTED, GREEN, ORANGE, PURPLE)


def quality_panels(quality: Node) -> list[Panel]:
    """The figure of one result's `quality`; none where nothing was measured by pairs, or at one layer alone."""
    rows = _rows(quality)
    return [_panel(quality, rows)] if len(rows) > 1 else []


def _rows(quality: Node) -> list[Node]:
    """The layers under the first pooling."""
    rows = [row for row in quality.get("layers").entries if row["layer"].value != OUTPUT]
    return [row for row in rows if row.get("pooling").value == rows[0].get("pooling").value]


def _panel(quality: Node, rows: Sequence[Node]) -> Panel:
    name = measure_label(quality["measure"].text)
    return Panel(
        "quality",
        "Does opening the cone help?",
        [
            f"{name} of the labelled pairs at every layer, as it is and after each method, on pairs that the method "
            "was not fitted on. Higher is better."
        ],
        _description(quality),
        lambda width: 330 if width < 500 else 370,
        lambda canvas: _draw(canvas, rows, name),
    )


def _description(quality: Node) -> Parts:
    verdict = quality["verdict"]
    words: list[object] = [
        "As it is, ",
        *place(verdict["in_use"]["layer"]),
        " has ",
        fixed(verdict["in_use"]["value"], 3),
    ]
    words += ["; the best method has ", fixed(verdict["value"], 3), " at ", *place(verdict["layer"]), "."]
    return words  # type: ignore[return-value]


def _draw(canvas: Canvas, rows: Sequence[Node], name: str) -> None:
    numbers = [int(row["layer"].number) for row in rows]
    methods = [key for key, _ in rows[0]["methods"].items()]
    curves = [
        Curve(label_of(QUALITY_METHODS, key), colour, [row["methods"][key].get("value") for row in rows])
        for key, colour in zip(methods, _COLOURS, strict=False)
    ]
    curves.append(Curve("as it is", INK, [row["raw"] for row in rows], [row.get("raw_stderr") for row in rows]))
    curve_axes(canvas, numbers, curves, name)
