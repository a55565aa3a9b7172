"""Tables of `rows`."""

from __future__ import annotations

from cone_kernels.report.inline import Parts, count, estimate, fixed, percent, significant, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table


def tables(result: Node) -> list[Table]:
    """How alike twins are, and the rows that differ most."""
    return [table for table in (_alike(result), _furthest(result)) if table.rows]


def _alike(result: Node) -> Table:
    cosine, rotation, near = (result.get(key) for key in ("cosine", "rotation", "neighbours"))
    rows: list[list[Parts]] = [[["verdict"], [text(result["verdict"])]], [["pairs of rows"], [count(result["count"])]]]
    if result["left_out"].value:
        rows.append([["left out, zero or not finite"], [count(result["left_out"])]])
    if cosine.known:
        rows += [
            [["mean cosine of a row with its twin"], estimate(cosine.get("value"), cosine.get("stderr"), 6)],
            [["the least of these cosines"], [fixed(cosine.get("least"), 6)]],
            [["one in a hundred is below"], [fixed(cosine.get("percent_1"), 6)]],
            [["mean cosine of a row with another's twin"], [fixed(result.get("permuted"))]],
        ]
    if rotation.known:
        rows += [
            [["twins after the best rotation"], estimate(rotation["cosine"], rotation["stderr"])],
            [["others after it"], [fixed(rotation["permuted"])]],
        ]
    ratio = result["norm_ratio"]
    rows.append([["length of the twin as a share of the row's"], [significant(ratio.get("value"), 6)]])
    if near.known:
        rows.append([["nearest rows shared"], [percent(near["overlap"]), " of ", count(near["k"])]])
        rows.append([["shared by chance"], [percent(near["chance"], 2)]])
    columns = [Column("of the two", ("name",), "text"), Column("value", ("value",), "text")]
    title: Parts = [text(result["a"]["name"]), " and ", text(result["b"]["name"]), ", row by row"]
    return Table("rows", title, columns, rows)


def _furthest(result: Node) -> Table:
    named = any(row.get("id").known for row in result["furthest"].entries)
    columns = [Column("row", ("row",)), Column("cosine with its twin", ("cosine",))]
    columns += [Column("id", ("id",), "long")] * named
    rows: list[list[Parts]] = [
        [[count(row["index"])], [fixed(row["cosine"], 6)], *([[text(row.get("id"))]] if named else [])]
        for row in result["furthest"].entries
    ]
    return Table("furthest", ["The rows that differ most"], columns, rows)
