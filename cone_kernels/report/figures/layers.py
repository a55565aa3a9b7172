"""Figures of `layers`: the curve over the layers, the rogue dimensions, the geometry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cone_kernels.names import GEOMETRY, is_share, label_of
from cone_kernels.report.figures.canvas import SMALL, Canvas, layer_scale, points, scale
from cone_kernels.report.figures.curves import Curve, curve_axes, curve_height, draw_curve, mark, value_at
from cone_kernels.report.figures.grid import grid, grid_height
from cone_kernels.report.figures.key import draw_key
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.inline import Inline, Parts, count, fixed, joined, name, percent, significant, text
from cone_kernels.report.node import Node
from cone_kernels.report.palette import BLUE, GHOST, GREEN, INK, MUTED, ORANGE, PAPER, PUBLISHED, SENTENCE, TOKEN

_MARKED_DIPS, _DIP_LABEL = 2, 160  # pixels of the axes that a label of a dip takes
_COLOURED = (BLUE, ORANGE, GREEN)


def panels(result: Node) -> list[Panel]:
    """The figures that the result has the numbers for."""
    rows = result["layers"]
    found = [_curve_panel(result)]
    if any(len(_rogue(row)) for row in rows):
        found.append(_rogue_panel(result))
    measures = [key for key in GEOMETRY if any(_geometry(row, key).known for row in rows)]
    if measures:
        found.append(_geometry_panel(result, measures))
    return found


def layer_numbers(rows: Iterable[Node]) -> list[int]:
    """The layers' numbers."""
    return [int(row["layer"].number) for row in rows]


def level_curve(rows: Node, level: str, label: str, colour: str) -> Curve:
    """The anisotropy of one level with its standard errors."""
    values = [row[level].get("anisotropy") for row in rows]
    errors = [row[level].get("stderr") for row in rows]
    return Curve(label, colour, values, errors, layers=[row["layer"] for row in rows])


def _curve_panel(result: Node) -> Panel:
    published = result.get("published")
    caption: list[Inline] = [
        "Mean cosine of two sentences and of two tokens picked at random, at every layer; layer 0 is the output of the "
        "embeddings, a ring what the model itself gives. The bands are two standard errors on both sides."
    ]
    if published.known:
        caption += [" Dashed: ", text(published["source"]), ", at the same relative depth."]
    return Panel(
        "curve",
        "How tight the cone is at every layer",
        caption,
        _curve_description(result),
        curve_height,
        lambda canvas: _draw_curve(canvas, result),
    )


def _curve_description(result: Node) -> Parts:
    rows, shape = result["layers"], result.get("shape")
    parts: list[Inline] = ["Line chart of the ", count(rows[-1]["layer"]), " layers after the embeddings of "]
    parts += [name(result["model"]), ". "]
    for level in ("sentence", "token"):
        first, last = rows[0][level].get("anisotropy"), rows[-1][level].get("anisotropy")
        parts += [f"At the {level} level the mean cosine goes from ", fixed(first, 2), " to ", fixed(last, 2), ". "]
    if shape.known:
        peak, crash = shape["peak"], shape.get("crash")
        parts += ["The peak is ", fixed(peak["anisotropy"], 2), " at layer ", count(peak["layer"]), "."]
        if crash.known:
            parts += [" The last step falls by ", fixed(crash["drop"], 2), "."]
        else:
            parts += [" There is no crash at the end."]
    return parts


def _draw_curve(canvas: Canvas, result: Node) -> None:
    rows, published, shape = result["layers"], result.get("published"), result.get("shape")
    numbers = layer_numbers(rows)
    output = result.get("output").get("sentence").get("anisotropy")
    sentences = replace(level_curve(rows, "sentence", "sentences", SENTENCE), beyond=output)
    curves = [level_curve(rows, "token", "tokens", TOKEN), sentences]
    if published.known and len(numbers) > 1:
        values = list(published["anisotropy"])
        depth = [numbers[0] + at / (len(values) - 1) * (numbers[-1] - numbers[0]) for at in range(len(values))]
        curves.insert(0, Curve("published", PUBLISHED, values, at=depth, dashed=True))
    ax = curve_axes(canvas, numbers, curves, "mean cosine of two at random")
    if not shape.known:
        return
    peak = shape["peak"]
    at = (peak["layer"].number, peak["anisotropy"].number)
    mark(canvas, ax, at, ["peak ", fixed(peak["anisotropy"], 2), ", layer ", count(peak["layer"])], SENTENCE)
    marked: list[float] = []
    for dip in sorted(shape.get("dips").entries, key=lambda dip: -dip["depth"].number)[:_MARKED_DIPS]:
        value, x = value_at(rows, dip["layer"].number, "sentence", "anisotropy"), float(dip["layer"].number)
        apart = (numbers[-1] - numbers[0]) * _DIP_LABEL / canvas.width
        if value is not None and all(abs(x - other) >= apart for other in marked):
            words: Parts = ["dip ", fixed(value, 2), ", layer ", count(dip["layer"])]
            mark(canvas, ax, (x, value.number), words, SENTENCE, above=False)
            marked.append(x)
    _draw_crash(canvas, ax, rows, shape.get("crash"))


def _draw_crash(canvas: Canvas, ax: Any, rows: Node, crash: Node) -> None:
    if not crash.known:
        return
    ends = [value_at(rows, crash[key].number, "sentence", "anisotropy") for key in ("from", "to")]
    if ends[0] is None or ends[1] is None:
        return
    middle = (crash["from"].number + crash["to"].number) / 2, (ends[0].number + ends[1].number) / 2
    canvas.note(ax, middle, ["crash −", fixed(crash["drop"], 2)], dx=-8, ha="right", color=SENTENCE)


