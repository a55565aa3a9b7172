"""Tables of `axis`."""

from __future__ import annotations

from collections.abc import Iterator

from cone_kernels.names import VARIABLES, label_of
from cone_kernels.report.inline import Parts, code, count, estimate, fixed, percent, significant, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table
from cone_kernels.report.words import ordinal, place

AXIS_COLUMNS = (
    Column("axis", ("axis",), "text"),
    Column("eigenvalue", ("eigenvalue",)),
    Column("share of the variance", ("explained_variance_ratio",)),
    Column("gap to the next", ("eigengap",)),
    Column("residual", ("residual",)),
)
_ANGLES = {
    "mean_cosine": "first centred axis and mean direction",
    "uncentered_mean_cosine": "uncentred axis and mean direction",
    "centered_uncentered_cosine": "first centred axis and uncentred axis",
}


def tables(result: Node) -> list[Table]:
    """Extremes and tokens of each axis, the axes themselves, the angles between the three directions."""
    found = [_axes(result), *_frequency(result), _angles(result)]
    for number, component in enumerate(result["components"], start=1):
        found += [*_extremes(component, number), *_tokens(component, number)]
    return found


def _axes(result: Node) -> Table:
    components = list(result["components"])
    variables = [key for key, _ in components[0]["correlations"].items()] if components else []
    columns = [
        *AXIS_COLUMNS,
        *(Column(f"r with {label_of(VARIABLES, key)}", (f"correlation_{key}",)) for key in variables),
    ]
    rows: list[list[Parts]] = []
    for number, component in enumerate(components, start=1):
        rows.append(
            [
                *axis_cells(component, number),
                *([fixed(component["correlations"].get(key), 3, sign=True)] for key in variables),
            ]
        )
    notes: list[Parts] = [[text(reason)] for reason in result.get("reasons").entries]
    title: Parts = ["The axes of ", *place(result["layer"])]
    return Table("axes", title, columns, rows, notes)


def _frequency(result: Node) -> Iterator[Table]:
    rows: list[list[Parts]] = []
    for number, component in enumerate(result["components"], start=1):
        for of, relation in component.get("frequency").items():
            value = estimate(relation["correlation"], relation.get("stderr"), 3)
            null: list[Parts] = [[fixed(relation["random"].get(key), 3)] for key in ("mean", "p95")]
            verdict: list[Parts] = [[text(relation["verdict"])]]
            rows.append([[ordinal(number)], [of], [count(relation["rows"])], value, *null, *verdict])
    columns = [
        Column("axis", ("axis",), "text"),
        Column("projections of", ("of",), "text"),
        Column("how many", ("rows",)),
        Column("correlation with frequency", ("correlation", "stderr")),
        Column("random: mean", ("random_mean",)),
        Column("random: 95 in 100 below", ("random_p95",)),
        Column("against that", ("verdict",), "text"),
    ]
    if rows:
        title = "Common words along the axes, and along directions drawn from the covariance"
        yield Table("frequency", [title], columns, rows)


def axis_cells(component: Node, number: int) -> list[Parts]:
    """The cells of `AXIS_COLUMNS`."""
    return [
        [ordinal(number)],
        [significant(component["eigenvalue"])],
        [percent(component["explained_variance_ratio"])],
        [significant(component.get("eigengap"))],
        [significant(component.get("residual"))],
    ]


def _angles(result: Node) -> Table:
    rows: list[list[Parts]] = [[[words], [fixed(result.get(key))]] for key, words in _ANGLES.items()]
    columns = [Column("directions", ("directions",), "text"), Column("|cos|", ("cosine",))]
    return Table("directions", ["The three directions that are called the axis of the cone"], columns, rows)


def _extremes(component: Node, number: int) -> Iterator[Table]:
    rows: list[list[Parts]] = []
    for end, words in (("top", "highest"), ("bottom", "lowest")):
        for entry in component.get(end).entries:
            numbers: list[Parts] = [[significant(entry["projection"])], [count(entry.get("sentence"))]]
            rows.append([[words], [text(entry["text"])], *numbers])
    columns = [
        Column("end", ("end",), "text"),
        Column("sentence", ("text",), "long"),
        Column("projection", ("projection",)),
        Column("index in the corpus", ("sentence",)),
    ]
    if rows:
        title = f"Sentences at the ends of the {ordinal(number)} axis"
        yield Table(f"extremes-{number}", [title], columns, rows)


def _tokens(component: Node, number: int) -> Iterator[Table]:
    rows: list[list[Parts]] = []
    for end, words in (("tokens_top", "highest"), ("tokens_bottom", "lowest")):
        for entry in component.get(end).entries:
            rows.append([[words], [significant(entry["projection"])], [code(entry["token"])]])
    columns = [
        Column("end", ("end",), "text"),
        Column("projection", ("projection",)),
        Column("token", ("token",), "long"),
    ]
    if rows:
        yield Table(
            f"tokens-{number}", [f"Tokens at the ends of the {ordinal(number)} axis"], columns, rows, folded=True
        )
