"""Cosines and angles of directions, and the distribution of |cos| of random ones, against scipy and mpmath."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cone_kernels.statistics.directions import (
    axis_cosine,
    principal_angles,
    random_cosine_mean,
    random_cosine_p_value,
    random_cosine_quantile,
)
from tests.support.moment_cases import normal

DIMS = [2, 3, 4, 5, 16, 63, 384, 768, 1024, 4096]
COSINES = [1e-12, 1e-6, 1e-3, 0.01, 0.0249, 0.03, 0.0612, 0.1, 0.3, 0.5, 0.9, 0.99, 1 - 1e-6, 1 - 1e-12]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_axis_cosine_is_that_of_float64(dtype: torch.dtype) -> None:
    a, b = (normal(384, seed=seed, dtype=torch.float64).to(dtype) for seed in (1, 2))
    x, y = a.double().numpy(), b.double().numpy()
    wanted = abs(x @ y) / (np.linalg.norm(x) * np.linalg.norm(y))
    assert axis_cosine(a, b) == pytest.approx(wanted, rel=1e-14, abs=0)
    assert axis_cosine(a, -4 * b) == pytest.approx(wanted, rel=1e-14, abs=0)
    assert axis_cosine(a, a) == pytest.approx(1, abs=1e-15)
    assert axis_cosine(a * 2.0**-20, b) == pytest.approx(wanted, rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.ones(3), torch.ones(4), "got widths 3 and 4; .* have no angle. .* `functional_cosine`"),
        (torch.ones(3), torch.zeros(3), "b: got a vector of length 0.0"),
        (torch.tensor([1.0, math.nan]), torch.ones(2), "a: got a vector of length nan"),
        (torch.tensor([1.0, math.inf]), torch.ones(2), "a: got a vector of length inf"),
        (torch.ones(3, 1), torch.ones(3), r"got shapes \(3, 1\) and \(3,\)"),
        (torch.ones(3), torch.ones(3, 1), r"got shapes \(3,\) and \(3, 1\)"),
    ],
)
def test_what_has_no_cosine_is_refused(a: Tensor, b: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        axis_cosine(a, b)


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 40), data=st.data())
def test_principal_angles_are_scipys(d: int, data: st.DataObject) -> None:
    k, length = (data.draw(st.integers(1, d)) for _ in range(2))
    seed = data.draw(st.integers(0, 1000))
    # A basis and its neighbourhood, so that small, large and right angles all come.
    a = normal(k, d, dtype=torch.float64, seed=seed, shift=0)
    b = data.draw(st.sampled_from([1e-3, 1e-1, 10.0])) * normal(length, d, dtype=torch.float64, seed=seed + 1, shift=0)
    b[: min(k, length)] += a[: min(k, length)]
    wanted = np.degrees(scipy.linalg.subspace_angles(a.numpy().T, b.numpy().T))[::-1]
    found = principal_angles(a, b)
    # Where large and small angles mix, scipy takes small ones from cosines, of d roundings: 1 - d·eps.
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=np.degrees(np.sqrt(2 * d * np.finfo(float).eps)))
    np.testing.assert_allclose(principal_angles(b, a).numpy(), found.numpy(), rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    angles=st.lists(st.sampled_from([0, 1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.7, math.pi / 4, 1.2, math.pi / 2]), max_size=6),
    extra=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_angles_that_are_known_keep_their_digits(angles: list[float], extra: int, seed: int) -> None:
    angles = sorted([*angles, 0.5])
    k = len(angles)
    space = torch.linalg.qr(normal(60, 2 * k + extra, dtype=torch.float64, shift=0, seed=seed)).Q.mT
    radians = torch.tensor(angles, dtype=torch.float64)[:, None]
    turned = radians.cos() * space[:k] + radians.sin() * space[k : 2 * k]
    # Any basis of the subspaces will do, and one of them may be larger.
    mixed = (torch.eye(k, dtype=torch.float64) + normal(k, k, dtype=torch.float64, seed=seed) / (4 * k)) @ turned
    larger = torch.cat([space[:k], space[2 * k :]])
    wanted = np.degrees(angles)
    # Nor does it matter how long the rows are.
    for found in (principal_angles(larger, mixed), principal_angles(mixed, larger * 1e-12)):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.eye(3), torch.eye(4), "got widths 3 and 4"),
        (torch.ones(3), torch.eye(3), r"got shapes \(3,\) and \(3, 3\)"),
        (torch.eye(3), torch.ones(1, 3, 3), r"got shapes \(3, 3\) and \(1, 3, 3\)"),
        (torch.ones(2, 3), torch.eye(3), "2 rows that are linearly dependent"),
        (torch.zeros(1, 3), torch.eye(3), "1 rows that are linearly dependent"),
        (torch.full((1, 3), math.nan), torch.eye(3), "linearly dependent or not finite"),
        (torch.ones(4, 3), torch.eye(3), "4 rows of width 3"),
        (torch.ones(0, 3), torch.eye(3), "0 rows of width 3"),
    ],
)
def test_what_spans_no_subspace_is_refused(a: Tensor, b: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        principal_angles(a, b)


@pytest.mark.parametrize("dim", [1, *DIMS])
def test_mean_of_random_cosines(dim: int) -> None:
    with mpmath.workdps(30):
        half = mpmath.mpf(dim) / 2
        wanted = float(mpmath.gamma(half) / (mpmath.sqrt(mpmath.pi) * mpmath.gamma(half + mpmath.mpf(1) / 2)))
    assert random_cosine_mean(dim) == pytest.approx(wanted, rel=2e-14, abs=0)


@pytest.mark.parametrize("dim", DIMS)
def test_p_values_are_those_of_the_beta_distribution(dim: int) -> None:
    for cosine in COSINES:
        # Of the two arguments, c² and 1 − c², the smaller one is the one that float64 holds exactly enough.
        if cosine < 0.5:
            wanted = scipy.special.betaincc(0.5, (dim - 1) / 2, cosine * cosine)
        else:
            wanted = scipy.special.betainc((dim - 1) / 2, 0.5, (1 - cosine) * (1 + cosine))
        assert random_cosine_p_value(cosine, dim) == pytest.approx(wanted, rel=1e-12, abs=1e-300)
    assert random_cosine_p_value(0.0, dim) == 1
    assert random_cosine_p_value(1.0, dim) == 0
    assert random_cosine_p_value(1 + 2e-16, dim) == 0


@settings(max_examples=100, deadline=None)
@given(dim=st.integers(2, 5000), cosines=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_p_values_fall(dim: int, cosines: tuple[float, float]) -> None:
    low, high = sorted(cosines)
    assert 0 <= random_cosine_p_value(high, dim) <= random_cosine_p_value(low, dim) * (1 + 1e-12) <= 1 + 1e-12


@pytest.mark.parametrize("dim", DIMS)
def test_quantiles_are_those_of_the_beta_distribution(dim: int) -> None:
    for q in (0.05, 0.5, 0.95, 0.999):
        wanted = math.sqrt(scipy.stats.beta(0.5, (dim - 1) / 2).ppf(q))
        assert random_cosine_quantile(q, dim) == pytest.approx(wanted, rel=1e-11, abs=0)
        assert random_cosine_p_value(random_cosine_quantile(q, dim), dim) == pytest.approx(1 - q, rel=1e-9, abs=0)


def test_random_directions_do_as_is_said() -> None:
    rows = normal(2, 100_000, 24, dtype=torch.float64, shift=0)
    unit = rows / rows.norm(dim=-1, keepdim=True)
    cosines = (unit[0] * unit[1]).sum(-1).abs()
    # Five standard errors each.
    assert float(cosines.mean()) == pytest.approx(random_cosine_mean(24), abs=5 * float(cosines.std()) / 100_000**0.5)
    above = float((cosines >= random_cosine_quantile(0.95, 24)).double().mean())
    assert above == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / 100_000) ** 0.5)


def test_one_dimension_has_one_axis() -> None:
    assert (random_cosine_mean(1), random_cosine_quantile(0.95, 1), random_cosine_p_value(1.0, 1)) == (1, 1, 1)
    assert random_cosine_p_value(1 + 2e-16, 1) == 0


def test_arguments_out_of_range_are_refused() -> None:
    for call in (
        lambda: random_cosine_mean(0),
        lambda: random_cosine_p_value(0.5, -1),
        lambda: random_cosine_quantile(0.5, 0),
    ):
        with pytest.raises(ValueError, match="dim: got"):
            call()
    for cosine in (-0.1, math.nan):
        with pytest.raises(ValueError, match="cosine: got"):
            random_cosine_p_value(cosine, 3)
    for q in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="q: got"):
            random_cosine_quantile(q, 3)
