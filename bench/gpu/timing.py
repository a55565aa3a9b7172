"""Times calls on a GPU, the device's time and the host's, and measures the machine's limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

GPU = torch.device("cuda")
MEGABYTES = (33, 262, 2147)
_CACHE_BYTES = 256 << 20
_MOST_ROUNDS, _SECONDS = 15, 0.8  # of a candidate
_MOST_SLEEP = 5e-3
_CLOCK = 2e9  # cycles a second, or a little less

Run = Callable[[], object]


@dataclass(frozen=True)
class Warm:
    """What one call takes once all is compiled."""

    host: float
    wall: float


def warmed(run: Run) -> Warm:
    """Runs twice; the second time by the host's clock: until the call returns, and until the device is done."""
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return Warm(host, time.perf_counter() - start)


def device_medians(candidates: Mapping[str, Run]) -> dict[str, float]:
    """Median seconds of each on the device, in turn, the second-level cache emptied before each run.

    The device sleeps while the host fills the queue, so that the host's time is in it only where a call itself waits.
    """
    # Read and not written: what is written has to be taken to memory while the next kernel runs.
    flush = torch.zeros(_CACHE_BYTES // 4, device=GPU)
    warm = {name: warmed(run) for name, run in candidates.items()}
    rounds = {name: max(1, min(_MOST_ROUNDS, int(_SECONDS / one.wall))) for name, one in warm.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(_MOST_ROUNDS):
        for name, run in candidates.items():
            if turn >= rounds[name]:
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.sum()
            torch.cuda._sleep(int(min(2 * warm[name].host + 1e-4, _MOST_SLEEP) * _CLOCK))
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(times) for name, times in seconds.items()}


def host_median(run: Run) -> float:
    """Median seconds until a call returns, other calls of it before it in the queue."""
    rounds = max(1, min(_MOST_ROUNDS, int(_SECONDS / warmed(run).wall)))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(seconds)


def kernel_times(run: Run) -> dict[str, float]:
    """Microseconds of each kernel that a call launches, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [one for one in profile.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    times = {f"{one.key[:70]} ×{one.count}": round(one.self_device_time_total, 1) for one in kernels}
    return dict(sorted(times.items(), key=lambda item: -item[1])[:8])


@contextmanager
def captured(run: Run) -> Iterator[Run]:
    """The call as the replay of its CUDA graph."""
    warmed(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    yield graph.replay
    graph.reset()


def machine_limits() -> dict[str, float]:
    """Rates of copies that move as many bytes as the cases, of the largest one, of reading, and of a product."""
    limits = {f"copy_gigabytes_per_second_{size}": _copy_rate(size * 10**6) for size in MEGABYTES}
    source = torch.zeros(1 << 28, device=GPU)
    reading = device_medians({"sum": source.sum})["sum"]
    return {
        "copy_gigabytes_per_second": _copy_rate(2 << 30),
        "read_gigabytes_per_second": 4 * source.numel() / reading / 1e9,
        "matrix_teraflops": _matrix_peak(),
        **limits,
    }


def _copy_rate(moved: int) -> float:
    """GB/s read and written by a copy that moves so many bytes."""
    source = torch.zeros(moved // 2, dtype=torch.int8, device=GPU)
    target = torch.empty_like(source)
    return 2 * source.numel() / device_medians({"copy": lambda: target.copy_(source)})["copy"] / 1e9


def _matrix_peak() -> float:
    """TFLOP/s of an 8192³ bfloat16 product of random matrices."""
    a, b = (torch.randn(8192, 8192, device=GPU).bfloat16() for _ in range(2))
    return 2 * 8192**3 / device_medians({"mm": lambda: a @ b})["mm"] / 1e12
