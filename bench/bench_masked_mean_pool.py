"""masked_mean_pool of small batches against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench import naive
from bench.timing import medians
from cone_kernels import masked_mean_pool

SMALL = [(4, 12, 384), (8, 16, 384), (16, 32, 384), (32, 32, 384), (64, 32, 384)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("sentences", "tokens", "d"), SMALL)
def test_small(
    benchmark: Any, report: Callable[..., None], sentences: int, tokens: int, d: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.empty(sentences, tokens, d).normal_(generator=generator).to(dtype)
    lengths = torch.randint(tokens // 2, tokens + 1, (sentences, 1), generator=generator)
    mask = torch.arange(tokens) < lengths
    wanted = masked_mean_pool(hidden, mask, backend="reference")
    torch.testing.assert_close(masked_mean_pool(hidden, mask), wanted, rtol=1e-5, atol=1e-6)
    plain = {"sums": naive.masked_mean_pool_by_sums, "product": naive.masked_mean_pool_by_product}
    for run in plain.values():
        atol = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(run(hidden, mask).float(), wanted.float(), rtol=0, atol=atol)

    candidates: dict[str, Callable[[], object]] = {name: partial(run, hidden, mask) for name, run in plain.items()}
    ours = {
        "ours": lambda: masked_mean_pool(hidden, mask),
        "ours, int64 mask": partial(masked_mean_pool, hidden, mask.long()),
    }
    seconds = medians({**ours, **candidates}, rounds=101, calls=10)
    benchmark.pedantic(lambda: masked_mean_pool(hidden, mask), rounds=101, warmup_rounds=5)
    report(
        bytes=int(mask.sum()) * d * hidden.element_size() + wanted.numel() * wanted.element_size(),
        microseconds=seconds["ours"] * 1e6,
        microseconds_with_int64_mask=seconds["ours, int64 mask"] * 1e6,
        **{f"microseconds_of_torch_{name}": seconds[name] * 1e6 for name in plain},
        times_strongest_torch=min(seconds[name] for name in plain) / seconds["ours"],
        target_times_strongest_torch=1,
    )
