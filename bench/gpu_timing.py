"""Times on a GPU by the device's own clock, and what the machine can do at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch

GPU = torch.device("cuda")
_CACHE_BYTES = 256 << 20


def device_medians(candidates: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median seconds of each, in turn after two warm-up runs, the second-level cache emptied before each run."""
    flush = torch.empty(_CACHE_BYTES, dtype=torch.int8, device=GPU)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(times) for name, times in seconds.items()}


def copy_rate() -> float:
    """GB/s read and written by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.int8, device=GPU)
    target = torch.empty_like(source)
    return 2 * source.numel() / device_medians({"copy": lambda: target.copy_(source)})["copy"] / 1e9


def matrix_peak() -> float:
    """TFLOP/s of an 8192³ bfloat16 product of random matrices."""
    a, b = (torch.randn(8192, 8192, device=GPU).bfloat16() for _ in range(2))
    return 2 * 8192**3 / device_medians({"mm": lambda: a @ b})["mm"] / 1e12
