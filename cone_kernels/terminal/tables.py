"""The tables that the report has of a result, for an experiment without a form of its own here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cone_kernels.report.inline import MINUS, MISSING, plain
from cone_kernels.report.node import Node
from cone_kernels.report.section import experiment_of
from cone_kernels.report.table import Table
from cone_kernels.report.tables import TABLES
from cone_kernels.terminal.columns import Column, print_columns

if TYPE_CHECKING:
    from cone_kernels.experiments.result import ExperimentResult


def print_tables(console: Console, result: ExperimentResult) -> None:
    """Each table with its title and its notes; then the plain sentences."""
    node = Node(result.to_dict())
    for table in TABLES[experiment_of(node)](node):
        console.print(Text(plain(table.title), "bold"))
        print_columns(console, columns_of(table, ascii_only=console.options.ascii_only), gap=2)
        for note in table.notes:
            console.print(Text(plain(note), "dim"))
        console.print()
    for line in result.summary():
        console.print(Text(line))


def columns_of(table: Table, *, ascii_only: bool = False) -> list[Column]:
    """A table of the report as columns of the terminal, in ASCII where it shows nothing else."""
    cells = list(zip(*table.rows, strict=True))
    return [
        Column(
            column.heading,
            [_ascii(plain(cell)) if ascii_only else plain(cell) for cell in found],
            justify="right" if column.sort == "number" else "left",
            wraps=column.sort != "number",
        )
        for column, found in zip(table.columns, cells, strict=True)
    ]


def _ascii(words: str) -> str:
    return words.replace("±", "+/-").replace("→", "->").replace(MINUS, "-").replace(MISSING, "-")
