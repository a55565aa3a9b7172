"""What is said of two models' axes, and the JSON of it: on overlaps made by hand."""

from __future__ import annotations

import math

import pytest

from cone_kernels.experiments.axes_pair import AxesPair, Chance, alike, overlaps, range_in_words
from cone_kernels.statistics.subspaces import Overlap


def pair(corrected: float, bound: float = 0.01, *, axes: int = 1, value: float = 0.6, noise: float = 0.1) -> AxesPair:
    found = Overlap(axes, value, corrected, 0.005, noise, 30)
    return AxesPair(found, bound, 0.02, (0.9, 0.7), Chance(0.1, 0.3), 100)


def test_json_has_the_overlap_its_interval_and_what_chance_gives() -> None:
    data = pair(0.5, 0.125).to_dict()
    assert data == {
        "axes": 1,
        "value": 0.6,
        "corrected": 0.5,
        "stderr": 0.005,
        "low": 0.375,
        "high": 0.625,
        "noise": 0.1,
        "halves": [0.9, 0.7],
        "null": {"mean": 0.1, "p95": 0.3},
        "needed": None,
    }


def test_how_many_sentences_would_decide_it_is_told_where_it_is_undecided() -> None:
    # 0.91 is 0.1 from 0.9², and the bound is twice that: four times as many sentences.
    undecided = pair(0.91, 0.2)
    assert (undecided.verdict, undecided.to_dict()["needed"]) == ("undecided", 400)
    # Not determined by the sentences: six times the mean sin² that is wanted.
    undetermined = pair(0.91, 0.01, noise=0.625)
    assert (undetermined.verdict, undetermined.to_dict()["needed"]) == ("undecided", 625)
    data = undetermined.to_dict()
    assert data["corrected"] is data["low"] is data["high"] is None


def test_at_the_limits_axes_are_determined_and_no_closer_than_chance() -> None:
    limit = pair(0.9, 0.01, noise=0.5, value=0.3)
    assert (limit.verdict, limit.needed, limit.to_dict()["corrected"]) == ("share", 100, 0.9)
    assert limit.by_chance


def test_single_axes_are_told_by_their_cosine_and_spaces_by_their_overlap() -> None:
    # The ends of the interval are of other pairs than the least and the largest overlap.
    single = [pair(0.64, 0.01), pair(0.7, 0.1)]
    assert overlaps(single) == "|cos| 0.80 to 0.84 (from 0.77 to 0.89 with its error)"
    assert overlaps([*single, pair(0.66, axes=2)]) == "overlap 0.64 to 0.70 (from 0.60 to 0.80 with its error)"
    assert overlaps([pair(0.64, 0.001)]) == "|cos| 0.80 (from 0.80 to 0.80 with its error)"


def test_an_overlap_below_zero_has_a_cosine_of_zero() -> None:
    assert alike([pair(0.1)], [-0.04]) == "|cos| 0.00"
    assert alike([pair(0.1)], [-0.04, 0.0625], bare=True) == "0.00 to 0.25"
    assert alike([pair(0.1, axes=2)], [0.25], bare=True) == "0.25"


@pytest.mark.parametrize(
    ("values", "digits", "words"),
    [((0.5,), {}, "0.500"), ((0.5, 0.25, 0.375), {}, "0.250 to 0.500"), ((0.501, 0.499), {"digits": 1}, "0.5")],
)
def test_a_range_of_one_value_is_that_value(values: tuple[float, ...], digits: dict[str, int], words: str) -> None:
    assert range_in_words(values, **digits) == words


def test_without_an_error_nothing_is_known() -> None:
    unknown = pair(0.9, math.nan)
    assert (unknown.verdict, unknown.needed, unknown.to_dict()["low"]) == ("undecided", None, None)
