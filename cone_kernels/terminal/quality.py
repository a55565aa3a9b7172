"""What labelled pairs say: the measure at every layer, as it is and after each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cone_kernels.experiments.quality_result import error_in_words
from cone_kernels.experiments.result import finite
from cone_kernels.names import QUALITY_METHODS, measure_label
from cone_kernels.terminal.columns import Column, print_columns

if TYPE_CHECKING:
    from cone_kernels.experiments.quality_result import MethodQuality, Quality

_COLOURS = {"greater": "green", "less": "red", "equal": "dim", "undecided": "dim"}


def print_quality(console: Console, quality: Quality) -> None:
    """A row for each layer; what a method changes is in colour where it is told from nothing."""
    file = quality.file["name"]
    console.print(Text(f"{measure_label(quality.measure)} of {quality.pairs:,} labelled pairs of {file}", "bold"))
    rows = quality.layers
    columns = [Column("layer", [str(row.layer) for row in rows])]
    if quality.several_poolings:
        columns.append(Column("pooling", [row.pooling or "" for row in rows], justify="left"))
    raw = [f"{row.raw:.3f}" if finite(row.raw) is not None else "-" for row in rows]
    columns.append(Column("as it is", raw))
    for key, method in QUALITY_METHODS.items():
        columns.append(Column(method.label, [_cell(row.methods[key], console) for row in rows], wraps=False))
    print_columns(console, columns, keys=len(columns) - len(QUALITY_METHODS) - 1, gap=2)
    console.print("what each method changes +/- its standard error, on pairs that it was not fitted on", style="dim")


def _cell(found: MethodQuality, console: Console) -> Text:
    if found.reason is not None:
        return Text("-")
    plus_minus = "+/-" if console.options.ascii_only else "±"
    return Text(
        f"{found.claim.estimate:+.3f} {plus_minus} {error_in_words(found.stderr)}", _COLOURS[found.claim.verdict]
    )
