"""Tables of `rotation`."""

from __future__ import annotations

from collections.abc import Iterator

from cone_kernels.report.inline import Parts, count, estimate, fixed, joined, percent, significant, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table
from cone_kernels.report.words import MATRICES, Matrix, layer_cell, letter


def tables(result: Node) -> list[Table]:
    """The models, the matrices, and one row a pair of models."""
    matrices = [_matrix(result, matrix) for matrix in MATRICES if result.get(matrix.key).known]
    return [_models(result), *_pairs(result), *matrices]


def _models(result: Node) -> Table:
    columns = [
        Column("", ("letter",), "text"),
        Column("corpus" if result.get("corpora").known else "model", ("name",), "text"),
        Column("architecture", ("architecture",), "text"),
        Column("width", ("hidden_size",)),
        Column("layer", ("layer",)),
        Column("anisotropy", ("anisotropy", "stderr")),
        Column("variance along the axis", ("explained_variance_ratio",)),
    ]
    rows: list[list[Parts]] = []
    for at, model in enumerate(result["models"]):
        described: list[Parts] = [[letter(at)], [text(model["name"])], [text(model.get("architecture"))]]
        described += [[count(model.get("hidden_size"))], layer_cell(model.get("layer"))]
        level = estimate(model.get("anisotropy"), model.get("stderr"))
        rows.append([*described, level, [percent(model.get("explained_variance_ratio"))]])
    compared = "corpora" if result.get("corpora").known else "models"
    return Table("models", [f"The {compared} compared"], columns, rows)


def _matrix(result: Node, matrix: Matrix) -> Table:
    models = list(result["models"])
    errors = result.get("centered_stderr" if matrix.key == "centered_anisotropy" else "")
    columns = [Column("model", ("model",), "text")]
    for at, model in enumerate(models):
        label = f"{letter(at)} {text(model['name']).shown}"
        columns.append(Column(letter(at), (label, f"{label} stderr") if errors.known else (label,)))
    rows: list[list[Parts]] = []
    for i, model in enumerate(models):
        values = result[matrix.key][i]
        cells = [estimate(value, errors[i][j]) if errors.known else [fixed(value)] for j, value in enumerate(values)]
        rows.append([[f"{letter(i)} ", text(model["name"])], *cells])
    return Table(matrix.key.replace("_", "-"), [matrix.table], columns, rows, folded=True)


def _pairs(result: Node) -> Iterator[Table]:
    models = list(result["models"])
    pairs = [(i, j) for i in range(len(models)) for j in range(i + 1, len(models))]
    columns = [
        Column("pair", ("first", "second"), "text"),
        Column("|cos| of the axes", ("axis_cosine",)),
        Column("random: mean", ("random_mean",)),
        Column("random: 95 in 100 below", ("random_p95",)),
        Column("p", ("p_value",)),
        Column("principal angles in degrees", ("principal_angles",), "text"),
    ]
    if result.get("verdict").known:
        columns += [Column("top axes compared", ("axes",)), Column("overlap", ("overlap", "overlap_stderr"))]
        columns += [Column("of one's own halves", ("halves",), "text"), Column("verdict", ("verdict",), "text")]
    rows: list[list[Parts]] = []
    for i, j in pairs:
        null, angles = _at(result, "null", i, j), _at(result, "principal_angles", i, j)
        rows.append(
            [
                [text(models[i]["name"]), " and ", text(models[j]["name"])],
                [fixed(_at(result, "axis_cosine", i, j))],
                *([fixed(null.get(key))] for key in ("mean", "p95")),
                [significant(_at(result, "p_value", i, j), 2)],
                joined([[fixed(angle, 1)] for angle in angles], ", ") if angles.known else [fixed(angles)],
                *(_judged(result, i, j) if result.get("verdict").known else ()),
            ]
        )
    notes: list[Parts] = [[text(reason)] for reason in result.get("reasons").entries]
    if rows:
        title: Parts = [
            "Each pair, and what random directions give; angles between the subspaces of the first ",
            count(result["k"]),
            " axes",
        ]
        yield Table("pairs", title, columns, rows, notes)


def _judged(result: Node, i: int, j: int) -> Iterator[Parts]:
    """How many axes were compared, their overlap without the noise of the sentences, that of halves, the verdict."""
    found = _at(result, "overlap", i, j)
    halves = found.get("halves")
    yield [count(found.get("axes"))]
    yield estimate(found.get("corrected"), found.get("stderr"))
    yield joined([[fixed(half, 2)] for half in halves], ", ") if halves.known else [fixed(halves)]
    yield [text(_at(result, "verdict", i, j))]


def _at(result: Node, key: str, i: int, j: int) -> Node:
    matrix = result.get(key)
    return matrix[i][j] if matrix.known else matrix
