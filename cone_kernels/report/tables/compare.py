"""Tables of a comparison of two states."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.report.inline import Parts, count, estimate, fixed, significant, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table, reasons
from cone_kernels.report.words import layer_cell

_PAIRS = {"within": "within", "between": "between", "predicted": "predicted"}


def tables(result: Node) -> list[Table]:
    """The cone in both states and its change; what lies behind it."""
    return [table for table in (_changes(result), _cones(result), _pairs(result)) if table.rows]


def _changes(result: Node) -> Table:
    columns = [
        Column("layer", ("layer",)),
        Column("a", ("a",)),
        Column("b", ("b",)),
        Column("b − a", ("difference", "stderr")),
        Column("p, all layers", ("p_adjusted",)),
        Column("tokens, b − a", ("token_difference", "token_stderr")),
        Column("gap, b − a", ("gap_difference", "gap_stderr")),
        Column("|cos| of the axes", ("axis_cosine",)),
        Column("|cos| of the means", ("mean_cosine",)),
    ]
    rows: list[list[Parts]] = []
    for row in result["layers"]:
        one = row["sentence"]
        cells: list[Parts] = [layer_cell(row["layer"]), [fixed(one["a"])], [fixed(one["b"])], _change(one)]
        cells += [[significant(one["p_adjusted"], 2)], _change(row["token"]), _change(row["gap"])]
        rows.append([*cells, [fixed(row["axis_cosine"])], [fixed(row["mean_cosine"])]])
    notes: list[Parts] = [["a is ", text(result["a"]["name"]), ", b is ", text(result["b"]["name"]), "."]]
    notes.append([text(result["pairing"])])
    title: Parts = ["Mean cosine of two sentences in both states, and what changed, ± standard errors"]
    return Table("changes", title, columns, rows, notes + _reasons(result, ("sentence", "token", "gap")))


def _cones(result: Node) -> Table:
    columns = [
        Column("layer", ("layer",)),
        Column("a", ("before",)),
        Column("b along the mean of a", ("kept",)),
        Column("gone along it", ("removed", "removed_stderr")),
        Column("new across it", ("new", "new_stderr")),
        Column("the cone", ("verdict",), "text"),
    ]
    rows: list[list[Parts]] = []
    for row in result["layers"]:
        cone = row.get("cone")
        if cone.known:
            parts = [estimate(cone[key]["value"], cone[key]["stderr"], sign=True) for key in ("removed", "new")]
            along: list[Parts] = [layer_cell(row["layer"]), [fixed(cone["before"])], [fixed(cone["kept"])]]
            rows.append([*along, *parts, [text(cone["verdict"])]])
    title: Parts = ["Was the cone removed, or did it turn: the mean cosine along the old mean and across it"]
    return Table("cone", title, columns, rows, [])


def _pairs(result: Node) -> Table:
    columns = [Column("layer", ("layer",))]
    columns += [Column(f"{heading}, b − a", (key, f"{key}_stderr")) for key, heading in _PAIRS.items()]
    with_tokens = [row for row in result["layers"] if row["token"].known]
    rows = [[[count(row["layer"])], *(_change(row[key]) for key in _PAIRS)] for row in with_tokens]
    notes: list[Parts] = [
        [
            "Within: mean cosine of two tokens of one sentence. Between: of two sentences. Predicted: what averaging "
            "alone makes of them."
        ]
    ]
    title: Parts = ["Changes of the cosines of two tokens, ± standard errors"]
    return Table("pairs", title, columns, rows, notes + _reasons(result, tuple(_PAIRS)), folded=True)


def _change(change: Node) -> Parts:
    return estimate(change["difference"], change["stderr"], sign=True) if change.known else []


def _reasons(result: Node, keys: Sequence[str]) -> list[Parts]:
    return reasons([row[key].get("reason") for row in result["layers"] for key in keys])
