"""Backward of the mean pairwise cosine and of masked mean pooling, against autograd of what a researcher writes.

Bytes are those that must move: the cosine's gradient reads the rows and writes as many, pooling's writes the hidden
states' gradient. Both are held against a copy, or a fill, of the same bytes into memory that is new as the gradient's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import naive
from bench.timing import medians
from cone_kernels import isotropy_loss, masked_mean_pool, mean_pairwise_cosine

N, D = 50_000, 1024
B, T = 1024, 32


def forward_and_backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of function(x), which is a scalar or summed."""
    leaf = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return grad


def backward_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Runs the backward alone, any number of times."""
    leaf = x.detach().requires_grad_()
    result = function(leaf)
    grad = torch.ones_like(result)
    return lambda: torch.autograd.grad(result, leaf, grad, retain_graph=True)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mean_pairwise_cosine_backward(benchmark: Any, report: Callable[..., None], dtype: torch.dtype) -> None:
    x = torch.empty(N, D).normal_(0.3, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    small = x[:2000]
    wanted = forward_and_backward(naive.mean_pairwise_cosine_by_mean, small.double())
    error = (forward_and_backward(mean_pairwise_cosine, small).double() - wanted).abs().max() / wanted.abs().max()
    assert float(error) < (1e-6 if dtype == torch.float32 else 2**-8)

    ours, plain = backward_of(mean_pairwise_cosine, x), backward_of(naive.mean_pairwise_cosine_by_mean, x)
    seconds = medians(
        {
            "ours": ours,
            "copy": lambda: x.clone(),
            "naive": plain,
            "ours, forward too": lambda: forward_and_backward(mean_pairwise_cosine, x),
            "naive, forward too": lambda: forward_and_backward(naive.mean_pairwise_cosine_by_mean, x),
        }
    )
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    size = 2 * x.numel() * x.element_size()
    report(
        bytes=size,
        flops=7 * x.numel(),
        gigabytes_per_second=size / seconds["ours"] / 1e9,
        share_of_copy=seconds["copy"] / seconds["ours"],
        times_autograd_of_normalize_mean=seconds["naive"] / seconds["ours"],
        times_autograd_of_normalize_mean_with_forward=seconds["naive, forward too"] / seconds["ours, forward too"],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_mean_pool_backward(benchmark: Any, report: Callable[..., None], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.empty(B, T, D).normal_(0.3, 1, generator=generator).to(dtype)
    mask = torch.arange(T) < torch.randint(T // 4, T + 1, (B, 1), generator=generator)
    wanted = forward_and_backward(lambda h: naive.masked_mean_pool(h, mask), hidden.double())
    error = (forward_and_backward(lambda h: masked_mean_pool(h, mask), hidden).double() - wanted).abs().max()
    assert float(error / wanted.abs().max()) < (1e-6 if dtype == torch.float32 else 2**-8)

    ours = backward_of(lambda h: masked_mean_pool(h, mask), hidden)
    seconds = medians(
        {
            "ours": ours,
            "fill": lambda: torch.empty_like(hidden).fill_(1),
            "naive": backward_of(lambda h: naive.masked_mean_pool(h, mask), hidden),
            "ours, forward too": lambda: forward_and_backward(lambda h: masked_mean_pool(h, mask), hidden),
            "naive, forward too": lambda: forward_and_backward(lambda h: naive.masked_mean_pool(h, mask), hidden),
        }
    )
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    size = hidden.numel() * hidden.element_size()
    report(
        bytes=size,
        gigabytes_per_second=size / seconds["ours"] / 1e9,
        share_of_fill=seconds["fill"] / seconds["ours"],
        times_autograd_of_masked_mean=seconds["naive"] / seconds["ours"],
        times_autograd_of_masked_mean_with_forward=seconds["naive, forward too"] / seconds["ours, forward too"],
    )


@pytest.mark.parametrize("size", [(4, 8, 64), (8, 16, 384), (32, 32, 768), (32, 64, 384), (128, 128, 768)], ids=str)
def test_isotropy_loss_of_a_training_batch(
    benchmark: Any, report: Callable[..., None], size: tuple[int, int, int]
) -> None:
    """Sentences, tokens, d: what the term adds to a step, in seconds and against the ways in torch."""
    hidden = torch.empty(*size).normal_(0.3, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(size[:2], dtype=torch.bool)

    def by(pool: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda h: naive.mean_pairwise_cosine_by_mean(pool(h, mask)).square()

    plain = by(naive.masked_mean_pool)

    def ours(h: Tensor) -> Tensor:
        return isotropy_loss(h, mask)

    wanted = forward_and_backward(plain, hidden.double())
    error = (forward_and_backward(ours, hidden).double() - wanted).abs().max() / wanted.abs().max()
    assert float(error) < 1e-6
    seconds = medians(
        {
            "ours": lambda: forward_and_backward(ours, hidden),
            "naive": lambda: forward_and_backward(plain, hidden),
            "sums": lambda: forward_and_backward(by(naive.masked_mean_pool_by_sums), hidden),
            "product": lambda: forward_and_backward(by(naive.masked_mean_pool_by_product), hidden),
        },
        rounds=51 if hidden.numel() < 1e6 else 9,
    )
    benchmark.pedantic(lambda: forward_and_backward(ours, hidden), rounds=9, warmup_rounds=1)
    report(
        bytes=2 * hidden.numel() * 4,
        milliseconds=seconds["ours"] * 1e3,
        times_autograd_of_torch=seconds["naive"] / seconds["ours"],
        times_autograd_of_few_calls=seconds["sums"] / seconds["ours"],
        times_autograd_of_bmm=seconds["product"] / seconds["ours"],
    )
