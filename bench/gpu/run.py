"""Builds, tests and times the kernels on a machine with a GPU, by its own Python and torch, offline: `make gpu`.

python -m bench.gpu.run [--results FOLDER] [STAGE ...]

build       compiles the extensions in place, for this GPU
test        tests/kernels/gpu, in several processes at once
sanitize    compute-sanitizer's checkers on small cases of each op and backend
bench       times the kernels beside the machine's copy bandwidth and matrix peak
product     every command, integration and example on the GPU against the CPU
end_to_end  whole runs, and forwards under a probe, against the bare forward of the same sentences

Each stage has a limit, all together under eight minutes on sixteen cores. Where a backend cannot be built or run the
other one is tried all the same, and the stage fails. What each stage found, with its date, commit and versions, is kept
in gpu-DEVICE.json in FOLDER (default bench/results), with a table of the benchmark in gpu-DEVICE.md. Where there is no
git history, COMMIT in the environment names the commit. Exit code 1 where a stage fails, 2 without a GPU.

ONLY in the environment, as `pooling,cosine`: the benchmark times the cases of bench/gpu/cases.py whose names begin so,
and keeps them apart.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu.process import LOST_DEVICE, ROOT, end_with_children, run, toolkit, write_aside
from bench.gpu.product.stage import run_product
from bench.gpu.small_case import CASES, FEW_CASES
from bench.gpu.tests import processes_here, run_tests

LIMIT_SECONDS = {
    "build": 45,
    "test": 105,
    "sanitize": 100,
    "bench": 70,
    "product": 75,
    "end_to_end": 65,
}
# What each checker watches, each entry in a process of its own. Those that follow every access to shared or to
# uninitialised memory take a hundred times the time and more.
CHECKED = {"memcheck": ("all",), "synccheck": ("all",), "racecheck": FEW_CASES, "initcheck": FEW_CASES}
# What all cases take without a checker, compilation included, and no more.
_UNCHECKED_SECONDS = 50
_MOST_REPORTED = 60  # lines of a checker's report: the first fault is the one to look at
# The fewest seconds in which a stopped command can be begun again to some end.
_WORTH_BEGINNING = 20
# Of stage `product` at once: each has a context of the GPU.
_MOST_CASES = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[*LIMIT_SECONDS, []], help="default: all")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    device = described_device()
    if device is None:
        print("gpu: torch finds no GPU on this machine; nothing was run")
        return 2
    end_with_children()
    folder = arguments.results.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", device["device"].lower()).strip("-")
    file = folder / f"gpu-{slug}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    found.update(device)
    all_ok = True
    for stage in arguments.stages or list(LIMIT_SECONDS):
        print(f"== {stage}", flush=True)
        about, start = circumstances(), time.perf_counter()
        result = STAGES[stage](file)
        seconds = round(time.perf_counter() - start, 1)
        # A part of the benchmark does not take the place of the whole.
        kept_as = f"{stage} of {result['only']}" if "only" in result else stage
        found[kept_as] = {**about, "seconds": seconds, **result}
        write_aside(file, json.dumps(found, indent=2) + "\n")
        print(f"== {stage}: {'ok' if result['ok'] else 'FAILED'} in {seconds} s", flush=True)
        all_ok = all_ok and result["ok"]
    return 0 if all_ok else 1


def described_device() -> dict[str, Any] | None:
    """The GPU that the figures belong to."""
    import torch

    if not torch.cuda.is_available():
        return None
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {"device": torch.cuda.get_device_name(), "compute_capability": capability}


def circumstances() -> dict[str, Any]:
    """When a stage was run, of which commit and with which versions."""
    import torch

    try:
        import triton
    except ImportError:
        triton = None
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("COMMIT") or _output("git", "describe", "--always", "--dirty") or None,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or None,
    }


def build(_: Path) -> dict[str, Any]:
    """Compiles `_cpu` and, where there is nvcc, `_cuda` beside the sources."""
    import torch

    nvcc = toolkit("nvcc")
    environment = {"CONE_CUDA": "auto", "CONE_CUDA_ARCHS": "".join(map(str, torch.cuda.get_device_capability()))}
    if nvcc is not None:
        environment["CUDA_HOME"] = str(Path(nvcc).parents[1])
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    for old in (ROOT / "cone_kernels").glob("_c*.so"):
        old.unlink()  # what cannot be built must not be tried as it was before
    end = time.perf_counter() + LIMIT_SECONDS["build"]
    ended = run(command, LIMIT_SECONDS["build"], environment)
    print(ended.printed, flush=True)
    if not ended.ok and nvcc is not None:
        # One that cannot be built takes the other with it: both are put beside the sources at the end.
        again = run(command, end - time.perf_counter(), {**environment, "CONE_CUDA": "0"})
        print(again.printed, flush=True)
    missing.cache_clear()
    lacking = missing()
    # What a compiler that succeeded has printed names the machine's folders, and says nothing.
    said = {name: value for name, value in ended.result().items() if name != "last" or not ended.ok}
    return {**said, "ok": ended.ok and not any(lacking.values()), "missing": lacking}


def test(_: Path) -> dict[str, Any]:
    """Runs the tests that need a GPU."""
    lacking = missing()
    result = run_tests(ROOT / "tests" / "kernels" / "gpu", LIMIT_SECONDS["test"], processes_here())
    return {**result, "ok": result["ok"] and not any(lacking.values()), "missing": lacking}


def sanitize(_: Path) -> dict[str, Any]:
    """Runs small cases of each op under the checkers, all at once; before that without one, for Triton's cache."""
    sanitizer = toolkit("compute-sanitizer")
    if sanitizer is None:
        return {"ok": False, "last": "compute-sanitizer is neither in $CUDA_HOME/bin nor on the PATH"}
    end, lacking = time.perf_counter() + LIMIT_SECONDS["sanitize"], missing()
    backends = [name for name in ("triton", "cuda") if not lacking[name]]

    def small_case(checker: list[str], backend: str, case: str = "all", most: float = math.inf) -> dict[str, Any]:
        # Blocks that torch keeps for later would hide accesses out of bounds.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
        command = [*checker, sys.executable, "-m", "bench.gpu.small_case", backend, case]
        ended = run(command, min(most, end - time.perf_counter()), environment)
        if not ended.ok:
            print(f"{' '.join(command)}:\n{ended.printed}", flush=True)
        reported = [line for line in ended.printed.splitlines() if line.startswith("=========")]
        return {**ended.result(), "reported": reported[:_MOST_REPORTED]}

    def under(tool: str) -> list[str]:
        # A process that a library starts is not ours to check.
        options = ["--target-processes", "application-only", "--error-exitcode", "9"]
        # Nor are torch's kernels; but what they write must be seen where it is asked whether anything was written.
        others = [] if tool == "initcheck" else ["--kernel-name-exclude", "kns=at6native"]
        return [sanitizer, "--tool", tool, *options, *others]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # Triton compiles each case in a process of its own; the CUDA kernels are compiled.
        compiled = {"triton": (*CASES, *FEW_CASES), "cuda": ("all",)}
        each = [(name, case) for name in backends for case in compiled[name]]
        unchecked = {
            f"{name} {case}": pool.submit(small_case, [], name, case, _UNCHECKED_SECONDS) for name, case in each
        }
        results: dict[str, Any] = {"unchecked": {name: job.result() for name, job in unchecked.items()}}
        jobs = {
            tool: {
                f"{name} {case}": pool.submit(small_case, under(tool), name, case)
                for name in backends
                for case in watched
            }
            for tool, watched in CHECKED.items()
        }
        for tool, by_case in jobs.items():
            results[tool] = {name: job.result() for name, job in by_case.items()}
    ok = not any(lacking.values()) and all(one["ok"] for named in results.values() for one in named.values())
    return {"ok": ok, "missing": lacking, **results}


