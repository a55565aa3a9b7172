"""Runs every case in a process of its own, several at once: each has a limit, and none costs another."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.process import run

CASE_SECONDS = 60.0
"""What each case may take; on sixteen cores the longest, a compilation, takes half of it."""
OUTCOMES_FILE = "outcomes.json"
"""What came of each case so far."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Of the process that the cases are forked from: nothing in it starts a thread, or asks CUDA whether there is a GPU."""
# To end what was begun.
_GRACE_SECONDS = 3.0
GOOD = frozenset({"ok", "refused", "not installed"})


def run_product(
    device: str,
    limit: float,
    processes: int,
    *,
    names: Sequence[str] = (),
    without: Collection[str] = (),
    case_seconds: float = CASE_SECONDS,
) -> dict[str, Any]:
    """What came of each case on a device against the CPU, in at most `limit` seconds.

    Args:
        device: as the commands take it.
        limit: seconds for all.
        processes: how many run at once.
        names: the cases to run, of `bench.gpu.product.cases`; none: all.
        without: GPU backends that are not here; cases that ask for them are left out.
        case_seconds: the most that one may take.

    Returns:
        ok: whether none failed; counts by outcome; cases: name -> what `run_case` tells, or the outcome `not finished`
        or `not run`; last: why nothing was run, or not all.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    with tempfile.TemporaryDirectory() as scratch:
        options = {"device": device, "processes": processes, "limit": limit, "case-seconds": case_seconds}
        given = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "bench.gpu.product", "--place", scratch, *given]
        command += [f"--without={backend}" for backend in without]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": threads}
        # A process without a context of the GPU, which this one may have.
        ended = run([*command, *names], limit + _GRACE_SECONDS, environment, shown=True)
        file = Path(scratch) / OUTCOMES_FILE
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    counts = Counter(known["outcome"] for known in found.values())
    print(dict(counts), flush=True)
    result = {"ok": ended.ok and set(counts) <= GOOD, "counts": dict(counts), "cases": found}
    return result if ended.ok else {**result, "last": ended.result()["last"]}
