"""The ops in plain float64 torch, whole shapes on the device: what the benchmark's results are checked with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cone_kernels.sums import GROUPS, jackknife_groups

_ROWS = 65_536  # at once


def pool_moments_error(found: Any, hidden: Tensor, mask: Tensor) -> float:
    """The largest error of `pool_moments` of hidden (L, B, T, D), of the largest entry of each sum; pooled is asserted.

    Every token under the mask (B, T) is finite and not zero, and each sentence has one.
    """
    worst = 0.0
    for layer in range(len(hidden)):
        pooled, sums = _layer_moments(hidden[layer], mask)
        torch.testing.assert_close(found.pooled[layer].double(), pooled, rtol=3e-7, atol=3e-7)
        for name, exact in sums.items():
            got = found.sums[name][layer]
            if exact.dtype == torch.int64:
                assert torch.equal(got, exact), (name, layer)
            else:
                worst = max(worst, float((got - exact).abs().max() / exact.abs().max()))
    assert int(found.status.max()) == 0
    return worst


def _layer_moments(hidden: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Pooled (B, D), and the sums of the token level of one layer (B, T, D)."""
    x = torch.where(mask[..., None], hidden.double(), 0.0)
    norm = torch.linalg.vector_norm(x, dim=-1)  # (B, T)
    u = x / torch.where(mask, norm, 1.0)[..., None]
    sizes = mask.sum(1)  # (B,)
    of_sentence = u.sum(1)  # (B, D)
    groups = jackknife_groups(torch.arange(len(mask), device=mask.device))

    def by_group(values: Tensor) -> Tensor:
        return values.new_zeros((GROUPS, *values.shape[1:])).index_add_(0, groups, values)

    return x.sum(1) / sizes[:, None], {
        "count": by_group(sizes),
        "n_zero": by_group(torch.zeros_like(sizes)),
        "n_nonfinite": by_group(torch.zeros_like(sizes)),
        "unit_sum": by_group(of_sentence),
        "unit_sq_total": by_group(u.square().sum((1, 2))),
        "unit_sq_sum": u.square().sum((0, 1)),
        "sum": x.sum((0, 1)),
        "sq_sum": x.square().sum((0, 1)),
        "norm_sum": norm.sum(),
        "norm_sq_sum": x.square().sum(),
        "sentence_sq_sum": by_group(of_sentence.square().sum(1)),
        "sentence_size_sq_sum": by_group(sizes.double().square()),
        "n_sentences": by_group(torch.ones_like(sizes)),
        "sentence_unit_sum": by_group(torch.nn.functional.normalize(of_sentence, dim=1)),
        "n_cancelled": by_group(torch.zeros_like(sizes)),
    }


def mean_pairwise_cosine(x: Tensor) -> Tensor:
    """The mean cosine of pairs of rows of x (n, d), none of them zero."""
    unit_sum, total = unit_sums(x)
    n = len(x)
    return (unit_sum.square().sum() - total) / (n * (n - 1))


def unit_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Σ u (d,) and Σ ‖u‖² of the rows of x (n, d)."""
    unit_sum, total = (torch.zeros(shape, dtype=torch.float64, device=x.device) for shape in (x.shape[1:], ()))
    for rows in x.split(_ROWS):
        u = torch.nn.functional.normalize(rows.double(), dim=-1)
        unit_sum += u.sum(0)
        total += u.square().sum()
    return unit_sum, total


def cosine_gradient_error(gradient: Tensor, x: Tensor, unit_sum: Tensor) -> float:
    """The largest error of the gradient of `mean_pairwise_cosine` at x (n, d), of its largest entry."""
    n, worst, largest = len(x), 0.0, 0.0
    for got, rows in zip(gradient.split(_ROWS), x.split(_ROWS), strict=True):
        norm = torch.linalg.vector_norm(rows.double(), dim=-1, keepdim=True)
        u = rows.double() / norm
        exact = 2 / (n * (n - 1)) / norm * (unit_sum - (u @ unit_sum)[:, None] * u)
        worst = max(worst, float((got - exact).abs().max()))
        largest = max(largest, float(exact.abs().max()))
    return worst / largest


def pool_gradient_error(gradient: Tensor, grad: Tensor, mask: Tensor) -> float:
    """The largest error of the gradient (L, B, T, D) of pooling for grad (L, B, D), of its largest entry."""
    worst, largest = 0.0, 0.0
    for got, one in zip(gradient, grad, strict=True):
        share = one.double() / mask.sum(1)[:, None]
        exact = torch.where(mask[..., None], share[:, None], 0.0)
        worst = max(worst, float((got - exact).abs().max()))
        largest = max(largest, float(exact.abs().max()))
    return worst / largest


def second_moment_error(moment: Tensor, x: Tensor) -> float:
    """The largest error of the upper triangle of Σ x xᵀ (d, d) of rows x (n, d), of its largest entry."""
    exact = (x.double().mT @ x.double()).triu()
    return float((moment - exact).abs().max() / exact.abs().max())


def residual(vectors: Tensor, values: Tensor, covariance: Tensor) -> float:
    """The largest ‖C v − λ v‖/λ_1 of vectors (..., k, d) and values (..., k)."""
    rest = vectors @ covariance.double() - values[..., None] * vectors
    return float((torch.linalg.vector_norm(rest, dim=-1) / values[..., :1]).max())
