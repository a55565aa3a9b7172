"""What n rows say of all of their kind: against the sums over distinct rows, heavy tails, known biases, words."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels import Moments, metrics
from cone_kernels.experiments.population_claims import geometry_in_words
from cone_kernels.metrics import Geometry
from cone_kernels.state.file import StateFileError
from cone_kernels.statistics.population import Population, _fourth_power, population
from tests.support.moment_cases import normal


def geometry_of(x: Tensor) -> Geometry:
    moments = Moments.empty("sentence", [0], x.shape[1], second_moment=True)
    moments.update(x)
    found = metrics.geometry(moments)
    assert found is not None
    return found


def heavy_tailed(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randn(n, 10, dtype=torch.float64, generator=generator).square().mean(1, keepdim=True)
    return torch.randn(n, d, dtype=torch.float64, generator=generator) / lengths.sqrt() + 0.5


@pytest.mark.parametrize(("spread", "known"), [(1.0, True), (0.5, False)])
def test_fourth_powers_around_a_mean_far_from_zero_are_not_told_from_rounding(spread: float, known: bool) -> None:
    """Σ(x − m)⁴ = n·s⁴ of x = m ± s, where Σx⁴ is about n·m⁴: a part of 1e-8, and of 6e-10."""
    x = 100 + spread * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20)[:, None]
    sums = {"sum": x.sum(0), "cubic_sum": (x**3).sum(0), "quartic_sum": (x**4).sum()}
    found = _fourth_power(x.mT @ x, sums, len(x))
    assert found == pytest.approx(40 * spread**4, rel=1e-3) if known else math.isnan(found)


def test_the_corrected_ratio_is_that_of_sums_over_distinct_rows() -> None:
    """Products of one, two, three and four distinct rows: each has the population's own value on average."""
    x = heavy_tailed(20, 5, 1).numpy()
    n, products = len(x), x @ x.T
    i, j, k, m = np.ogrid[:n, :n, :n, :n]
    pairs, threes = i != j, (i != j) & (i != k) & (j != k)
    fours = threes & (i != m) & (j != m) & (k != m)
    two, three, four = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    p = products
    apart = pairs[:, :, 0, 0]
    ij_kl = (p[i, j] * p[k, m] * fours).sum() / four
    squares = (p**2 * apart).sum() / two - 2 * (p[i, j] * p[j, k] * threes).sum() / three + ij_kl
    own = p.diagonal()
    trace = (np.outer(own, own) * apart).sum() / two - 2 * (p[i, i] * p[j, k] * threes).sum() / three + ij_kl
    found = geometry_of(torch.from_numpy(x)).population
    assert found.participation_ratio == pytest.approx(trace / squares, rel=1e-9)
    # Its error is that of elliptical rows, to second order in 1/n.
    fourth = (np.linalg.norm(x - x.mean(0), axis=1) ** 4).sum() / (n - 1)
    kurtosis = fourth * n / (n - 1) / (trace + 2 * squares)
    s1, s2, s3, s4 = (np.linalg.eigvalsh(np.cov(x.T)) ** np.arange(1, 5)[:, None]).sum(1)
    variance = 8 * kurtosis / n * (s2 / s1**2 + s4 / s2**2 - 2 * s3 / (s1 * s2))
    variance += 2 * (3 * kurtosis**2 - 1) / (n - 1) ** 2
    assert found.participation_ratio_stderr == pytest.approx(trace / squares * np.sqrt(variance), rel=1e-9)


def test_it_holds_for_rows_of_heavy_tails_and_any_n() -> None:
    for n in (20, 100, 400):
        samples = [geometry_of(heavy_tailed(n, 60, seed)) for seed in range(60)]
        values = np.array([one.population.participation_ratio for one in samples])
        errors = np.array([one.population.participation_ratio_stderr for one in samples])
        assert np.median(values) == pytest.approx(60, rel=0.05)
        assert (np.abs(values - 60) <= 1.96 * errors).mean() >= 0.85
        assert np.mean([one.participation_ratio for one in samples]) < 60 / (1 + 25 / n)  # the plain one is far below
        score = samples[0].population
        assert score.iso_score == pytest.approx((score.participation_ratio - 1) / 59)
        assert score.iso_score_stderr == pytest.approx(score.participation_ratio_stderr / 59)


def test_the_error_is_the_spread_of_samples() -> None:
    scale = torch.arange(1, 41).double().rsqrt()
    generator = torch.Generator().manual_seed(3)
    # The spread of 100 is known to 7 %, a third of what is allowed.
    drawn = [torch.randn(120, 40, dtype=torch.float64, generator=generator) * scale for _ in range(100)]
    found = [geometry_of(x).population for x in drawn]
    spread = np.std([one.participation_ratio for one in found], ddof=1)
    assert np.mean([one.participation_ratio_stderr for one in found]) == pytest.approx(spread, rel=0.2)