def _rogue(row: Node) -> list[Node]:
    return [entry for entry in row.get("rogue_dimensions").entries if entry["share"].known]


def _rogue_panel(result: Node) -> Panel:
    rows = result["layers"]
    entries = [(row, entry) for row in rows for entry in _rogue(row)]
    row, top = max(entries, key=lambda pair: pair[1]["share"].number)
    description: list[Inline] = ["The largest single contribution is that of dimension ", count(top["dimension"])]
    description += [" at layer ", count(row["layer"]), ": ", percent(top["share"]), " of the anisotropy there."]
    return Panel(
        "rogue",
        "What single dimensions contribute to the cone",
        [
            "Share of the anisotropy at the sentence level that comes from the dimensions which contribute most, "
            "stacked. Coloured are those that recur with the largest shares; the others are grey."
        ],
        description,
        lambda width: 260 if width < 500 else 280,
        lambda canvas: _draw_rogue(canvas, rows),
    )


def _draw_rogue(canvas: Canvas, rows: Node) -> None:
    numbers = layer_numbers(rows)
    coloured = _recurring(rows)
    order = {dimension: at for at, dimension in enumerate(coloured)}
    left, top, bottom = 46, 44, 40
    width, height = canvas.width - left - 8, canvas.height - top - bottom
    ax = canvas.axes(left, top, width, height)
    highest, lowest = 0.0, 0.0
    for row in rows:
        above, below = 0.0, 0.0
        for entry in sorted(_rogue(row), key=lambda entry: order.get(entry["dimension"].value, len(order))):
            share = float(entry["share"].number)
            start = above if share >= 0 else below
            colour = coloured.get(entry["dimension"].value, (GHOST, entry))[0]
            bar = ax.bar(row["layer"].number, share, 0.66, bottom=start, color=colour, clip_on=False)
            bar.patches[0].set(edgecolor=PAPER, linewidth=points(1))
            above, below = (above + share, below) if share >= 0 else (above, below + share)
        highest, lowest = max(highest, above), min(lowest, below)
    scale(ax, lowest, highest, steps=4, percent=True)
    layer_scale(ax, numbers, width, margin=0.6)
    canvas.write(left + width / 2, canvas.height - 4, ["layer"], ha="center", fontsize=points(SMALL), color=MUTED)
    canvas.write(0, 12, ["share of the anisotropy"], fontsize=points(SMALL), color=MUTED)
    short = canvas.width < 500
    key: list[tuple[str, Parts]] = [
        (colour, ["dim " if short else "dimension ", count(entry["dimension"])]) for colour, entry in coloured.values()
    ]
    draw_key(canvas, [*key, (GHOST, ["others"])], 30)


def _recurring(rows: Node) -> dict[int, tuple[str, Node]]:
    """Up to three dimensions with the largest shares summed over the layers: their colours, and one entry of each."""
    totals: dict[int, float] = {}
    entries: dict[int, Node] = {}
    for row in rows:
        for entry in _rogue(row):
            dimension = entry["dimension"].value
            totals[dimension] = totals.get(dimension, 0.0) + entry["share"].number
            entries.setdefault(dimension, entry)
    largest = sorted(totals, key=lambda dimension: (-totals[dimension], dimension))[: len(_COLOURED)]
    return {dimension: (colour, entries[dimension]) for dimension, colour in zip(largest, _COLOURED, strict=False)}


def _geometry(row: Node, key: str) -> Node:
    return row.get("geometry").get(key)


def _geometry_panel(result: Node, measures: Sequence[str]) -> Panel:
    rows = result["layers"]
    described: list[Parts] = []
    for key in measures:
        first, last = _geometry(rows[0], key), _geometry(rows[-1], key)
        shown = percent if is_share(key) else significant
        described.append(
            [f"{label_of(GEOMETRY, key)} ", shown(first, 3), " at the first layer and ", shown(last, 3), " at the last"]
        )
    return Panel(
        "geometry",
        "How many directions the sentence vectors use",
        [
            "Of the covariance of the sentence vectors. Participation ratio, effective rank and RankMe count "
            "directions, up to the width of the model; IsoScore lies between 0 (one direction) and 1 (all alike). They "
            "are of these sentences, and grow with their number."
        ],
        [*joined(described, "; "), "."],
        lambda width: grid_height(len(measures), width),
        lambda canvas: _draw_geometry(canvas, rows, measures),
    )


def _draw_geometry(canvas: Canvas, rows: Node, measures: Sequence[str]) -> None:
    numbers = layer_numbers(rows)
    for key, cell in zip(measures, grid(canvas, len(measures)), strict=True):
        width = cell.width - 52
        ax = cell.axes(38, 30, width, cell.height - 62)
        values = [_geometry(row, key) for row in rows]
        share = is_share(key)
        scale(ax, 0.0, max((float(node.number) for node in values if node.known), default=1.0), steps=3, percent=share)
        layer_scale(ax, numbers, width)
        shown = percent if share else significant
        curve = Curve(label_of(GEOMETRY, key), SENTENCE, values, layers=[row["layer"] for row in rows], shown=shown)
        draw_curve(canvas, ax, curve, numbers, size=3.5)
        cell.write(0, 14, [label_of(GEOMETRY, key)], fontsize=points(SMALL), color=INK)
