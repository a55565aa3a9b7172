"""Table of the fix."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.report.inline import Parts, estimate, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table, reasons
from cone_kernels.report.tables.quality import quality_tables
from cone_kernels.report.words import centering_method, centering_model


def tables(result: Node) -> list[Table]:
    """The table of one centring, and those of what labelled pairs say of it."""
    return centering_tables([result]) + quality_tables(result.get("quality"))


def centering_tables(results: Sequence[Node]) -> list[Table]:
    """One table for all centrings."""
    held_out = any(result.get("held_out").known for result in results)
    columns = [
        Column("model", ("model", "layer"), "text"),
        Column("method", ("method",), "text"),
        Column("before", ("before", "before_stderr")),
        Column("after", ("after", "after_stderr")),
        *([Column("after, of other sentences", ("held_out", "held_out_stderr"))] if held_out else []),
        Column("file", ("file",), "text"),
    ]
    rows: list[list[Parts]] = []
    for result in results:
        found = [result.get(key) for key in ("before", "after", *(["held_out"] if held_out else []))]
        estimates = [estimate(value.get("value"), value.get("stderr")) for value in found]
        rows.append([centering_model(result), centering_method(result), *estimates, [text(result.get("file"))]])
    notes = reasons([result.get("reason") for result in results])
    if held_out:
        notes.append(["Of other sentences: each part of them after the centring that was fitted on the other parts."])
    return [Table("centering", ["Anisotropy before and after, ± standard errors"], columns, rows, notes)]