def bench(file: Path) -> dict[str, Any]:
    """Times the kernels; writes the table beside the JSON."""
    only = os.environ.get("ONLY", "")
    table = file.with_suffix(".only.md" if only else ".md")
    measured = file.with_suffix(".bench.json")
    measured.unlink(missing_ok=True)
    end, ended = time.perf_counter() + LIMIT_SECONDS["bench"], None
    # It goes on where it was when a kernel took the device's context away.
    while ended is None or (ended.code == LOST_DEVICE and end - time.perf_counter() > _WORTH_BEGINNING):
        command = [sys.executable, "-m", "bench.gpu.kernels", str(measured), str(table), only]
        ended = run(command, end - time.perf_counter())
        print(ended.printed, flush=True)
    result = ended.result()
    if measured.exists():
        result |= json.loads(measured.read_text())
        measured.unlink()
    lacking = missing()
    complete = ended.ok and not result.get("failed") and not any(lacking.values())
    return {**result, "ok": complete, "missing": lacking, **({"only": only} if only else {})}


def product(_: Path) -> dict[str, Any]:
    """Runs everything that the package does on the GPU and on the CPU."""
    lacking = missing()
    without = {name for name, reason in lacking.items() if reason}
    processes = min(_MOST_CASES, len(os.sched_getaffinity(0)))
    result = run_product("cuda", LIMIT_SECONDS["product"], processes, without=without)
    return {**result, "ok": result["ok"] and not any(lacking.values()), "missing": lacking}


def end_to_end(file: Path) -> dict[str, Any]:
    """Times whole runs and probed forwards of two shapes."""
    measured = file.with_suffix(".end_to_end.json")
    measured.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.end_to_end", "--device", "cuda", "--out", str(measured)]
    ended = run(command, LIMIT_SECONDS["end_to_end"])
    print(ended.printed, flush=True)
    shapes = json.loads(measured.read_text()) if measured.exists() else {}
    measured.unlink(missing_ok=True)
    return {**ended.result(), "shapes": shapes}


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "build": build,
    "test": test,
    "sanitize": sanitize,
    "bench": bench,
    "product": product,
    "end_to_end": end_to_end,
}


@functools.cache
def missing() -> dict[str, str]:
    """What keeps each backend from running, "" where nothing does; in a process of its own, as a build changes it."""
    ended = run([sys.executable, "-m", "bench.gpu.backends"], 60)
    if not ended.ok:
        return dict.fromkeys(("triton", "cuda", "cpu"), ended.result()["last"])
    found: dict[str, str] = json.loads(next(line for line in ended.printed.splitlines() if line.startswith("{")))
    for name, reason in found.items():
        if reason:
            print(f"{name}: {reason}", flush=True)
    return found


def _output(*command: str) -> str:
    ended = run(list(command), 10) if toolkit(command[0]) else None
    return ended.printed.strip() if ended is not None and ended.ok else ""


if __name__ == "__main__":
    sys.exit(main())
