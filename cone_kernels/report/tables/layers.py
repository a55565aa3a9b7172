"""Tables of `layers`."""

from __future__ import annotations

from collections.abc import Iterator

from cone_kernels.names import GEOMETRY, OUTPUT, is_share, label_of
from cone_kernels.report.inline import Key, Parts, code, count, estimate, fixed, joined, percent, significant, text
from cone_kernels.report.node import Node
from cone_kernels.report.population import POPULATION_COLUMNS, POPULATION_NOTE, population_cells
from cone_kernels.report.table import Column, Table, reasons

_WITHOUT = ("anisotropy_without_rogue", "anisotropy_without_rogue_stderr")


def tables(result: Node) -> list[Table]:
    """The tables that the result has the numbers for."""
    found = (_curve(result), *_geometry(result), *_rogue(result), _steps(result), *_published(result))
    return [table for table in found if table.rows]


def without_rogue(row: Node) -> Parts:
    """The mean cosine without the dimensions that carry most of it: with its error, or about, from the sums alone."""
    value, error = (row.get(key) for key in _WITHOUT)
    rough = value.known and not error.known
    return ("about ", *estimate(value, error, 2)) if rough else estimate(value, error)


def _curve(result: Node) -> Table:
    layers = result["layers"]
    without = any(row.get("anisotropy_without_rogue").known for row in layers)
    left_out = [
        (level, key)
        for level in ("sentence", "token")
        for key in ("n_zero", "n_nonfinite")
        if any(row[level].get(key).value for row in layers)
    ]
    columns = [Column("layer", ("layer",)), Column("output of", ("name",), "text")]
    for level in ("sentence", "token"):
        columns.append(Column(f"{level}s", (f"{level}_anisotropy", f"{level}_stderr")))
    columns += [Column("without rogue dimensions", _WITHOUT)] * without
    for level in ("sentence", "token"):
        columns.append(Column(f"mean norm, {level}s", (f"{level}_mean_norm",)))
    counts = [level for level in ("sentence", "token") if len({row[level].get("count").value for row in layers}) > 1]
    columns += [Column(f"{level}s used", (f"{level}_count",)) for level in counts]
    kinds = {"n_zero": "zero", "n_nonfinite": "not finite"}
    columns += [Column(f"{level}s {kinds[key]}", (f"{level}_{key}",)) for level, key in left_out]
    rows: list[list[Parts]] = []
    for row in layers:
        levels = [row["sentence"], row["token"]]
        cells: list[Parts] = [[count(row["layer"])], [code(row["name"])]]
        cells += [estimate(level.get("anisotropy"), level.get("stderr")) for level in levels]
        cells += [without_rogue(row)] * without
        cells += [[significant(level.get("mean_norm"))] for level in levels]
        cells += [[count(row[level].get("count"))] for level in counts]
        cells += [[count(row[level].get(key))] for level, key in left_out]
        rows.append(cells)
    output = result.get("output")
    if output.get("sentence").known:
        rows.append(_output(output, len(columns), without, counts, left_out))
    same = [level for level in ("sentence", "token") if level not in counts]
    used = joined([[count(layers[0][level].get("count")), f" {level}s"] for level in same])
    notes: list[Parts] = [["Used at every layer: ", *used, "."]] if same else []
    missing = [row[level].get("reason") for row in layers for level in ("sentence", "token")]
    return Table(
        "layers",
        ["Anisotropy of every layer, ± its standard error"],
        columns,
        rows,
        notes + reasons(missing),
        folded=len(rows) > 13,
    )


