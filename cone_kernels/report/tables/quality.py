"""Tables of what labelled pairs say: every layer and method, and fits on fewer texts."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.names import POOLINGS, QUALITY_METHODS, label_of, measure_label
from cone_kernels.report.inline import Parts, count, estimate, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table, reasons
from cone_kernels.report.words import layer_cell


def quality_tables(quality: Node) -> list[Table]:
    """The tables of one result's `quality`; none where nothing was measured by pairs."""
    return [_layers(quality), _fits(quality)] if quality.known else []


def _layers(quality: Node) -> Table:
    rows = list(quality["layers"])
    methods = [key for key, _ in rows[0]["methods"].items()]
    columns = _places(rows)
    columns.append(Column("as it is", ("raw", "raw_stderr")))
    columns += [Column(label_of(QUALITY_METHODS, key), (f"{key}_difference", f"{key}_stderr")) for key in methods]
    cells: list[list[Parts]] = [
        [
            *_place(row, rows),
            estimate(row["raw"], row.get("raw_stderr"), 3),
            *(_difference(row["methods"][key]) for key in methods),
        ]
        for row in rows
    ]
    notes: list[Parts] = [
        [
            "What each method changes, on pairs that it was not fitted on; errors count pairs that share a text as one "
            "group."
        ]
    ]
    missing = [row["methods"][key].get("reason") for row in rows for key in methods]
    title: Parts = [f"{measure_label(quality['measure'].text)} of ", count(quality["pairs"]), " labelled pairs"]
    return Table(
        "quality", [*title, ", ± standard errors"], columns, cells, notes + reasons(missing), folded=len(rows) > 13
    )


def _fits(quality: Node) -> Table:
    rows = quality["fits"].entries
    methods = [key for key, _ in rows[0]["methods"].items()] if rows else []
    columns = [*_places(rows), Column("fitted on", ("rows", "source"), "text")]
    columns += [Column(label_of(QUALITY_METHODS, key), (f"{key}_difference", f"{key}_stderr")) for key in methods]
    cells: list[list[Parts]] = [
        [
            *_place(row, rows),
            [count(row["rows"]), " of the ", text(row["source"])],
            *(_difference(row["methods"][key]) for key in methods),
        ]
        for row in rows
    ]
    notes: list[Parts] = [["What one fit on so many texts changes; the error is also that of which texts it gets."]]
    notes += [
        [count(row["overlap"]), " of the texts of the pairs are in the corpus too."]
        for row in rows[-1:]
        if row.get("overlap").value
    ]
    return Table("fits", ["How many texts a method is fitted on"], columns, cells, notes, folded=True)


def _difference(found: Node) -> Parts:
    return estimate(found.get("difference"), found.get("stderr"), 3, sign=True)


def _places(rows: Sequence[Node]) -> list[Column]:
    pooled = [Column("pooling", ("pooling",), "text")] if _several_poolings(rows) else []
    return [Column("layer", ("layer",), "text"), *pooled]


def _place(row: Node, rows: Sequence[Node]) -> list[Parts]:
    pooling = row.get("pooling")
    words: Parts = [label_of(POOLINGS, pooling.text)] if pooling.known else []
    return [layer_cell(row["layer"]), *([words] if _several_poolings(rows) else [])]


def _several_poolings(rows: Sequence[Node]) -> bool:
    return len({row.get("pooling").value for row in rows} - {None}) > 1
