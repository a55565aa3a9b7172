"""The layers of every model as one flat table: a row for each model and layer, as CSV or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from cone_kernels.extras import require
from cone_kernels.names import GEOMETRY, experiments_in_run

TableFormat = Literal["parquet", "csv"]


def table_format(table: TableFormat | None) -> TableFormat:
    """The format asked for; None: Parquet, or CSV where pyarrow is not installed. Raises before a run, not after it.

    Raises:
        ValueError: an unknown format.
        ModuleNotFoundError: Parquet is asked for, and pyarrow is not installed.
    """
    if table is None:
        return "csv" if importlib.util.find_spec("pyarrow") is None else "parquet"
    if table not in get_args(TableFormat):
        raise ValueError(f"table: got {table!r}; it must be 'parquet' or 'csv'")
    if table == "parquet":
        require("pyarrow", "report", "a Parquet table (csv does not)")
    return table


def layer_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each model and layer, from the JSON data of `cone run`; the same columns in every row.

    Examples:
        >>> layer_rows(results)[0]["sentence_anisotropy"]
        0.4929...
    """
    rows = []
    for model in results["models"]:
        levels_and_pooled = zip(model["layers"]["layers"], model["pooling"]["layers"], strict=True)
        for at, (layer, pooled) in enumerate(levels_and_pooled):
            row = {"model": model["layers"]["model"]["name"], "layer": layer["layer"], "name": layer["name"]}
            for level in ("sentence", "token"):
                row |= {f"{level}_{field}": layer[level][field] for field in _LEVEL_FIELDS}
            row |= {name: layer[name] for name in ("anisotropy_without_rogue", "anisotropy_without_rogue_stderr")}
            for name in ("gap", "within", "between", "predicted"):
                row |= {name: pooled[name]["value"], f"{name}_stderr": pooled[name]["stderr"]}
            for name, level in pooled["poolings"].items():
                row |= {f"{name}_anisotropy": level["anisotropy"], f"{name}_stderr": level["stderr"]}
            row |= layer["geometry"] or dict.fromkeys(GEOMETRY)
            corrected = (layer["population"] or {}).get("participation_ratio") or {}
            row["participation_ratio_corrected"] = corrected.get("value")
            row["participation_ratio_corrected_stderr"] = corrected.get("stderr")
            rows.append(row | _numbers_of_others(model, at))
    return rows


def encoded_table(rows: Sequence[Mapping[str, Any]], table: TableFormat) -> bytes:
    """The content of a file with these rows; CSV leaves the cell of a value that is not defined empty."""
    if table == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), buffer)
    return buffer.getvalue()


def _numbers_of_others(model: Mapping[str, Any], at: int) -> dict[str, Any]:
    """What the experiments without columns of their own above say of a layer: `EXPERIMENT_KEY` for each number."""
    row = {}
    for experiment in experiments_in_run("each model"):
        entries = model.get(experiment, {}).get("layers") if experiment not in ("layers", "pooling") else None
        for key, value in entries[at].items() if entries else ():
            if key != "layer" and (value is None or isinstance(value, (int, float))):
                row[f"{experiment}_{key}"] = value
    return row


_LEVEL_FIELDS = ("anisotropy", "stderr", "mean_norm", "count", "n_zero", "n_nonfinite")
