"""What labelled pairs say: the measure at every layer, as it is and after each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cone_kernels.experiments.quality_result import error_in_words
from cone_kernels.experiments.result import finite
from cone_kernels.names import QUALITY_METHODS, measure_label

if TYPE_CHECKING:
    from cone_kernels.experiments.quality_result import MethodQuality, Quality

_COLOURS = {"greater": "green", "less": "red", "equal": "dim", "undecided": "dim"}


def print_quality(console: Console, quality: Quality) -> None:
    """A row for each layer; what a method changes is in colour where it is told from nothing."""
    file = quality.file["name"]
    console.print(Text(f"{measure_label(quality.measure)} of {quality.pairs:,} labelled pairs of {file}", "bold"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", justify="right", no_wrap=True)
    if quality.several_poolings:
        table.add_column("pooling", no_wrap=True)
    table.add_column("as it is", justify="right", no_wrap=True)
    for method in QUALITY_METHODS.values():
        table.add_column(method.label, justify="right")
    for row in quality.layers:
        pooling = [row.pooling or ""] if quality.several_poolings else []
        raw = f"{row.raw:.3f}" if finite(row.raw) is not None else "-"
        table.add_row(str(row.layer), *pooling, raw, *(_cell(found, console) for found in row.methods.values()))
    console.print(table)
    console.print("what each method changes +/- its standard error, on pairs that it was not fitted on", style="dim")


def _cell(found: MethodQuality, console: Console) -> Text:
    if found.reason is not None:
        return Text("-")
    plus_minus = "+/-" if console.options.ascii_only else "±"
    return Text(
        f"{found.claim.estimate:+.3f} {plus_minus} {error_in_words(found.stderr)}", _COLOURS[found.claim.verdict]
    )
