"""A table of the report: HTML whose every cell is traced to the results, and the same as a CSV file to download."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from cone_kernels.report.inline import Number, Parts, Text, escape, full, markup, nodes_of, plain, text
from cone_kernels.report.node import Node, common_place, place_within

# What a data URL may hold as it is, beside letters and digits.
_SAFE = "/,:;=@!$()*+?"


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the names that its numbers and texts have in the CSV file, one each.

    `sort` is how it stands: "number" (right), "text" (left), "long" (left, takes the room there is).
    """

    heading: str
    names: tuple[str, ...]
    sort: str = "number"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        name: of the CSV file, without its ending; unique within a result.
        title: what it holds.
        columns: one a cell of every row.
        rows: the cells, each of parts; an empty cell has none.
        notes: what stands below.
        folded: whether it is closed until the reader opens it.
    """

    name: str
    title: Parts
    columns: Sequence[Column]
    rows: Sequence[Sequence[Parts]]
    notes: Sequence[Parts] = ()
    folded: bool = False


def table_html(table: Table, prefix: str, *, cards: bool = False) -> str:
    """The table with its caption, its CSV file as a link, and its notes.

    Args:
        table: what is in it.
        prefix: of its ids and of the CSV file's name.
        cards: on a narrow screen each row is a card, its headings beside its cells.
    """
    head = "".join(f'<th scope="col" class="{column.sort}">{escape(column.heading)}</th>' for column in table.columns)
    place = common_place([node for row in table.rows for cell in row for node in nodes_of(cell)])
    body = "".join(_row(table.columns, row, place, cards=cards) for row in table.rows)
    caption = f'<caption id="{prefix}-{table.name}"><span>{markup(table.title, place)}</span></caption>'
    notes = "".join(f'<p class="note">{markup(note)}</p>' for note in table.notes)
    link = (
        f'<a download="{prefix}-{table.name}.csv" aria-label="CSV of this table: {escape(plain(table.title))}" '
        f'href="data:text/csv;charset=utf-8,{quote(csv_text(table), _SAFE, errors="replace")}">CSV of this table</a>'
    )
    kind = ' class="cards"' if cards else ""
    opened = f"<table{kind}{_within(place)}>"
    whole = (
        f'<div class="scroll" role="region" aria-labelledby="{prefix}-{table.name}" tabindex="0">'
        f"{opened}{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{notes}"
        f'<p class="download">{link}</p>'
    )
    return f"<details><summary>{markup(table.title)}</summary>{whole}</details>" if table.folded else whole


def csv_text(table: Table) -> str:
    """The table as CSV: every number in full, as the JSON file has it; null is empty.

    A text that a spreadsheet would compute as a formula has an apostrophe before it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in column.names])
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        writer.writerow([value for column, cell in cells for value in _values(column, cell)])
    return buffer.getvalue()


def reasons(nodes: Sequence[Node]) -> list[Parts]:
    """Why numbers are missing, each reason once."""
    found = {node.text: node for node in nodes if node.known}
    return [("– is not defined: ", text(node)) for node in found.values()]


def _row(columns: Sequence[Column], row: Sequence[Parts], place: str, *, cards: bool) -> str:
    own = common_place([node for cell in row for node in nodes_of(cell)])
    cells = []
    for at, (column, cell) in enumerate(zip(columns, row, strict=True)):
        tag = "th" if at == 0 else "td"
        kind = "" if tag == "td" and column.sort == "number" else f' class="{column.sort}"'
        scope = ' scope="row"' if at == 0 else ""
        heading = f' data-heading="{escape(column.heading)}"' if cards and at else ""
        cells.append(f"<{tag}{scope}{kind}{heading}>{markup(cell, own or place)}</{tag}>")
    within = "" if own == place else _within(place_within(own, place))
    return f"<tr{within}>{''.join(cells)}</tr>"


def _within(place: str) -> str:
    return f' data-in="{escape(place)}"' if place else ""


def _values(column: Column, cell: Parts) -> list[str]:
    values = [
        full(part.node) if isinstance(part, Number) else _no_formula(full(part.node))
        for part in cell
        if isinstance(part, (Number, Text))
    ]
    if len(values) == len(column.names):
        return values
    if len(column.names) == 1:
        whole = "".join(full(part.node) if isinstance(part, Number) else plain([part]) for part in cell)
        return [whole if cell and isinstance(cell[0], Number) else _no_formula(whole)]
    if any(values):
        raise ValueError(
            f"cell: got {len(values)} values for the names {', '.join(column.names)}; it must be one for each"
        )
    return [""] * len(column.names)


def _no_formula(value: str) -> str:
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
