"""Figure of what labelled pairs say: what each method changes, over the layers."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.names import OUTPUT, QUALITY_METHODS, label_of, measure_label
from cone_kernels.report.figures.canvas import Canvas
from cone_kernels.report.figures.curves import Curve, curve_axes, curve_height
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Inline, Parts, fixed
from cone_kernels.report.node import Node
from cone_kernels.report.palette import BLUE, GREEN, MUTED, ORANGE, PURPLE
from cone_kernels.report.words import place

_COLOURS = (BLUE, MUTED, GREEN, ORANGE, PURPLE)

# Room for the names of methods, which are long.
_NAMES = (140, 150)


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
            f"What each method changes of the {name} of the labelled pairs at every layer: above zero it helps, below "
            "it harms. It is tested on pairs that it was not fitted on; the bands are two standard errors either way."
        ],
        _description(quality),
        curve_height,
        lambda canvas: _draw(canvas, rows, name),
    )


def _description(quality: Node) -> Parts:
    verdict = quality["verdict"]
    used, layer = verdict["in_use"], verdict["layer"]
    words: list[Inline] = ["As it is, ", *place(used["layer"]), " has ", fixed(used["value"], 3)]
    return [*words, "; the best method has ", fixed(verdict["value"], 3), " at ", *place(layer), "."]


def _draw(canvas: Canvas, rows: Sequence[Node], name: str) -> None:
    methods = [key for key, _ in rows[0]["methods"].items()]
    curves = []
    for key, colour in zip(methods, _COLOURS, strict=False):
        found = [row["methods"][key] for row in rows]
        values, errors = ([one.get(what) for one in found] for what in ("difference", "stderr"))
        curves.append(Curve(label_of(QUALITY_METHODS, key), colour, values, errors))
    curve_axes(canvas, [int(row["layer"].number) for row in rows], curves, f"change of the {name}", room=_NAMES)
