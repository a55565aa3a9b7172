"""The t distribution against scipy, Holm's correction against its definition."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.statistics.significance import correlation_claims, holm, student_bound, student_p_value


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 62, 63, 126])
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.1, 0.5, 1.0, 1.96, 3.0, 8.0, 30.0])
def test_p_value_is_scipys(degrees: int, t: float) -> None:
    wanted = 2 * scipy.stats.t.sf(t, degrees)
    assert student_p_value(t, degrees) == pytest.approx(wanted, rel=1e-10, abs=0)
    assert student_p_value(-t, degrees) == student_p_value(t, degrees)


def test_p_value_far_out_is_that_of_many_digits() -> None:
    # P = I_x(ν/2, ½) at x = ν/(ν + t²)
    with mpmath.workdps(40):
        wanted = mpmath.betainc(31.5, 0.5, 0, mpmath.mpf(63) / (63 + 1000**2), regularized=True)
    assert student_p_value(1000.0, 63) == pytest.approx(float(wanted), rel=1e-9, abs=0)
    assert student_p_value(math.inf, 63) == 0
    with pytest.raises(ValueError, match="degrees: got 0"):
        student_p_value(1.0, 0)
    with pytest.raises(ValueError, match="t: got nan"):
        student_p_value(math.nan, 3)


def test_a_bound_is_that_of_as_many_estimates_as_are_judged_together() -> None:
    assert student_bound(2.0, 1) == pytest.approx(2 * math.tan(0.475 * math.pi), rel=1e-9)  # ν = 1: Cauchy's
    wanted = 0.5 * scipy.stats.t.ppf(0.5 + 0.95 ** (1 / 3) / 2, 7)  # Šidák's level for three
    assert student_bound(0.5, 7, 3) == pytest.approx(wanted, rel=1e-9)
    assert math.isnan(student_bound(0.5, 0))


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_procedure_rejects(p_values: list[float], alpha: float) -> None:
    adjusted = holm(p_values)
    known = sorted(p for p in p_values if not math.isnan(p))
    rejected = 0
    while rejected < len(known) and (len(known) - rejected) * known[rejected] <= alpha:
        rejected += 1
    assert sum(p <= alpha for p in adjusted if not math.isnan(p)) == rejected
    assert [math.isnan(p) for p in adjusted] == [math.isnan(p) for p in p_values]
    assert all(not q < p for p, q in zip(p_values, adjusted, strict=True))


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p_values: got \[1.5, -0.1\]; each must be between 0 and 1"):
        holm([0.5, 1.5, -0.1])
    assert holm([0.0, 0.7, 1.0]) == [0, 1, 1]


@pytest.mark.parametrize("n", [3, 5, 10, 50])
def test_variables_without_a_relation_go_together_as_rarely_as_promised(n: int) -> None:
    generator, rounds, false = np.random.default_rng(n), 1000, 0
    for _ in range(rounds):
        axis, *others = generator.standard_normal((4, n))
        r = {str(at): float(np.corrcoef(axis, other)[0, 1]) for at, other in enumerate(others)}
        false += any(claim.differs for claim in correlation_claims(r, n, margin=0.0).values())
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], rounds, 0.05) / rounds
    assert low <= false / rounds <= high


def test_a_correlation_that_is_not_known_is_no_test() -> None:
    alone = correlation_claims({"a": 0.5}, n=12, margin=0.0)["a"]
    assert correlation_claims({"a": 0.5, "b": math.nan}, n=12, margin=0.0)["a"].bound == alone.bound
    assert alone.bound == pytest.approx(0.5760, abs=1e-4)  # of tables of r for 10 degrees of freedom
    assert correlation_claims({"a": 0.5, "b": 0.1}, n=12, margin=0.0)["a"].bound > 0.62


def test_a_relation_is_told_and_few_rows_tell_none() -> None:
    (claim,) = correlation_claims({"length": -0.6}, 50, margin=0.3).values()
    assert claim.verdict == "less"
    assert claim.bound == pytest.approx(0.2787, abs=1e-4)  # of tables: ν = 48, two-sided 5 %
    found = correlation_claims({"length": -0.99, "norm": math.nan}, 3, margin=0.3)
    assert [one.verdict for one in found.values()] == ["undecided", "undecided"]
    assert correlation_claims({"norm": 1.0}, 2, margin=0.3)["norm"].verdict == "undecided"
    assert math.isnan(correlation_claims({"norm": math.nan}, 50, margin=0.3)["norm"].bound)
