"""Covariances of rows whose mean is far from zero keep their digits; rows that are all alike have no shape."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cone_kernels import ConeState, Moments, metrics
from tests.support.moment_cases import normal

D = 12


def of_rows(x: Tensor, batches: Sequence[int] = (700,), second_moment: bool = True) -> Moments:
    moments, start = Moments.empty("sentence", [0], x.shape[-1], second_moment=second_moment), 0
    while start < len(x):
        for size in batches:
            moments.update(x[start : start + size][None])
            start += size
    return moments


@pytest.mark.parametrize("shift", [0.0, 30.0, 1000.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_variance_loses_no_digits_to_the_mean(shift: float, dtype: torch.dtype) -> None:
    x = normal(6000, D, dtype=dtype, shift=shift)
    x[17] = torch.nan  # left out of every sum
    x[18] = 0
    kept = torch.cat([x[:17], x[19:]]).double()
    wanted = torch.cov(kept.mT)
    for moments in (of_rows(x), of_rows(x, (1, 64, 999)), of_rows(x[:2001]).merge(of_rows(x[2001:]))):
        found = metrics.covariance(moments)[0]
        assert float(((found - wanted).diagonal() / wanted.diagonal()).abs().max()) < 2e-7
        torch.testing.assert_close(metrics.iso_score(found), metrics.iso_score(wanted), rtol=1e-6, atol=0)
        torch.testing.assert_close(moments.sum[0], kept.sum(0), rtol=1e-14, atol=1e-14 * float(kept.abs().sum()))


def test_all_other_sums_are_those_of_a_state_without_second_moments() -> None:
    x = normal(900, D, shift=3.0)
    with_them, without = of_rows(x), of_rows(x, second_moment=False)
    for name in without.fields:
        if name != "sum":
            assert torch.equal(with_them.sums[name], without.sums[name]), name
    torch.testing.assert_close(with_them.sum, without.sum, rtol=1e-6, atol=0)


def test_the_sum_is_of_the_layers_and_sentences_that_count() -> None:
    hidden = [normal(5, 3, D, seed=layer, shift=1e3) for layer in range(3)]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 1]]).bool()
    state = ConeState.empty(layers=[3, 4, 5], dim=D, second_moment=True)
    for _ in range(2):
        state.update([hidden[2], hidden[0]], mask, layers=[5, 3])
    state.update(hidden, mask)
    for position, times in enumerate((3, 1, 3)):
        pooled = torch.stack([rows[kept].double().mean(0) for rows, kept in zip(hidden[position], mask, strict=True)])
        wanted = times * pooled[mask.any(1)].sum(0)
        # A sentence's mean is float32.
        torch.testing.assert_close(state.sentence.sum[position], wanted, rtol=1e-7, atol=0)


@pytest.mark.parametrize("n", [2, 50, 5000])
def test_rows_that_are_all_alike_have_no_shape(n: int) -> None:
    x = (normal(1, D) * 3 + 100).expand(n, D).contiguous()
    moments = of_rows(x)
    assert not metrics.covariance(moments).any()
    assert metrics.iso_score(metrics.covariance(moments)).isnan()
    assert metrics.iso_score(metrics.covariance(moments.merge(of_rows(x)))).isnan()
    assert metrics.covariance(of_rows(x[:1])).isnan().all()
