"""Mean pairwise cosine of 300k × 1024 float32 against the bandwidth of torch.sum, and of small calls; against torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench import naive
from bench.timing import medians
from cone_kernels import mean_pairwise_cosine, row_moments

N, D = 300_000, 1024
SMALL = [(100, 384), (300, 1024), (1000, 384), (3000, 384), (10_000, 384)]


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.empty(N, D).normal_(0.3, 1, generator=torch.Generator().manual_seed(0))


def test_mean_pairwise_cosine(benchmark: Any, report: Callable[..., None], x: torch.Tensor) -> None:
    wanted = float(mean_pairwise_cosine(x[:20_000], backend="reference"))
    assert float(mean_pairwise_cosine(x[:20_000])) == pytest.approx(wanted, rel=1e-6)
    assert float(mean_pairwise_cosine(x)) == pytest.approx(float(naive.mean_pairwise_cosine_by_mean(x)), rel=1e-4)

    seconds = medians(
        {
            "ours": lambda: mean_pairwise_cosine(x),
            "torch.sum": lambda: x.sum(),
            "naive": lambda: naive.mean_pairwise_cosine_by_mean(x),
            "row_moments": lambda: row_moments(x),
        }
    )
    # The cosine matrix of all rows would take 360 GB; its cost per pair is taken from 20k rows.
    small = x[:20_000]
    quadratic = medians({"naive": lambda: naive.mean_pairwise_cosine(small)}, rounds=3)["naive"] * (N / 20_000) ** 2
    size = x.numel() * x.element_size()
    benchmark.pedantic(lambda: mean_pairwise_cosine(x), rounds=5, warmup_rounds=1)
    report(
        bytes=size,
        flops=5 * x.numel(),
        gigabytes_per_second=size / seconds["ours"] / 1e9,
        torch_sum_gigabytes_per_second=size / seconds["torch.sum"] / 1e9,
        bandwidth_share_of_torch_sum=seconds["torch.sum"] / seconds["ours"],
        target_bandwidth_share=0.9,
        times_naive_normalize_mean=seconds["naive"] / seconds["ours"],
        target_times_naive=20,
        times_naive_cosine_matrix_extrapolated=quadratic / seconds["ours"],
        row_moments_bandwidth_share=seconds["torch.sum"] / seconds["row_moments"],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(benchmark: Any, report: Callable[..., None], x: torch.Tensor, dtype: torch.dtype) -> None:
    y = x[:100_000].to(dtype)
    wanted = float(mean_pairwise_cosine(y[:20_000], backend="reference"))
    assert float(mean_pairwise_cosine(y[:20_000])) == pytest.approx(wanted, rel=1e-6)
    size = y.numel() * y.element_size()
    copy = torch.empty(size // 4, dtype=torch.float32).fill_(1)
    seconds = medians({"ours": lambda: mean_pairwise_cosine(y), "torch.sum": lambda: copy.sum()})
    benchmark.pedantic(lambda: mean_pairwise_cosine(y), rounds=5, warmup_rounds=1)
    report(
        bytes=size,
        gigabytes_per_second=size / seconds["ours"] / 1e9,
        bandwidth_share_of_float32_sum_of_the_same_bytes=seconds["torch.sum"] / seconds["ours"],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "d"), SMALL)
def test_small(benchmark: Any, report: Callable[..., None], n: int, d: int, dtype: torch.dtype) -> None:
    x = torch.empty(n, d).normal_(0.3, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = float(mean_pairwise_cosine(x, backend="reference"))
    assert float(mean_pairwise_cosine(x)) == pytest.approx(wanted, rel=1e-6)
    plain = {
        "normalized": naive.mean_pairwise_cosine_by_mean,
        "product": naive.mean_pairwise_cosine_by_product,
        "division": naive.mean_pairwise_cosine_by_division,
    }
    for run in plain.values():
        assert float(run(x)) == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 0.1)

    candidates: dict[str, Callable[[], object]] = {name: partial(run, x) for name, run in plain.items()}
    seconds = medians({"ours": lambda: mean_pairwise_cosine(x), **candidates}, rounds=101, calls=10)
    benchmark.pedantic(lambda: mean_pairwise_cosine(x), rounds=101, warmup_rounds=5)
    report(
        bytes=x.numel() * x.element_size(),
        microseconds=seconds["ours"] * 1e6,
        **{f"microseconds_of_torch_{name}": seconds[name] * 1e6 for name in plain},
        times_strongest_torch=min(seconds[name] for name in plain) / seconds["ours"],
        target_times_strongest_torch=1,
    )
