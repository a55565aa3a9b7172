"""Timing of candidates against each other: in turn, in one run, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(candidates: Mapping[str, Callable[[], object]], rounds: int = 9, calls: int = 1) -> dict[str, float]:
    """Median seconds of each candidate after a warm-up of each, run in turn (A B C A B C …) so that drift hits all.

    A candidate that takes microseconds is called several times in a row; the seconds are those of one call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(times) for name, times in seconds.items()}