def test_what_a_rank_lacks_is_its_known_bias() -> None:
    d, n = 50, 1000
    equal = geometry_of(normal(n, d, dtype=torch.float64)).population
    assert equal.effective_rank_lack == pytest.approx(d / (2 * n), rel=0.05)  # Page (1993)
    scale = torch.arange(1, d + 1).double().rsqrt()
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(n, d, dtype=torch.float64, generator=generator) * scale for _ in range(40)]
    found = [geometry_of(x) for x in drawn]
    # What an entropy owes to the first order of the columns' own squares is 0 on average: without it the mean of 40
    # draws is right to 1 %, and with it that of 200 only to 8 %.
    squares = {"effective_rank": [x.var(0) for x in drawn], "rank_me": [x.square().mean(0) for x in drawn]}
    for rank, power in {"effective_rank": 1.0, "rank_me": 0.5}.items():
        weights = scale.square() ** power
        shares = weights / weights.sum()
        truth = torch.special.entr(shares).sum()
        slope = -power * shares * (shares.log() + truth) / scale.square()
        owed = [float((one - scale.square()) @ slope) for one in squares[rank]]
        entropies = [math.log(one.values[rank]) - first for one, first in zip(found, owed, strict=True)]
        lacks = float(truth) - np.mean(entropies)
        assert np.mean([one.population.lack(rank).estimate for one in found]) == pytest.approx(lacks, rel=0.06)
        assert {one.population.lack(rank).verdict for one in found} == {"equal"}


@pytest.mark.parametrize("n", [2, 5, 19])
def test_of_few_rows_nothing_is_corrected_and_nothing_is_decided(n: int) -> None:
    found = geometry_of(heavy_tailed(n, 60, 0)).population
    assert math.isnan(found.participation_ratio)
    assert found.to_dict()["participation_ratio"] == {"value": None, "stderr": None}
    for rank in ("effective_rank", "rank_me"):
        assert found.lack(rank).verdict == "undecided"
        assert found.to_dict()[rank]["enough"] == "undecided"
        assert found.needed(rank) == 20


def test_of_as_many_rows_as_a_rank_has_directions_it_lacks_much() -> None:
    for n in (20, 40, 60):
        found = geometry_of(heavy_tailed(n, 60, 0)).population
        for rank in ("effective_rank", "rank_me"):
            assert found.lack(rank).verdict == "greater"
            assert found.to_dict()[rank]["enough"] == "no"
            assert (found.needed(rank) or 0) > n


def entropy_of(matrix: Tensor, power: float) -> Tensor:
    values = torch.linalg.eigvalsh(matrix) ** power
    return torch.special.entr(values / values.sum()).sum()


@pytest.mark.parametrize(("rank", "power"), [("effective_rank", 1.0), ("rank_me", 0.5)])
def test_what_a_rank_lacks_is_half_the_curvature_of_its_entropy(rank: str, power: float) -> None:
    """By autograd, for normal rows: entries of the sample matrix vary as the products of the whole one over n."""
    x = normal(40, 4, dtype=torch.float64, shift=0) * torch.tensor([4.0, 2.0, 1.5, 0.5], dtype=torch.float64)
    found = geometry_of(x)
    m = x.mT @ x if rank == "rank_me" else x.mT.cov()
    curvature = torch.autograd.functional.hessian(lambda matrix: entropy_of((matrix + matrix.mT) / 2, power), m)
    spread = torch.einsum("ik,jl->ijkl", m, m) + torch.einsum("il,jk->ijkl", m, m)
    wanted = -float((curvature * spread).sum()) / 2 / len(x)
    assert getattr(found.population, f"{rank}_lack") == pytest.approx(wanted, rel=1e-6)


def test_rows_that_have_no_shape_say_so() -> None:
    alike = geometry_of(torch.ones(30, 4)).population
    assert math.isnan(alike.participation_ratio)
    assert alike.to_dict()["effective_rank"] == {"lacks": None, "enough": "undecided"}
    # Σ‖x − m‖⁴ cannot be told from the rounding of Σ‖x‖⁴.
    far = heavy_tailed(100, 4, 0) + 1e5
    assert math.isnan(geometry_of(far).population.participation_ratio)
    near = geometry_of(heavy_tailed(100, 4, 0) + 60).population  # a ten-millionth of Σ‖x‖⁴ is left
    assert near.participation_ratio == pytest.approx(
        geometry_of(heavy_tailed(100, 4, 0)).population.participation_ratio
    )


