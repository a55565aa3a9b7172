"""Runs the tests that need a GPU in several processes at once: most of their time is Triton's compiler's."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu.process import ROOT, run

MOST_PROCESSES = 12
HANGS_SECONDS = 60.0
"""A test that takes longer is stopped: the limit of all is for all."""


def run_tests(folder: Path, limit: float, processes: int, hangs_seconds: float = HANGS_SECONDS) -> dict[str, Any]:
    """How many tests of a folder passed, failed and so on, and each one's outcome, in at most `limit` seconds."""
    end = time.perf_counter() + limit
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(processes) as pool:
        files = [Path(scratch) / f"{part}.jsonl" for part in range(processes)]
        jobs = [
            pool.submit(_run_part, folder, file, f"{part}/{processes}", end, processes, hangs_seconds)
            for part, file in enumerate(files)
        ]
        printed = [job.result() for job in jobs]
        outcomes = {test: known for file in files for test, known in read_outcomes(file).items()}
    counts = Counter(known["outcome"] for known in outcomes.values())
    for test, known in sorted(outcomes.items()):
        if known["outcome"] not in ("passed", "skipped"):
            print(f"{known['outcome']}: {test}\n{known.get('text', '')}", flush=True)
    # Where no test has been run, what pytest printed says why.
    last = printed[0][-4000:] if set(counts) <= {"not run"} else ""
    print(last, dict(counts), flush=True)
    ok = bool(outcomes) and set(counts) <= {"passed", "skipped"}
    return {"ok": ok, "counts": dict(counts), "last": last, "tests": dict(sorted(outcomes.items()))}


def processes_here() -> int:
    """How many processes the machine's cores are enough for; each waits for its compiler, or compiles."""
    return max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)) * 3 // 4))


def read_outcomes(file: Path) -> dict[str, dict[str, Any]]:
    """What is known of each test: its last line in the file that bench/gpu/outcomes.py writes."""
    whole = file.read_text().split("\n")[:-1] if file.exists() else []
    return {line.pop("test"): line for line in map(json.loads, whole)}


def _run_part(folder: Path, file: Path, part: str, end: float, processes: int, hangs_seconds: float) -> str:
    """Runs one part, in a new process after each test that broke the one before; returns what was printed."""
    command = [sys.executable, "-m", "pytest", str(folder), "-m", "gpu", "-q", "--tb=short", "-p", "bench.gpu.outcomes"]
    # The project's own options ask for plugins that may not be here; a file that cannot be read costs itself alone.
    command += ["-c", str(ROOT / "pyproject.toml"), "-o", "addopts=--strict-markers", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors"]
    environment = {
        "CONE_GPU_OUTCOMES": str(file),
        "CONE_GPU_PART": part,
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes)),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }

    def hangs() -> bool:
        return time.time() - file.stat().st_mtime > hangs_seconds  # each test begins and ends with a line

    printed = ""
    while True:
        file.touch()
        before = _had_their_turn(file)
        ended = run(command, end - time.perf_counter(), environment, hangs)
        printed += ended.printed
        complete = ended.code in (0, 1)
        if complete or time.perf_counter() >= end or _had_their_turn(file) == before:
            return printed


def _had_their_turn(file: Path) -> int:
    return sum(known["outcome"] != "not run" for known in read_outcomes(file).values())
