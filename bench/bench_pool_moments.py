"""Pooling and moments of one layer, 2048 × 32 × 1024 float32, ragged: bytes of real tokens against torch.sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own alias
from torch import Tensor

from bench import naive
from bench.timing import medians
from cone_kernels import masked_mean_pool, pool_moments

B, T, D = 2048, 32, 1024
COPIES = 4  # inputs taken in turn, together larger than any cache


def strong(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The strongest plain torch we know: two batched products over unpadded rows, float32 throughout."""
    tokens = hidden[mask]
    norms = torch.linalg.vector_norm(tokens, dim=-1)
    lengths = mask.sum(1)
    pooled = torch.segment_reduce(tokens, "sum", lengths=lengths) / lengths[:, None]
    unit = torch.segment_reduce(tokens / norms[:, None], "sum", lengths=lengths)
    return pooled, F.normalize(unit)


def test_pool_moments(benchmark: Any, report: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.empty(B, T, D).normal_(0.3, 1, generator=generator) for _ in range(COPIES)]
    # SNLI's spread of lengths: a mean of 15 tokens.
    lengths = torch.empty(B).log_normal_(2.6, 0.4, generator=generator).round().clamp(4, T)
    mask = torch.arange(T) < lengths[:, None]
    got, wanted = pool_moments(layers[0], mask), naive.pool_moments(layers[0], mask)
    torch.testing.assert_close(got.pooled, wanted["pooled"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.sums["unit_sum"].float(), wanted["unit_sum"], rtol=1e-3, atol=1e-3)
    turn = 0

    def layer() -> Tensor:
        nonlocal turn
        turn += 1
        return layers[turn % COPIES]

    tokens = int(mask.sum())
    size = tokens * D * 4
    dense = [torch.empty(tokens, D).normal_() for _ in range(COPIES)]
    seconds = medians(
        {
            "ours": lambda: pool_moments(layer(), mask),
            "torch.sum": lambda: dense[turn % COPIES].sum(),
            "pool": lambda: masked_mean_pool(layer(), mask),
            "naive": lambda: naive.pool_moments(layer(), mask),
            "strong": lambda: strong(layer(), mask),
        }
    )
    benchmark.pedantic(lambda: pool_moments(layer(), mask), rounds=9, warmup_rounds=1)
    report(
        tokens=tokens,
        bytes=size,
        flops=9 * tokens * D,
        gigabytes_per_second=size / seconds["ours"] / 1e9,
        torch_sum_gigabytes_per_second=size / seconds["torch.sum"] / 1e9,
        bandwidth_share_of_torch_sum=seconds["torch.sum"] / seconds["ours"],
        target_bandwidth_share=0.9,
        times_naive=seconds["naive"] / seconds["ours"],
        target_times_naive=50,
        times_strong_torch_pooling_and_unit_sum_only=seconds["strong"] / seconds["ours"],
        masked_mean_pool_bandwidth_share=seconds["torch.sum"] / seconds["pool"],
    )


def test_many_layers(benchmark: Any, report: Callable[..., None]) -> None:
    """A batch of 64 sentences of 16 tokens, 25 layers in one call, as a probe of a BERT-large sees it."""
    layers = [torch.empty(64, 16, D).normal_() for _ in range(25)]
    mask = torch.ones(64, 16, dtype=torch.bool)
    size = 25 * 64 * 16 * D * 4
    dense = torch.empty(25 * 64 * 16, D).normal_()
    assert pool_moments(layers, mask).sums["count"].sum() == 25 * 64 * 16
    seconds = medians({"ours": lambda: pool_moments(layers, mask), "torch.sum": lambda: dense.sum()}, rounds=15)
    benchmark.pedantic(lambda: pool_moments(layers, mask), rounds=9, warmup_rounds=1)
    report(
        bytes=size,
        gigabytes_per_second=size / seconds["ours"] / 1e9,
        bandwidth_share_of_torch_sum=seconds["torch.sum"] / seconds["ours"],
    )
