"""Uniformity and alignment against plain loops in float64, and their gradients."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from cone_kernels import alignment_loss, masked_mean_pool, uniformity_loss
from cone_kernels.loss.uniformity import _log_of_sum
from tests.loss.batches import MASK, STARTS, packed_and_padded
from tests.support.moment_cases import DTYPES, normal

PAIRS = torch.tensor([[0, 2], [1, 3], [2, 3]])


def unit(rows: Tensor) -> list[list[float]]:
    return [(row / row.norm()).tolist() for row in rows.detach().double()]


def plain_uniformity(rows: Tensor, t: float) -> float:
    units = unit(rows)
    terms = [math.exp(-t * math.dist(a, b) ** 2) for a, b in combinations(units, 2)]
    return math.log(sum(terms) / len(terms))


def plain_alignment(rows: Tensor, pairs: Tensor, alpha: float) -> float:
    units = unit(rows)
    return sum(math.dist(units[i], units[j]) ** alpha for i, j in pairs.tolist()) / len(pairs)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_is_the_plain_mean_over_pairs(t: float) -> None:
    rows = normal(17, 5, dtype=torch.float64)
    assert uniformity_loss(rows, t=t).item() == pytest.approx(plain_uniformity(rows, t), rel=1e-12)
    # As its authors write it.
    u = torch.nn.functional.normalize(rows, dim=1)
    assert uniformity_loss(rows, t=t).item() == pytest.approx(float(torch.pdist(u).square().mul(-t).exp().mean().log()))


def test_uniformity_of_far_points_does_not_underflow() -> None:
    assert uniformity_loss(torch.eye(3), t=1000.0).item() == pytest.approx(-2000)


@pytest.mark.parametrize("others", [[0, 1, 2, 3], [0, 1], [1]])
def test_of_the_rows_of_all_ranks_one_is_no_pair_with_itself(others: list[int]) -> None:
    rows, used = normal(4, 5, dtype=torch.float64), torch.tensor([True, True, False, True])
    units = torch.nn.functional.normalize(rows, dim=1)
    log, count = _log_of_sum(units[1:2], used[1:2], units[others], used[others], others.index(1), 1.5)
    terms = [math.exp(-1.5 * math.dist(units[1], units[other]) ** 2) for other in others if other not in (1, 2)]
    assert int(count) == len(terms)
    if terms:
        assert float(log) == pytest.approx(math.log(sum(terms)))
    else:
        assert bool(log.isfinite())


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_the_plain_mean_over_pairs(alpha: float) -> None:
    rows = normal(4, 5, dtype=torch.float64)
    loss = alignment_loss(rows, pairs=PAIRS, alpha=alpha)
    assert loss.item() == pytest.approx(plain_alignment(rows, PAIRS, alpha), rel=1e-12)


def test_gradcheck() -> None:
    hidden = normal(5, 4, 3, dtype=torch.float64).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        both = (x, x * x)
        aligned = alignment_loss(both, MASK, pairs=PAIRS, alpha=1.5, layers=(0, 1))
        return aligned + uniformity_loss(both, MASK, t=1.5, layers=(0, 1))

    assert torch.autograd.gradcheck(loss, hidden)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padded_and_packed_batches(dtype: torch.dtype) -> None:
    packed, padded, mask = packed_and_padded(dtype)
    vectors = masked_mean_pool(padded.detach().double(), mask)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for loss_of, wanted in (
        (uniformity_loss, plain_uniformity(vectors, 2.0)),
        (lambda *x, **y: alignment_loss(*x, pairs=PAIRS, **y), plain_alignment(vectors, PAIRS, 2.0)),
    ):
        packed.grad = padded.grad = None
        losses = loss_of(padded, mask), loss_of(packed, cu_seqlens=STARTS)
        for loss in losses:
            assert loss.dtype == torch.float64
            assert loss.item() == pytest.approx(wanted, rel=tolerance)
            loss.backward()
        assert packed.grad.dtype == dtype
        assert torch.equal(packed.grad, padded.grad[mask])
        assert not bool(padded.grad[~mask].any())


def test_vectors_left_out_get_no_gradient() -> None:
    rows = normal(6, 4, dtype=torch.float64)
    rows[1], rows[4, 0] = 0, math.inf
    rows.requires_grad_()
    loss = uniformity_loss(rows)
    loss.backward()
    kept = [0, 2, 3, 5]
    assert loss.item() == pytest.approx(plain_uniformity(rows[kept], 2.0), rel=1e-12)
    assert not bool(rows.grad[[1, 4]].any())
    rows.grad = None
    pairs = torch.tensor([[0, 1], [0, 2], [4, 3]])
    loss = alignment_loss(rows, pairs=pairs)
    loss.backward()
    assert loss.item() == pytest.approx(plain_alignment(rows, pairs[1:2], 2.0), rel=1e-12)
    assert not bool(rows.grad[[1, 3, 4, 5]].any())


@pytest.mark.parametrize("n", [0, 1])
def test_without_a_pair_it_is_nan_and_spoils_no_weight(n: int) -> None:
    for loss_of in (uniformity_loss, lambda x: alignment_loss(x, pairs=torch.zeros(0, 2, dtype=torch.int64))):
        weight = torch.eye(5).requires_grad_()
        loss = loss_of(normal(n, 5) @ weight)
        loss.backward()
        assert math.isnan(loss.item())
        assert not bool(weight.grad.any())


def test_equal_vectors_are_aligned_and_have_a_finite_gradient() -> None:
    rows = torch.ones(2, 3).requires_grad_()
    loss = alignment_loss(rows, pairs=torch.tensor([[0, 1]]), alpha=1.0)
    loss.backward()
    assert loss.item() == 0
    assert not bool(rows.grad.any())


def test_compiles_whole() -> None:
    rows = normal(4, 5)
    for loss_of in (uniformity_loss, lambda x: alignment_loss(x, pairs=PAIRS)):
        compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
        assert compiled(rows).item() == pytest.approx(loss_of(rows).item(), rel=1e-14)


@pytest.mark.parametrize(
    ("loss_of", "options", "error", "words"),
    [
        (uniformity_loss, {"t": 0.0}, ValueError, "t: got 0.0; it must be a number above 0"),
        (uniformity_loss, {"t": math.nan}, ValueError, "t: got nan"),
        (uniformity_loss, {"t": math.inf}, ValueError, "t: got inf"),
        (uniformity_loss, {"t": "2"}, ValueError, "t: got '2'"),
        (uniformity_loss, {"mask": MASK}, ValueError, "mask: got one"),
        (alignment_loss, {"pairs": PAIRS, "alpha": -1}, ValueError, "alpha: got -1"),
        (alignment_loss, {"pairs": PAIRS.int()}, TypeError, "pairs: got torch.int32"),
        (alignment_loss, {"pairs": [[0, 1]]}, TypeError, "pairs: got list"),
        (alignment_loss, {"pairs": PAIRS.flatten()}, ValueError, r"pairs: got shape \(6,\)"),
        (alignment_loss, {"pairs": PAIRS[None, :, :]}, ValueError, r"pairs: got shape \(1, 3, 2\)"),
        (alignment_loss, {"pairs": PAIRS[:, [0, 1, 1]]}, ValueError, r"pairs: got shape \(3, 3\)"),
        (alignment_loss, {"pairs": PAIRS + 1}, ValueError, "pairs: got indices outside the batch"),
        (alignment_loss, {"pairs": -PAIRS}, ValueError, "pairs: got indices outside the batch"),
    ],
)
def test_errors_name_the_argument(loss_of: object, options: dict[str, object], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        loss_of(torch.ones(4, 3), **options)  # type: ignore[operator]