def test_how_many_rows_are_needed() -> None:
    assert Population(100, effective_rank_lack=0.1).needed("effective_rank") == 280  # 0.1 and 0.4 of it, in 0.05
    assert Population(100, effective_rank_lack=0.01).needed("effective_rank") is None  # these are enough
    assert Population(100).needed("effective_rank") is None
    assert Population(20, rank_me_lack=0.05).needed("rank_me") == 28
    assert Population(19, rank_me_lack=0.05).needed("rank_me") == 20


def test_directions_in_which_nothing_varies_change_nothing() -> None:
    x = normal(40, 4, dtype=torch.float64, shift=0) * torch.tensor([4.0, 2.0, 1.5, 0.5], dtype=torch.float64)
    plain, wide = (geometry_of(rows).population for rows in (x, torch.nn.functional.pad(x, (0, 2))))
    for name in ("participation_ratio", "participation_ratio_stderr", "effective_rank_lack", "rank_me_lack"):
        assert getattr(wide, name) == pytest.approx(getattr(plain, name), rel=1e-9)
    assert wide.iso_score == pytest.approx((plain.participation_ratio - 1) / 5)
    assert wide.iso_score_stderr == pytest.approx(plain.participation_ratio_stderr / 5)
    one = geometry_of(x[:, :1]).population
    assert math.isnan(one.iso_score)
    assert math.isnan(one.iso_score_stderr)


@pytest.mark.parametrize("fourth", [100.0, 300.0])  # one of the two estimates is below zero, and both are
def test_an_estimate_below_zero_is_none(fourth: float) -> None:
    ones, none = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    sums = {"sum": none, "cubic_sum": none, "quartic_sum": torch.tensor(19 * fourth, dtype=torch.float64)}
    found = population(ones.diag(), 20 * ones.diag(), ones, 20 * ones, sums, 20)
    assert math.isnan(found.participation_ratio)
    assert math.isnan(found.participation_ratio_stderr)


def test_rows_spread_evenly_on_a_circle_have_no_error() -> None:
    """Of lighter tails than normal rows the sampling error vanishes to first order, and so does the second one."""
    angles = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    found = geometry_of(torch.stack([angles.cos(), angles.sin()], 1)).population
    assert found.participation_ratio_stderr == pytest.approx(0, abs=1e-6)


def test_every_value_that_grows_with_n_is_said_with_what_it_lacks() -> None:
    population = Population(300, 65.31, 2.41, 0.17, 0.01, effective_rank_lack=math.log(1.25), rank_me_lack=0.01)
    assert population.to_dict()["effective_rank"] == {"lacks": pytest.approx(0.2), "enough": "no"}  # 4 of 5 are there
    geometry = Geometry(52.9, 0.1, 0.069, 96.6, 199.9, population)
    said = list(geometry_in_words(geometry, "sentences", "the 300 sentences of layer 6"))
    assert said == [
        "Around their mean the 300 sentences of layer 6 spread as if evenly over 52.9 directions (participation ratio; "
        "corrected for n it is 65.3 ± 2.4, if the sentences are independent); the first principal axis holds 6.9% of "
        "the variance.",
        "Of what more sentences would give, their effective rank (96.6) lacks at least 20% and RankMe (199.9) lacks "
        "less than 5%: both grow with n, and are comparable at equal n, of 1,875 sentences or more.",
    ]
    few: dict[str, Any] = {"participation_ratio": math.nan, "effective_rank_lack": 0.04}
    first, second = geometry_in_words(replace(geometry, population=replace(population, **few)), "vectors", "they")
    assert "more vectors would give more, how much these do not tell" in first
    assert "lacks 4% or somewhat more" in second


def test_sums_of_fourth_order_are_the_same_bits_however_rows_are_batched(tmp_path: Path) -> None:
    x = heavy_tailed(1300, 7, 2).float()
    x[5] = torch.nan
    whole, cut = (Moments.empty("sentence", [0], 7, second_moment=True) for _ in range(2))
    whole.update(x)
    for part in x.split(170):
        cut.update(part)
    used = x[~x.isnan().any(1)].double()
    squares = used.square().sum(1, keepdim=True)
    for name, wanted in (("cubic_sum", (squares * used).sum(0)), ("quartic_sum", squares.square().sum())):
        assert torch.equal(whole.sums[name], cut.sums[name])
        torch.testing.assert_close(whole.sums[name][0], wanted, rtol=1e-12, atol=1e-10)
    whole.save(tmp_path / "m.safetensors")
    assert metrics.geometry(Moments.load(tmp_path / "m.safetensors")) == metrics.geometry(whole)
    identity = whole.identity() | {"fields": [name for name in whole.fields if name != "quartic_sum"]}
    tensors = {name: value for name, value in whole.sums.items() if name != "quartic_sum"}
    with pytest.raises(StateFileError, match="second_moment must have cubic_sum and quartic_sum with it"):
        Moments.restore("m", tensors, identity)
