"""Tables of the terminal: what gives way where there is no room, and what goes on below."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cone_kernels.terminal.columns import BARS, COUNTS, ERRORS, Column, print_columns

ROWS = 3
COLUMNS = [
    Column("layer", [str(row) for row in range(ROWS)]),
    Column("value", [f"0.{row}234" for row in range(ROWS)]),
    Column("s.e.", ["0.0012"] * ROWS, ERRORS),
    Column("", ["█" * 12] * ROWS, BARS, justify="left"),
    Column("count", ["1,234,567"] * ROWS, COUNTS),
    Column("other", [f"-0.{row}999" for row in range(ROWS)]),
]


def printed(columns: list[Column], width: int, keys: int = 1) -> tuple[list[str], set[str]]:
    shown = io.StringIO()
    headings = print_columns(Console(file=shown, width=width), columns, keys=keys)
    return shown.getvalue().splitlines(), headings


@pytest.mark.parametrize(
    ("width", "kept"),
    [
        (60, {"layer", "value", "s.e.", "", "count", "other"}),
        (40, {"layer", "value", "s.e.", "count", "other"}),
        (30, {"layer", "value", "s.e.", "other"}),
        (20, {"layer", "value", "other"}),
    ],
)
def test_bars_then_counts_then_errors_give_way(width: int, kept: set[str]) -> None:
    lines, headings = printed(COLUMNS, width)
    assert headings == kept
    assert len(lines) == ROWS + 1
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [1, 6, 12, 15])
def test_what_has_no_room_goes_on_below_and_whole(width: int) -> None:
    lines, _ = printed(COLUMNS, width)
    assert len(lines) == 2 * (ROWS + 1) + 1
    for row in range(ROWS):
        assert lines[1 + row].split() == [str(row), f"0.{row}234"]
        assert lines[2 + ROWS + 1 + row].split() == [str(row), f"-0.{row}999"]


def test_headings_of_several_words_stand_two_blanks_apart() -> None:
    shown = io.StringIO()
    columns = [Column("first word", ["0.1234"]), Column("second word", ["0.5"])]
    print_columns(Console(file=shown, width=23), columns, gap=2)
    assert shown.getvalue().splitlines() == ["first word  second word", "    0.1234          0.5"]


def test_wide_letters_and_words_that_wrap_are_counted() -> None:
    columns = [Column("a", ["漢字漢字"], justify="left"), *(Column(name, ["0.1234"]) for name in "bc")]
    assert len(printed(columns, 8 + 1 + 6 + 1 + 6)[0]) == 2
    assert len(printed(columns, 8 + 1 + 6 + 1 + 5)[0]) == 5
    wrapping = [Column("a", ["some words that wrap"], justify="left", wraps=True), Column("b", ["0.1234"])]
    lines, _ = printed(wrapping, 13)
    assert [line.split()[-1] for line in lines if "0.1234" in line] == ["0.1234"]
    assert max(map(len, lines)) <= 13
