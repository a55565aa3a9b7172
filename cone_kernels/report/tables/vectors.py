"""Tables of `vectors`."""

from __future__ import annotations

from collections.abc import Iterator

from cone_kernels.names import GEOMETRY, is_share, label_of
from cone_kernels.report.inline import Parts, code, count, estimate, fixed, percent, significant, text
from cone_kernels.report.node import Node
from cone_kernels.report.population import POPULATION_COLUMNS, POPULATION_NOTE, population_cells
from cone_kernels.report.table import Column, Table, reasons
from cone_kernels.report.tables.axis import AXIS_COLUMNS, axis_cells
from cone_kernels.report.tables.layers import without_rogue
from cone_kernels.report.words import ordinal


def tables(result: Node) -> list[Table]:
    """The tables that the result has the numbers for."""
    return [table for table in (_cone(result), _geometry(result), _rogue(result), *_axes(result)) if table.rows]


def _cone(result: Node) -> Table:
    about, level = result["vectors"], result["sentence"]
    rows: list[list[Parts]] = [
        [["vectors"], [count(about["rows"])]],
        [["width"], [count(about["dim"])]],
        [["dtype"], [code(about["dtype"])]],
        [["mean cosine of two, ± its standard error"], estimate(level.get("anisotropy"), level.get("stderr"))],
        [["mean norm"], [significant(level.get("mean_norm"))]],
        [["used"], [count(level["count"])]],
    ]
    rows += [[["without rogue dimensions"], without_rogue(result)]]
    for key, words in (("n_zero", "left out, zero"), ("n_nonfinite", "left out, not finite")):
        rows += [[[words], [count(level[key])]]] if level[key].value else []
    columns = [Column("of the vectors", ("name",), "text"), Column("value", ("value",))]
    return Table("cone", ["The cone of ", text(about["name"])], columns, rows, reasons([level.get("reason")]))


def _geometry(result: Node) -> Table:
    rows: list[list[Parts]] = [
        [[label_of(GEOMETRY, key)], [percent(value) if is_share(key) else significant(value)]]
        for key, value in result.get("geometry").items()
    ]
    if rows:
        cells = population_cells(result.get("population"))
        rows += [[[about.heading], cell] for about, cell in zip(POPULATION_COLUMNS, cells, strict=True)]
    columns = [Column("measure", ("measure",), "text"), Column("value", ("value",))]
    return Table("geometry", ["How the vectors spread around their mean"], columns, rows, [[POPULATION_NOTE]])


def _rogue(result: Node) -> Table:
    rows: list[list[Parts]] = [
        [[count(entry["dimension"])], [fixed(entry["contribution"])], [percent(entry["share"])]]
        for entry in result.get("rogue_dimensions").entries
    ]
    columns = [
        Column("dimension", ("dimension",)),
        Column("contribution", ("contribution",)),
        Column("share of the mean cosine", ("share",)),
    ]
    return Table("rogue-dimensions", ["The dimensions that contribute most to the mean cosine"], columns, rows)


def _axes(result: Node) -> Iterator[Table]:
    components = result.get("axis").get("components").entries
    numbers = [axis_cells(component, at) for at, component in enumerate(components, start=1)]
    notes: list[Parts] = [[text(reason)] for reason in result.get("axis").get("reasons").entries]
    yield Table("axes", ["The axes of the vectors"], AXIS_COLUMNS, numbers, notes)
    for at, component in enumerate(components, start=1):
        yield _ends(component, at)


def _ends(component: Node, number: int) -> Table:
    entries = [(words, entry) for end, words in (("top", "highest"), ("bottom", "lowest")) for entry in component[end]]
    with_ids = any(entry.get("id").known for _, entry in entries)
    rows: list[list[Parts]] = [
        [[words], *([[text(entry["id"])]] if with_ids else []), [significant(entry["projection"])],
         [count(entry["index"])]]
        for words, entry in entries
    ]  # fmt: skip
    columns = [Column("end", ("end",), "text"), *([Column("id", ("id",), "long")] if with_ids else [])]
    columns += [Column("projection", ("projection",)), Column("row", ("row",))]
    return Table(f"ends-{number}", [f"The vectors at the ends of the {ordinal(number)} axis"], columns, rows)
