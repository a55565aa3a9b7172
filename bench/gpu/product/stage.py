"""Runs every case in a process of its own, several at once: each has a limit, and none costs another."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu.process import Ended, run

CASE_SECONDS = 60.0
"""What each case may take; on sixteen cores the longest, a compilation, takes half of it."""
BACKENDS_FILE = "backends.json"
"""Which GPU backend each case asks for; written with the models."""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
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
        or `not run`; last: why nothing was run.
    """
    end = time.perf_counter() + limit
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(processes) as pool:
        place = Path(scratch)
        made = _process(["--make", str(place), "--device", device], limit, {})
        if not made.ok:
            return {"ok": False, "counts": {}, "cases": {}, "last": made.result()["last"]}
        backends = json.loads((place / BACKENDS_FILE).read_text(encoding="utf-8"))
        chosen = [name for name in names or backends if backends[name] not in without]

        def one(number: int, name: str) -> dict[str, Any]:
            left = end - time.perf_counter()
            if left <= 0:
                return {"outcome": "not run"}
            out = place / f"{number}.json"
            arguments = ["--device", device, "--place", str(place), "--out", str(out), name]
            ended = _process(arguments, min(case_seconds, left), {"OMP_NUM_THREADS": threads})
            if out.exists():
                found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
            else:
                found = {"outcome": "not finished", "seconds": round(ended.seconds, 1), "text": ended.result()["last"]}
            print(_line(name, found), flush=True)
            return found

        jobs = {name: pool.submit(one, number, name) for number, name in enumerate(chosen)}
        found = {name: job.result() for name, job in jobs.items()}
    counts = Counter(known["outcome"] for known in found.values())
    print(dict(counts), flush=True)
    return {"ok": set(counts) <= GOOD, "counts": dict(counts), "cases": found}


def _process(arguments: list[str], limit: float, environment: dict[str, str]) -> Ended:
    return run([sys.executable, "-m", "bench.gpu.product", *arguments], limit, {**_OFFLINE, **environment})


def _line(name: str, found: dict[str, Any]) -> str:
    figures = f", {found['difference']:.1e} {found['where']}".rstrip() if "difference" in found else ""
    text = found.get("text", "")
    return f"{found['outcome']}: {name}{figures}{': ' + text if text else ''}"
