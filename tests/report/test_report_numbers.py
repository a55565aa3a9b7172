"""How the report shows numbers, texts and places of the results."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.report.figures.canvas import spread
from cone_kernels.report.inline import Number, count, fixed, one_line, percent, significant, stderr
from cone_kernels.report.node import Node
from cone_kernels.report.words import ordinal
from tests.support.report_reading import is_rounded, read_number, value_at

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(finite.filter(lambda value: abs(value) < 1e12), st.integers(0, 6))
def test_fixed_and_percent_round(value: float, digits: int) -> None:
    for number in (fixed(Node(value), digits), fixed(Node(value), digits, sign=True), percent(Node(value), digits)):
        assert is_rounded(value, number.shown)
        assert not re.fullmatch(r"[−-]0*\.?0*%?", number.shown)


@given(finite, st.integers(1, 6))
def test_significant_rounds_and_keeps_digits(value: float, digits: int) -> None:
    shown = significant(Node(value), digits).shown
    assert is_rounded(value, shown)
    if value != 0:
        number, half = read_number(shown)
        assert abs(number) >= half


@given(st.floats(0, 1))
def test_a_standard_error_never_shows_as_zero(value: float) -> None:
    shown = stderr(Node(value)).shown
    assert is_rounded(value, shown)
    assert (read_number(shown)[0] == 0) == (value == 0)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (count(Node(1234567)), "1,234,567"),
        (fixed(Node(-0.00001)), "0.0000"),
        (fixed(Node(0.478), 2, sign=True), "+0.48"),
        (fixed(Node(None)), "–"),
        (percent(Node(0.064)), "6.4%"),
        (significant(Node(3.2e-9)), "3.2×10⁻⁹"),
        (significant(Node(-57.0981)), "−57.10"),
        (significant(Node(30000)), "30,000"),
        (significant(Node(1.5e300)), "1.5×10³⁰⁰"),
        (stderr(Node(0.0012345)), "0.0012"),
        (stderr(Node(2e-7)), "2×10⁻⁷"),
    ],
)
def test_numbers_as_shown(number: Number, shown: str) -> None:
    assert number.shown == shown


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1"])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"results: /a is .*; it must be a finite number"):
        fixed(Node({"a": value})["a"])


def test_a_count_is_whole() -> None:
    with pytest.raises(ValueError, match=r"/n is 1\.5; it must be a whole number"):
        count(Node({"n": 1.5})["n"])


@given(st.recursive(st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_pointers_lead_back(data: Any) -> None:
    """By the rules of RFC 6901."""

    def leaves(node: Node) -> Any:
        if isinstance(node.value, dict):
            for _, value in node.items():
                yield from leaves(value)
        elif isinstance(node.value, list):
            for entry in node:
                yield from leaves(entry)
        else:
            yield node

    for leaf in leaves(Node(data)):
        assert value_at(data, leaf.pointer) is leaf.value


def test_a_place_that_is_not_there_is_named() -> None:
    node = Node({"a": [1], "b": "x"})
    with pytest.raises(ValueError, match="the whole has no 'c'"):
        node["c"]
    with pytest.raises(ValueError, match="/a has 1 entries; it must have entry 1"):
        node["a"][1]
    with pytest.raises(ValueError, match="/b is 'x'; it must be an object"):
        node["b"]["c"]
    assert node.get("c").get("d").value is None


@given(st.text(), st.integers(4, 60))
def test_one_line_is_short_and_drawable(words: str, width: int) -> None:
    line = one_line(words, width)
    assert len(line) <= width
    assert line == " ".join(line.split())
    assert line.encode("utf-8").decode() == line


def test_ordinals_are_words() -> None:
    assert [ordinal(number) for number in (1, 12, 20, 21, 30, 99)] == [
        "first",
        "twelfth",
        "twentieth",
        "twenty-first",
        "thirtieth",
        "ninety-ninth",
    ]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_do_not_overlap(positions: list[float]) -> None:
    placed = spread(positions, 15, 0, 100)
    ordered = sorted(placed)
    assert all(after - before >= 15 - 1e-9 for before, after in itertools.pairwise(ordered))
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 100 + 1e-9
    pairs = [(a, b) for a in range(len(positions)) for b in range(len(positions)) if positions[a] < positions[b]]
    assert all(placed[a] < placed[b] for a, b in pairs)
    if all(abs(a - b) >= 15 for at, a in enumerate(positions) for b in positions[:at]):
        assert placed == pytest.approx(positions)
