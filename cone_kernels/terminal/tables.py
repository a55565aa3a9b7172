"""The tables that the report has of a result, for an experiment without a form of its own here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from cone_kernels.report.inline import plain
from cone_kernels.report.node import Node
from cone_kernels.report.section import experiment_of
from cone_kernels.report.table import Table
from cone_kernels.report.tables import TABLES

if TYPE_CHECKING:
    from cone_kernels.experiments.result import ExperimentResult


def print_tables(console: Console, result: ExperimentResult) -> None:
    """Each table with its title and its notes; then the plain sentences."""
    node = Node(result.to_dict())
    for table in TABLES[experiment_of(node)](node):
        console.print(Text(plain(table.title), "bold"))
        console.print(_drawn(table))
        for note in table.notes:
            console.print(Text(plain(note), "dim"))
        console.print()
    for line in result.summary():
        console.print(Text(line))


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        is_number = column.sort == "number"
        drawn.add_column(column.heading, justify="right" if is_number else "left", no_wrap=is_number)
    for row in table.rows:
        drawn.add_row(*(Text(plain(cell)) for cell in row))
    return drawn
