"""What is said of one model over several corpora, and the JSON of it: on numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cone_kernels.experiments.axes_pair import AxesPair, Chance
from cone_kernels.experiments.corpora_result import Corpora, MeansPair
from cone_kernels.experiments.level import Level
from cone_kernels.statistics.claims import Claim
from cone_kernels.statistics.subspaces import Overlap


def overlap(corrected: float, axes: int = 1) -> Overlap:
    return Overlap(axes, 0.6, corrected, 0.005, 0.1, 30)


def axes_of(corrected: float, bound: float = 0.01, axes: int = 1) -> AxesPair:
    return AxesPair(overlap(corrected, axes), bound, 0.02, (0.81, 0.64), Chance(0.1, 0.3), 100)


def means_of(corrected: float, bound: float = 0.01, halves: tuple[float, float] = (0.81, 0.64)) -> MeansPair:
    return MeansPair(overlap(corrected), bound, halves)


def said(pair: AxesPair | None, means: MeansPair | None, claim: Claim | None = None) -> list[str]:
    """Of corpora a and b at layer 4; the claim is of a without the mean of b."""
    halves = (Level(0.1, 0.0125, 50, 0, 0, 1.0), Level(0.2, 0.025, 50, 0, 0, 1.0))
    found = Corpora("m", ((None, means), (means, None)), halves, ((None, claim), (None, None)))
    pairs, stderr = ((None, pair), (pair, None)), ((math.nan, 0.0225), (math.nan, math.nan))
    return list(found.summary(("a", "b"), 4, pairs, stderr))


def test_what_axis_and_mean_do_is_told_with_their_numbers() -> None:
    (words,) = said(axes_of(0.64), means_of(0.995))
    assert words == (
        "From a to b the axis of m at layer 4 moves with the corpus: |cos| 0.80 (from 0.79 to 0.81 with its error), "
        "and two halves of one corpus have 0.80 to 0.90; the mean stays: |cos| 0.997 (from 0.992 to 1.000 with its "
        "error), and halves have 0.800 to 0.900."
    )
    (words,) = said(axes_of(0.64, 0.5, axes=3), means_of(0.9))
    assert "the space of the top 3 axes of m at layer 4 is not told to stay or to move: overlap 0.64" in words
    assert "the mean moves with the corpus, but stays above |cos| 0.9: |cos| 0.949" in words


def test_a_mean_stays_where_its_interval_ends_at_one() -> None:
    (words,) = said(axes_of(0.64), means_of(0.875, 0.0625))
    assert "the mean moves with the corpus, but stays above |cos| 0.9" in words
    (words,) = said(axes_of(0.64), means_of(0.9375, 0.0625))
    assert "the mean stays" in words


def test_the_interval_of_a_cosine_is_from_zero_to_one() -> None:
    assert means_of(0.01, 0.04).in_words().startswith("|cos| 0.100 (from 0.000 to 0.224 with its error)")
    assert means_of(0.9409, 0.1).in_words().startswith("|cos| 0.970 (from 0.917 to 1.000 with its error)")


@pytest.mark.parametrize(
    ("pair", "means"),
    [
        (axes_of(0.64, math.nan), means_of(0.9)),
        (axes_of(math.nan), means_of(0.9)),
        (replace(axes_of(0.64), halves=(0.9, math.nan)), means_of(0.9)),
        (axes_of(0.64), means_of(0.9, math.nan)),
        (axes_of(0.64), means_of(math.nan)),
        (axes_of(0.64), means_of(0.9, halves=(math.nan, 0.9))),
    ],
)
def test_one_number_that_is_not_known_and_sentences_are_too_few(pair: AxesPair, means: MeansPair) -> None:
    assert said(pair, means) == [
        "a and b have too few sentences to tell whether the axis and the mean of m at layer 4 move with the corpus."
    ]


def test_of_what_was_not_compared_nothing_is_said() -> None:
    assert said(None, means_of(0.9)) == said(axes_of(0.9), None) == said(None, None) == []


@pytest.mark.parametrize(
    ("estimate", "margin", "words"),
    [
        (0.2, 0.0, "a mean cosine of 0.2000 (s.e. 0.0225), more than that"),
        (0.05, 0.0, "a mean cosine of 0.0500 (s.e. 0.0225), less than that"),
        (0.11, 0.1, "a mean cosine of 0.1100 (s.e. 0.0225), as much as that"),
        (0.11, 0.0, "a mean cosine of 0.1100 (s.e. 0.0225), not told from that"),
    ],
)
def test_what_another_mean_leaves_is_told_beside_that_of_its_own_half(
    estimate: float, margin: float, words: str
) -> None:
    (told,) = said(None, None, Claim(estimate, 0.1, 0.02, margin))
    assert told == (
        f"Subtracting the mean of b leaves a {words} of another half of its own sentences (0.1000, s.e. 0.0125)."
    )


@pytest.mark.parametrize("numbers", [(math.nan, 0.1, 0.02), (0.2, math.nan, 0.02), (0.2, 0.1, math.nan)])
def test_what_another_mean_leaves_is_not_told_where_a_number_is_not_known(numbers: tuple[float, float, float]) -> None:
    assert said(None, None, Claim(*numbers)) == []


def test_three_corpora_are_told_two_by_two() -> None:
    pair, means, claim = axes_of(0.64), means_of(0.9), Claim(0.2, 0.1, 0.02)
    three = range(3)
    halves = tuple(Level(0.1, 0.01, 50, 0, 0, 1.0) for _ in three)
    apart = tuple(tuple(None if i == j else means for j in three) for i in three)
    carried = tuple(tuple(None if i == j else claim for j in three) for i in three)
    found = Corpora("m", apart, halves, carried)
    words = list(found.summary("abc", 4, [[pair] * 3] * 3, ((0.01,) * 3,) * 3))
    assert [line[: len("From a to b")] for line in words[:3]] == ["From a to b", "From a to c", "From b to c"]
    assert [line[len("Subtracting the mean of ") :][:10] for line in words[3:]] == [
        *("b leaves a", "c leaves a", "a leaves b", "c leaves b", "a leaves c", "b leaves c")
    ]


def test_json_has_every_pair_and_null_for_none() -> None:
    halves = (Level(0.1, 0.01, 50, 0, 0, 1.0), Level(0.2, 0.02, 60, 0, 0, 1.0))
    means = means_of(0.5, 0.125)
    data = Corpora("m", ((None, means), (means, None)), halves, ((None, Claim(0.2, 0.1, 0.02)), (None, None))).to_dict()
    one: dict[str, object] = {
        "value": 0.6,
        "corrected": 0.5,
        "stderr": 0.005,
        "noise": 0.1,
        "low": 0.375,
        "high": 0.625,
    }
    one |= {"halves": [0.81, 0.64], "verdict": "differ"}
    assert data == {
        "model": "m",
        "means": [[None, one], [one, None]],
        "centered_halves": [level.to_dict() for level in halves],
        "carried": [[None, {"estimate": 0.2, "null": 0.1, "bound": 0.02, "verdict": "greater"}], [None, None]],
    }


@pytest.mark.parametrize(("corrected", "verdict"), [(0.83, "share"), (0.79, "differ"), (0.815, "undecided")])
def test_means_share_a_direction_above_a_cosine_of_nine_tenths(corrected: float, verdict: str) -> None:
    assert means_of(corrected).verdict == verdict
