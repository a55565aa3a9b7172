"""Triton's gradients of mean_pairwise_cosine and masked_mean_pool against float64, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cone_kernels import backends, masked_mean_pool, mean_pairwise_cosine
from cone_kernels.ops.masked_mean_pool import pool_gradient
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient
from tests.ops.test_gradients import (
    assert_rounded_once,
    gradient,
    plain_cosine,
    plain_pool,
    scattered_mask,
    sums_of,
    used_rows,
)
from tests.support.moment_cases import RELATIVE, normal, views
from tests.support.triton_interpreter import faithful_interpreter, guarded_memory

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 2, 7, 8, 33, 64, 130, 1000]
WIDER_THAN_REGISTERS = 4104


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    with faithful_interpreter():
        yield


def triton_cosine(x: Tensor) -> Tensor:
    return mean_pairwise_cosine(x, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_equals_autograd_of_the_definition(dtype: torch.dtype) -> None:
    for d in (2, 7, 33, 130):
        x = normal(9, d, dtype=dtype, seed=d, shift=0.8)
        wanted = gradient(plain_cosine, x.double())
        # Rounding of the unit sum, as the forward has it, times 2/(n(n−1)‖x‖); |s| ≤ n.
        scale = 2 / 8 / torch.linalg.vector_norm(x.double(), dim=-1).min()
        assert_rounded_once(gradient(triton_cosine, x), wanted, absolute=float(RELATIVE[dtype] * scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_kernel_is_one_rounding_from_the_reference(dtype: torch.dtype) -> None:
    weights = torch.tensor([0.7, -3e3], dtype=torch.float64)
    for d, n in [(d, 3) for d in WIDTHS] + [(8, 1), (31, 33), (WIDER_THAN_REGISTERS, 3)]:
        x = normal(2, n, d, dtype=dtype, seed=d)
        sums = sums_of(torch.cat([x, normal(2, 5, d)], dim=1))
        wanted = cosine_gradient(x.double(), *sums, weights, "reference")
        largest = 2 * 3e3 / (n + 4) / float(torch.linalg.vector_norm(x.double(), dim=-1).min())
        assert_rounded_once(cosine_gradient(x, *sums, weights, "triton"), wanted, absolute=1e-14 * largest)


@pytest.mark.parametrize("exponent", [60, -60, 100, -100])
def test_long_and_short_rows(exponent: int) -> None:
    x = normal(9, 40)
    x[::2] *= 2.0**exponent
    sums, weight = sums_of(x), torch.ones(())
    wanted = cosine_gradient(x.double(), *sums, weight, "reference")
    got = cosine_gradient(x, *sums, weight, "triton")
    assert_rounded_once(got, wanted, absolute=1e-14 * float(wanted[1::2].abs().max()) if exponent > 0 else 0.0)
    assert_rounded_once(got[::2], wanted[::2], absolute=1e-14 * float(wanted[::2].abs().max()))


def test_cosine_of_any_strides() -> None:
    x = normal(2, 11, 24)
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    sums = sums_of(x)
    wanted = cosine_gradient(x, *sums, weights, "reference")
    layouts = views(x) | {"offset": torch.zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)}
    for layout, view in layouts.items():
        got = cosine_gradient(view, *sums, weights, "triton")
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9, msg=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [19, WIDER_THAN_REGISTERS])
def test_rows_left_out_get_no_gradient(dtype: torch.dtype, d: int) -> None:
    x = normal(12, d, dtype=dtype)
    x[3], x[8, 2], x[11, 5], x[10] = 0, torch.nan, torch.inf, -torch.inf
    used, sums, weight = used_rows(x), sums_of(x), torch.ones(())
    got = cosine_gradient(x, *sums, weight, "triton")
    assert bool((got[~used] == 0).all())
    wanted = cosine_gradient(x[used].double(), *sums, weight, "reference")
    assert_rounded_once(got[used], wanted, absolute=1e-14 * float(wanted.abs().max()))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_without_a_pair_the_gradient_is_zero(n: int) -> None:
    x = normal(2, n, 5)
    x[:, 1:] = 0
    cosine = mean_pairwise_cosine(x.requires_grad_(), backend="triton")
    (cosine - 0.3).square().sum().backward()  # what arrives is NaN
    assert bool((x.grad == 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_equals_autograd_of_the_formula(dtype: torch.dtype) -> None:
    mask = scattered_mask(4, 7)
    for d in (*WIDTHS, 1030):
        hidden = normal(2, 4, 7, d, dtype=dtype, seed=d)
        weights = normal(2, 4, d, seed=d + 1)
        got = gradient(lambda x: masked_mean_pool(x, mask, backend="triton"), hidden, weights)
        assert_rounded_once(got, gradient(lambda x: plain_pool(x, mask), hidden.double(), weights.double()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_gradients_are_those_of_the_tokens_that_count(dtype: torch.dtype) -> None:
    mask = scattered_mask(7, 8)
    mask[4] = False
    grad = normal(3, 7, 50)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    padded = pool_gradient(grad, mask, None, 8, dtype, "triton")
    packed = pool_gradient(grad, None, starts, int(starts[-1]), dtype, "triton")
    assert torch.equal(packed, padded[:, mask])
    assert bool((padded[:, ~mask] == 0).all())


def test_long_sentences_are_written_by_several_programs() -> None:
    grad, mask = normal(1, 2, 9), scattered_mask(2, 300)
    for selection in ((mask, None, 300), (None, torch.tensor([0, 390, 400]), 400)):
        got = pool_gradient(grad, *selection, torch.float32, "triton")
        torch.testing.assert_close(got, pool_gradient(grad, *selection, torch.float32, "reference"))


def test_pooling_gives_tokens_that_do_not_count_nothing() -> None:
    hidden, mask = normal(3, 4, 21), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    hidden[0, 2], hidden[2, 1] = torch.nan, torch.inf
    weights = normal(3, 21)
    weights[1] = torch.nan  # of a mean that is NaN
    got = gradient(lambda x: masked_mean_pool(x, mask, backend="triton"), hidden, weights)
    assert torch.equal(got[0, :2], (weights[0] / 2).expand(2, 21))
    assert bool((got[0, 2:] == 0).all())
    assert bool((got[1] == 0).all())
    assert torch.equal(got[2], (weights[2] / 4).expand(4, 21))


def test_pooling_takes_gradients_of_any_strides() -> None:
    mask, weights = scattered_mask(4, 5), normal(2, 4, 24)
    layouts = views(weights) | {"expanded": weights[:1, :1, :1].expand(2, 4, 24)}
    for layout, view in layouts.items():
        got = pool_gradient(view, mask, None, 5, torch.float32, "triton")
        wanted = pool_gradient(view.contiguous(), mask, None, 5, torch.float32, "reference")
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=0, msg=layout)


def test_every_entry_is_written_and_nothing_else() -> None:
    x, mask, grad = normal(2, 40, 45), scattered_mask(8, 6), normal(2, 8, 45)
    x[0, 3], x[1, 7, 1] = 0, torch.nan
    mask[5] = False
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    sums = sums_of(x)
    results = []
    for backend in ("reference", "triton"):
        with guarded_memory():
            results.append(
                (
                    cosine_gradient(x, *sums, torch.ones(2), backend),
                    pool_gradient(grad, mask, None, 6, torch.float32, backend),
                    pool_gradient(grad, None, starts, int(starts[-1]), torch.float32, backend),
                )
            )
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2**-23, atol=1e-9)


def test_the_backend_asked_for_runs_backwards_too() -> None:
    with backends.record() as runs:
        gradient(triton_cosine, normal(6, 5))
        gradient(lambda x: masked_mean_pool(x, torch.ones(3, 4), backend="triton"), normal(3, 4, 5))
    names = ("mean_pairwise_cosine", "mean_pairwise_cosine_backward", "masked_mean_pool", "masked_mean_pool_backward")
    assert runs == [(name, backends.Backend.TRITON) for name in names]


def test_opcheck() -> None:
    ops, x = torch.ops.cone_kernels, normal(2, 3, 5)
    torch.library.opcheck(ops.mean_pairwise_cosine.default, (x.clone().requires_grad_(), "triton", 0.0))
    torch.library.opcheck(
        ops.masked_mean_pool.default, (x.clone().requires_grad_(), torch.ones(2, 3).bool(), None, "triton")
    )
