"""What `cone run` prints: the answer for every model, and where everything is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cone_kernels.models.names import short_name
from cone_kernels.names import QUALITY_NOT_MEASURED
from cone_kernels.report.inline import plain
from cone_kernels.report.node import Node
from cone_kernels.report.overview import overview_table
from cone_kernels.terminal.columns import Column, fits, print_columns
from cone_kernels.terminal.quality import print_quality
from cone_kernels.terminal.tables import columns_of

if TYPE_CHECKING:
    from cone_kernels.experiments.run import RunResult


def print_run(console: Console, result: RunResult) -> None:
    """The first table of the report, what is not defined, and the folder; all findings are in the report."""
    table = overview_table(Node(result.to_dict()))
    columns = columns_of(table, ascii_only=console.options.ascii_only)
    if fits(console, columns, gap=2):
        print_columns(console, columns, gap=2)
    else:
        _print_cards(console, columns)
    for note in table.notes:
        console.print(Text(plain(note), "dim"))
    for model in result.models:
        if model.undefined is not None:
            name = short_name(model.layers.model["name"])
            reason = f"{name}: there is no axis, and no way to open the cone: {model.undefined}"
            console.print(Text(reason, "yellow"))
        if model.quality is not None:
            console.print()
            print_quality(console, model.quality)
            for line in model.quality.summary():
                console.print(Text(line))
    if all(model.quality is None for model in result.models):
        console.print(Text(QUALITY_NOT_MEASURED, "dim"))
    console.print()
    console.print(Text(f"all findings: {result.out / 'report.html'}"), soft_wrap=True)
    console.print(Text(f"written to {result.out}: results.json, manifest.json, the table, states and axes too"),
                  soft_wrap=True)  # fmt: skip


def _print_cards(console: Console, columns: Sequence[Column]) -> None:
    """A block of lines for each model, where all its numbers side by side are too wide."""
    (names, *measures) = columns
    for at, name in enumerate(names.cells):
        console.print(Text(str(name), "bold"), soft_wrap=True)
        told = [(column.heading, column.cells[at]) for column in measures if str(column.cells[at])]
        card = [
            Column("", [f"  {heading}" for heading, _ in told], justify="left"),
            Column("", [cell for _, cell in told], justify="left"),
        ]
        print_columns(console, card, gap=2, headings=False)
