"""Tables whose numbers are never cut: where a terminal is too narrow, what matters least is not shown, and what is left
over goes on in a second table below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

ERRORS, COUNTS, BARS = 1, 2, 3
"""What gives way where there is no room: bars first, then counts, then standard errors; 0 never does."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        heading: above it.
        cells: one a row.
        gives_way: whether it may be left out, and how early: the largest goes first.
        justify: how its cells stand.
        style: of its cells.
        wraps: whether its cells may take several lines, as sentences do and numbers do not.
        most: its width at most; longer cells end in an ellipsis.
    """

    heading: str
    cells: Sequence[str | Text]
    gives_way: int = 0
    justify: Literal["left", "right"] = "right"
    style: str | None = None
    wraps: bool = False
    most: int | None = None


def print_columns(
    console: Console, columns: Sequence[Column], *, keys: int = 1, gap: int = 1, headings: bool = True
) -> set[str]:
    """Prints the columns that there is room for; those that never give way all are.

    Args:
        console: what they are printed on.
        columns: in order.
        keys: so many first ones begin every table that it takes.
        gap: blanks between two columns, 1 or 2; headings of several words take 2 to be told apart.
        headings: whether they are printed.

    Returns:
        The headings of what was printed.
    """
    kept = shown(console, columns, gap)
    head, rest = list(kept[:keys]), list(kept[keys:])
    while True:
        taken = next((at for at in range(len(rest), 1, -1) if fits(console, head + rest[:at], gap)), 1)
        table = _table(head + rest[:taken], gap, headings=headings)
        if not fits(console, head + rest[:taken], gap):
            table.width = _width(head + rest[:taken], gap)
        # The terminal itself breaks a line that one column alone is too wide for.
        console.print(table, crop=False)
        rest = rest[taken:]
        if not rest:
            return {column.heading for column in kept}
        console.print()


def shown(console: Console, columns: Sequence[Column], gap: int = 1) -> list[Column]:
    """The columns without those that must give way for the others to have room."""
    kept = list(columns)
    for level in sorted({column.gives_way for column in columns if column.gives_way}, reverse=True):
        if fits(console, kept, gap):
            break
        kept = [column for column in kept if column.gives_way != level]
    return kept


def fits(console: Console, columns: Sequence[Column], gap: int = 1) -> bool:
    """Whether all of the columns fit the terminal side by side."""
    return _width(columns, gap) <= console.width


def _width(columns: Sequence[Column], gap: int) -> int:
    """The least that the columns take, with the blanks between any two."""
    return sum(map(_column_width, columns)) + gap * (len(columns) - 1)


def _column_width(column: Column) -> int:
    lines = [line for cell in (column.heading, *column.cells) for line in str(cell).split("\n")]
    parts = [part for line in lines for part in (line.split() if column.wraps else [line])]
    widest = max(map(cell_len, parts), default=0)
    return widest if column.most is None else min(widest, column.most)


def _table(columns: Sequence[Column], gap: int, *, headings: bool) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=gap == 1, header_style="bold", show_header=headings)
    for column in columns:
        overflow: Literal["ellipsis", "fold"] = "fold" if column.most is None else "ellipsis"
        table.add_column(column.heading, justify=column.justify, style=column.style, no_wrap=not column.wraps,
                         max_width=column.most, overflow=overflow)  # fmt: skip
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table
