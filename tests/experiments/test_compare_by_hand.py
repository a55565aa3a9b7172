"""Directions, pairing and p values of two states, on rows so few and so plain that the numbers are known."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from cone_kernels import ConeState
from cone_kernels.experiments.compare import _change, compare
from cone_kernels.experiments.compare_result import RESOLUTION, ComparedLayer
from cone_kernels.statistics.estimates import Estimates
from tests.experiments.test_compare import INFO, state_of, vectors_state
from tests.support.moment_cases import normal

pytestmark = pytest.mark.usefixtures("one_thread")


def crossed(*variances: float, mean: tuple[float, ...], times: int = 8) -> Tensor:
    """Rows at ± each axis, with these variances (of n − 1), around a mean."""
    n = 2 * len(variances) * times
    axes = torch.diag(torch.tensor(variances, dtype=torch.float64).mul((n - 1) / (2 * times)).sqrt())
    return torch.cat([axes, -axes]).repeat(times, 1) + torch.tensor(mean, dtype=torch.float64)


def row_of(a: Tensor, b: Tensor) -> ComparedLayer:
    return compare(vectors_state(a), vectors_state(b)).layers[0]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_sampling_of_axes_and_means_is_that_of_both_states(scale: float) -> None:
    """λ₁(tr C − λ₁)/(n(λ₁ − λ₂)²), and (E‖x‖² − ‖m‖²)/(n‖m‖²); of vectors of any length the same."""
    first, second = crossed(5.0, 1.0, 0.5, mean=(0, 1, 1)), crossed(4.0, 2.0, 1.0, mean=(0, 0, 2))
    row = row_of(scale * first, scale * second)
    n = 48
    assert row.axis.cosine == pytest.approx(1, abs=1e-6)
    assert row.axis.sampling == pytest.approx(5 * 1.5 / (n * 4**2) + 4 * 3 / (n * 2**2), rel=1e-5)
    assert row.mean.cosine == pytest.approx(math.sqrt(0.5), rel=1e-6)
    within = [total * (n - 1) / n for total in (6.5, 7.0)]
    assert row.mean.sampling == pytest.approx(within[0] / (n * 2) + within[1] / (n * 4), rel=1e-5)


def test_vectors_of_width_one_have_an_axis_and_equal_variances_have_none() -> None:
    one = row_of(crossed(2.0, mean=(1,)), crossed(0.25, mean=(3,)))
    assert (one.axis.cosine, one.axis.sampling) == (1.0, 0.0)
    assert row_of(crossed(2.0, 2.0, mean=(1, 0)), crossed(2.0, 1.0, mean=(1, 0))).axis.sampling == math.inf


ALONG = torch.tensor([[1.0, 0], [-3, 0]]).repeat_interleave(24, 0)  # their units cancel, and they do not
TWICE = torch.tensor([[2.0, 0], [-1, 0], [-1, 0]]).repeat(16, 1)  # they cancel, and their units do not
NEITHER = torch.tensor([[1.0, 0], [-1, 0]]).repeat(24, 1)
OTHER = normal(48, 2)


@pytest.mark.parametrize("rows", [ALONG, TWICE, NEITHER])
def test_a_mean_that_is_zero_has_no_direction(rows: Tensor) -> None:
    for pair in ((rows, OTHER), (OTHER, rows)):
        mean = row_of(*pair).mean
        assert math.isnan(mean.cosine)
        assert mean.overlap is None


def test_a_short_mean_has_one() -> None:
    # The sum of the units is (0.2, 0.6).
    few = torch.tensor([[1.0, 0], [-0.8, 0.6]])
    mean = row_of(few, few.flip(1)).mean
    assert mean.overlap is not None
    assert mean.overlap.value == pytest.approx((2 * 0.2 * 0.6 / 0.4) ** 2, rel=1e-6)


def test_directions_are_judged_together_with_those_of_layers_that_have_one() -> None:
    rows = torch.stack([normal(48, 4, seed=1), normal(48, 4, seed=2), torch.cat([OTHER, -OTHER], 1)])[:, :, None]
    rows[2, 1::2] = -rows[2, ::2]
    found = compare(
        state_of(rows), state_of(rows + torch.tensor([0.1, 0, 0, 0]) * torch.tensor([1, 1, 0])[:, None, None, None])
    )
    first, second, none = (row.mean for row in found.layers)
    assert none.overlap is None
    for mean in (first, second):
        assert mean.overlap is not None
        # Two of them (Šidák).
        t = scipy.stats.t.ppf(0.5 + 0.95**0.5 / 2, mean.overlap.degrees)
        assert mean.bound == pytest.approx(mean.overlap.stderr * t, rel=1e-9)


def test_why_states_are_paired_or_not_is_told() -> None:
    rows = normal(48, 4)
    asked = compare(vectors_state(rows), vectors_state(rows + 1), paired=False)
    assert (asked.paired, asked.pairing) == (False, "as asked for")
    assert asked.manifest["options"] == {"paired": False, "alpha": 0.05}
    same = compare(vectors_state(rows), vectors_state(rows + 1))
    assert (same.paired, same.pairing) == (True, "the states have the same numbers of vectors in every jackknife group")
    fewer = compare(vectors_state(rows), vectors_state(rows[:47]))
    assert (fewer.paired, fewer.pairing) == (
        False,
        "the states have other numbers of vectors in their jackknife groups",
    )
    hidden = normal(2, 40, 3, 4)
    layers = compare(state_of(hidden), state_of(hidden + 1))
    assert layers.pairing == "the states have the same numbers of sentences and tokens in every jackknife group"


def test_tokens_that_one_state_left_out_tell_nothing_of_the_sentences() -> None:
    hidden = normal(2, 40, 3, 4)
    # One is zero and one is not finite, in one group; in the first layer alone.
    holed = hidden.clone()
    holed[0, 7, 0], holed[0, 7, 1, 2] = 0, math.nan
    for one in (holed, holed.flip(0)):  # or in the last
        assert compare(state_of(hidden), state_of(one)).paired
        assert compare(state_of(one), state_of(hidden)).paired


def test_a_key_that_either_state_lacks_is_no_difference() -> None:
    hidden = normal(2, 40, 3, 4)
    for info in ({}, {"model": {"architecture": "BertModel"}}):
        pair: tuple[ConeState, ConeState] = state_of(hidden, info=info), state_of(hidden + 1, info=INFO)
        assert len(compare(*pair).layers) == len(compare(*pair[::-1]).layers) == 2


def test_an_adjusted_p_value_of_alpha_is_significant() -> None:
    rows = normal(48, 4)
    states = vectors_state(rows), vectors_state(rows + 0.05 * normal(48, 4, seed=3))
    p = compare(*states).layers[0].sentence.p_adjusted
    assert 0 < p < 1
    at, below = (compare(*states, alpha=alpha).layers[0].sentence.significant for alpha in (p, 0.99 * p))
    assert (at, below) == (True, False)


def test_a_difference_of_what_rounding_makes_is_not_significant() -> None:
    zero, error = torch.zeros(2, dtype=torch.float64), torch.full((2,), 1e-9)
    differences = torch.tensor([RESOLUTION, 2 * RESOLUTION], dtype=torch.float64)
    two = Estimates.of_errors(zero, error), Estimates.of_errors(differences, error)
    assert [change.significant for change in _change(*two, paired=False, alpha=0.05)] == [False, True]


def test_degrees_of_freedom_are_rounded_down_and_zero_where_there_are_none() -> None:
    degrees = torch.tensor([2.9, 3.0, -0.5, math.nan, math.inf], dtype=torch.float64)
    zero = Estimates(torch.zeros(5).double(), torch.ones(5, 4).double(), degrees)
    assert [one.degrees_of_freedom for one in _change(zero, zero, paired=True, alpha=0.05)] == [2, 3, 0, 0, 0]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (math.nan, 0.5, "it has no value in a: there is no pair to take it of"),
        (0.5, math.nan, "it has no value in b: there is no pair to take it of"),
        (math.nan, math.nan, "it has no value in a and b: there is no pair to take it of"),
    ],
)
def test_what_is_not_defined_has_its_reason(a: float, b: float, words: str) -> None:
    def one(value: float, error: float = 0.1, degrees: float = 7.0) -> Estimates:
        numbers = (torch.tensor([[number]], dtype=torch.float64) for number in (value, error, degrees))
        values, deviations, free = numbers
        return Estimates(values[0], deviations, free[0])

    assert _change(one(a), one(b), paired=True, alpha=0.05)[0].reason == words
    assert _change(one(0.1), one(0.2, math.nan), paired=True, alpha=0.05)[0].reason == (
        "stderr: the jackknife needs two groups that leave pairs behind"
    )
    assert _change(one(0.1), one(0.2, 0.3, 1.0), paired=True, alpha=0.05)[0].reason == (
        "p_value: fewer than three groups of eight sentences, or of documents, tell nothing"
    )
    assert _change(one(0.1), one(0.2, 0.3), paired=True, alpha=0.05)[0].reason is None
