"""Second moments of 4096 rows: useful triangular FLOPs against the full product of torch.mm on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.timing import medians
from cone_kernels.ops.second_moment import second_moment_

N = 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("d", [384, 1024])
def test_second_moment(benchmark: Any, report: Callable[..., None], d: int, dtype: torch.dtype) -> None:
    x = torch.empty(N, d).normal_(0.3, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    pilot = x.double().mean(0, keepdim=True)
    moment = torch.zeros(1, d, d, dtype=torch.float64)
    second_moment_(moment, x[None], pilot=pilot)
    wanted = (x.double().mT @ x.double()).triu()
    assert float((moment[0] - wanted).abs().max() / wanted.max()) < 1e-6

    rows = x if dtype == torch.float64 else x.float()
    seconds = medians(
        {
            "ours": lambda: second_moment_(moment, x[None], pilot=pilot),
            "torch.mm": lambda: rows.mT @ rows,
        }
    )
    useful = N * d * (d + 1)
    benchmark.pedantic(lambda: second_moment_(moment, x[None], pilot=pilot), rounds=5, warmup_rounds=1)
    report(
        bytes=x.numel() * x.element_size() + 8 * d * (d + 1),
        flops=useful,
        useful_gigaflops_per_second=useful / seconds["ours"] / 1e9,
        torch_mm_gigaflops_per_second=2 * N * d * d / seconds["torch.mm"] / 1e9,
        times_torch_mm=seconds["torch.mm"] / seconds["ours"],
    )


def test_many_layers(benchmark: Any, report: Callable[..., None]) -> None:
    """A block of 512 pooled sentences of 25 layers, as a state adds it."""
    layers, n, d = 25, 512, 1024
    x = torch.empty(layers, n, d).normal_(0.3, 1, generator=torch.Generator().manual_seed(0))
    pilot = x.double().mean(1)
    moment = torch.zeros(layers, d, d, dtype=torch.float64)
    second_moment_(moment, x, pilot=pilot)
    wanted = (x[-1].double().mT @ x[-1].double()).triu()
    assert float((moment[-1] - wanted).abs().max() / wanted.max()) < 1e-6
    seconds = medians({"ours": lambda: second_moment_(moment, x, pilot=pilot), "torch.bmm": lambda: x.mT @ x}, rounds=5)
    useful = layers * n * d * (d + 1)
    benchmark.pedantic(lambda: second_moment_(moment, x, pilot=pilot), rounds=3, warmup_rounds=1)
    report(
        bytes=x.numel() * 4 + layers * 8 * d * (d + 1),
        flops=useful,
        useful_gigaflops_per_second=useful / seconds["ours"] / 1e9,
        times_torch_bmm=seconds["torch.bmm"] / seconds["ours"],
    )
