"""Figures of `axis`: the sentences at the ends of each axis, and what each axis goes with."""

from __future__ import annotations

from cone_kernels.names import VARIABLES, label_of
from cone_kernels.report.figures.canvas import Canvas
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.figures.stems import Stem, draw_stems, stems_height
from cone_kernels.report.inline import Inline, Parts, Text, fixed, joined, one_line, percent, significant
from cone_kernels.report.node import Node
from cone_kernels.report.palette import BLUE, ORANGE
from cone_kernels.report.words import ordinal

_DRAWN = 3  # axes; all of them are in the tables


def panels(result: Node) -> list[Panel]:
    """The figures that the result has the numbers for."""
    components = list(result["components"])
    found = [
        _extremes_panel(component, number)
        for number, component in enumerate(components[:_DRAWN], start=1)
        if len(component["top"]) + len(component["bottom"])
    ]
    if any(value.known for component in components[:_DRAWN] for _, value in component["correlations"].items()):
        found.append(_correlations_panel(components))
    return found


def _extremes_panel(component: Node, number: int) -> Panel:
    top, bottom = list(component["top"]), list(component["bottom"])
    description: list[Inline] = [f"The {ordinal(number)} axis carries ", percent(component["explained_variance_ratio"])]
    description += [" of the variance."]
    for words, ends in (("highest", top), ("lowest", bottom)):
        if ends:
            description += [
                f" The {words} projection is ",
                significant(ends[0]["projection"], 3),
                ", of the sentence “",
            ]
            description += [Text(ends[0]["text"], ends[0]["text"].text), "”."]
    return Panel(
        f"axis-{number}",
        f"The sentences at the ends of the {ordinal(number)} axis",
        [
            "Projection of the sentence vectors, less their mean, on the axis: the highest in blue, the lowest in "
            "orange. Long sentences are cut here and whole in the table."
        ],
        description,
        lambda width: stems_height(_extremes(top, bottom, width), width, ticks=False),
        lambda canvas: _draw_extremes(canvas, top, bottom),
    )


def _extremes(top: list[Node], bottom: list[Node], width: float) -> list[Stem]:
    columns = 46 if width < 500 else 50
    ends = [(entry, BLUE, 0) for entry in top] + [(entry, ORANGE, 1) for entry in reversed(bottom)]
    return [
        Stem(
            [Text(entry["text"], one_line(entry["text"].text, columns))],
            significant(entry["projection"], 3),
            colour,
            group,
        )
        for entry, colour, group in ends
    ]


def _draw_extremes(canvas: Canvas, top: list[Node], bottom: list[Node]) -> None:
    draw_stems(canvas, _extremes(top, bottom, canvas.width))


def _correlations_panel(components: list[Node]) -> Panel:
    drawn = components[:_DRAWN]
    others = " The other axes are in the tables." if len(drawn) < len(components) else ""
    stems = [
        Stem(
            [*([f"{ordinal(at + 1)} axis: "] if len(components) > 1 else []), label_of(VARIABLES, key)],
            fixed(value, 2, sign=True),
            BLUE,
            at,
        )
        for at, component in enumerate(drawn)
        for key, value in component["correlations"].items()
    ]
    described: list[Parts] = [[*stem.words, " ", stem.value] for stem in stems]
    return Panel(
        "correlations",
        "What the axis goes with" if len(components) == 1 else "What the axes go with",
        [f"Pearson correlation of the projections with what can be known of a sentence without labels.{others}"],
        ["Correlations: ", *joined(described), "."],
        lambda width: stems_height(stems, width, ticks=True),
        lambda canvas: draw_stems(canvas, stems, room=190, ticks=True),
    )