def _steps(result: Node) -> Table:
    columns = [
        Column("step", ("start", "end"), "text"),
        Column("share of the change", ("change_share", "change_share_stderr")),
        Column("dimensions that change most", ("changed_most", "changed_most_stderr")),
        Column("first of them", ("dimensions",), "text"),
        Column("cosine of the means", ("mean_cosine", "mean_cosine_stderr")),
        Column("overlap of the top axes", ("axes_overlap", "axes_overlap_stderr")),
        Column("drawn from the covariances", ("axes_random",)),
    ]
    rows: list[list[Parts]] = []
    for step in result.get("steps").entries:
        cells: list[Parts] = [[count(step["start"]), " to ", count(step["end"])]]
        for key in ("change_share", "changed_most"):
            cells.append(estimate(step[key]["value"], step[key]["stderr"]))
        cells.append(joined([[count(one["dimension"])] for one in step["dimensions"]], ", "))
        cells.append(estimate(step["mean_cosine"]["value"], step["mean_cosine"]["stderr"]))
        axes = step.get("axes_overlap")
        cells.append(estimate(axes["corrected"], axes["stderr"]) if axes.known else [])
        cells.append([fixed(axes["random"])] if axes.known else [])
        rows.append(cells)
    notes: list[Parts] = [
        [
            "Share of the squared changes of the mean of the vectors at length 1, of all dimensions at all steps; ",
            "dimensions that change most at this step, as a share of all.",
        ]
    ]
    return Table("steps", ["What each layer changes of the one before"], columns, rows, notes, folded=True)


def _output(output: Node, width: int, without: bool, counts: list[str], left_out: list[tuple[str, str]]) -> list[Parts]:
    """The row of the model's own output, which has no tokens, in the columns of the layers."""
    level = output["sentence"]
    modules = joined([[text(module)] for module in output.get("modules").entries])
    cells: list[Parts] = [[OUTPUT], modules, estimate(level.get("anisotropy"), level.get("stderr")), []]
    cells += [without_rogue(output)] * without
    cells += [[significant(level.get("mean_norm"))], []]
    cells += [[count(level.get("count"))] if of == "sentence" else [] for of in counts]
    cells += [[count(level.get(key))] if of == "sentence" else [] for of, key in left_out]
    assert len(cells) == width
    return cells


def _geometry(result: Node) -> Iterator[Table]:
    layers = [row for row in result["layers"] if row.get("geometry").known]
    if not layers:
        return
    output = result.get("output")
    keys = [key for key, _ in layers[0]["geometry"].items()]
    rows: list[list[Parts]] = []
    for row in [*layers, *([output] if output.get("geometry").known else [])]:
        values = {key: row["geometry"].get(key) for key in keys}
        shown = [percent(value) if is_share(key) else significant(value) for key, value in values.items()]
        rows.append([_number(row), *([number] for number in shown), *population_cells(row.get("population"))])
    columns = [Column("layer", ("layer",)), *(Column(label_of(GEOMETRY, key), (key,)) for key in keys)]
    title: Parts = ["Geometry of the sentence vectors"]
    yield Table("geometry", title, columns + POPULATION_COLUMNS, rows, [[POPULATION_NOTE]], folded=True)


def _rogue(result: Node) -> Iterator[Table]:
    rows: list[list[Parts]] = []
    output = result.get("output")
    for row in [*result["layers"], *([output] if output.get("rogue_dimensions").known else [])]:
        for entry in row.get("rogue_dimensions").entries:
            cells = [_number(row), [count(entry["dimension"])]]
            rows.append([*cells, [fixed(entry["contribution"])], [percent(entry["share"])]])
    columns = [
        Column("layer", ("layer",)),
        Column("dimension", ("dimension",)),
        Column("contribution", ("contribution",)),
        Column("share of the anisotropy", ("share",)),
    ]
    yield Table("rogue-dimensions", ["The dimensions that contribute most, sentence level"], columns, rows, folded=True)


def _number(row: Node) -> Parts:
    """The first cell of a row: the layer's number, or the word for the model's own output."""
    return [count(row["layer"])] if row.get("layer").known else [OUTPUT]


def _published(result: Node) -> Iterator[Table]:
    published = result.get("published")
    if not published.known:
        return
    rows: list[list[Parts]] = [[[Key(value)], [fixed(value, 3)]] for value in published["anisotropy"]]
    columns = [Column("layer", ("layer",)), Column("sentences", ("anisotropy",))]
    title: Parts = ["The published curve of ", text(published["model"])]
    yield Table("published", title, columns, rows, [[text(published["source"])]], folded=True)
