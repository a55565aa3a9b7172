"""Tables of `pooling`."""

from __future__ import annotations

from cone_kernels.names import POOLINGS, label_of
from cone_kernels.report.inline import Parts, count, estimate
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table, reasons
from cone_kernels.report.words import measured_poolings

_COSINES = {"gap": "gap", "within": "within", "between": "between", "predicted": "predicted"}


def tables(result: Node) -> list[Table]:
    """The levels, and the poolings side by side where there are several."""
    poolings = measured_poolings(result)
    return [_levels(result), *([_poolings(result, poolings)] if len(poolings) > 1 else [])]


def _levels(result: Node) -> Table:
    layers = result["layers"]
    columns = [Column("layer", ("layer",))]
    columns += [Column(f"{level}s", (f"{level}_anisotropy", f"{level}_stderr")) for level in ("token", "sentence")]
    columns += [Column(heading, (key, f"{key}_stderr")) for key, heading in _COSINES.items()]
    rows: list[list[Parts]] = []
    for row in layers:
        levels = [estimate(row[key].get("anisotropy"), row[key].get("stderr")) for key in ("token", "sentence")]
        cosines = [estimate(row[key].get("value"), row[key].get("stderr"), sign=key == "gap") for key in _COSINES]
        rows.append([[count(row["layer"])], *levels, *cosines])
    notes: list[Parts] = [
        [
            "Within: mean cosine of two tokens of one sentence. Between: of two tokens of different sentences. "
            "Predicted: what averaging alone gives, of tokens taken at length 1."
        ]
    ]
    keys = ("token", "sentence", *_COSINES)
    missing = [row[key].get("reason") for row in layers for key in keys]
    return Table(
        "pooling",
        ["Tokens, sentences, and what averaging predicts, ± standard errors"],
        columns,
        rows,
        notes + reasons([*missing, *(row.get("reason") for row in layers)]),
        folded=len(rows) > 13,
    )


def _poolings(result: Node, poolings: list[str]) -> Table:
    layers = result["layers"]
    columns = [Column("layer", ("layer",))]
    columns += [Column(label_of(POOLINGS, key), (f"{key}_anisotropy", f"{key}_stderr")) for key in poolings]
    rows: list[list[Parts]] = []
    for row in layers:
        levels = [row["poolings"][key] for key in poolings]
        rows.append(
            [[count(row["layer"])], *(estimate(level.get("anisotropy"), level.get("stderr")) for level in levels)]
        )
    missing = [row["poolings"][key].get("reason") for row in layers for key in poolings]
    return Table(
        "poolings",
        ["Anisotropy of the sentences under each pooling, ± standard errors"],
        columns,
        rows,
        reasons(missing),
        folded=len(rows) > 13,
    )
