"""The t distribution against scipy, Holm's correction against its definition."""

from __future__ import annotations

import math

import mpmath
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.statistics.significance import holm, student_p_value


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
    with pytest.raises(ValueError, match=r"p_values: got \[1.5\]"):
        holm([0.5, 1.5])
