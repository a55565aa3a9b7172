"""Everything that a machine with a GPU is asked, with its own Python and torch and no network: `make gpu`.

python bench/gpu.py [--results FOLDER] [build] [test] [sanitize] [bench]

build     compiles the extensions in place
test      pytest -m gpu
sanitize  compute-sanitizer memcheck, synccheck and racecheck on a small case of each op and backend
bench     times the kernels beside the machine's copy bandwidth and matrix peak

Each stage has a limit, all together under nine minutes. What they found is added to gpu-DEVICE.json in FOLDER (default
bench/results), with a table of the benchmark in gpu-DEVICE.md. Exit code 1 where a stage fails, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = {"build": 120, "test": 150, "sanitize": 110, "bench": 150}
SANITIZERS = ("memcheck", "synccheck", "racecheck")  # the slowest last: it has the time that the others leave


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[*LIMIT_SECONDS, []], help="default: all")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    device = described_device()
    if device is None:
        print("gpu: torch finds no GPU on this machine; nothing was run")
        return 2
    slug = re.sub(r"[^a-z0-9]+", "-", device["device"].lower()).strip("-")
    file = arguments.results / f"gpu-{slug}.json"
    arguments.results.mkdir(parents=True, exist_ok=True)
    found = json.loads(file.read_text()) if file.exists() else {}
    found.update(device)
    for stage in arguments.stages or LIMIT_SECONDS:
        print(f"== {stage}", flush=True)
        start = time.perf_counter()
        result = STAGES[stage](file)
        found[stage] = {"seconds": round(time.perf_counter() - start, 1), **result}
        file.write_text(json.dumps(found, indent=2) + "\n")
        print(f"== {stage}: {'ok' if result['ok'] else 'FAILED'} in {found[stage]['seconds']} s", flush=True)
    return 0 if all(found[stage]["ok"] for stage in arguments.stages or LIMIT_SECONDS) else 1


def described_device() -> dict[str, Any] | None:
    """The GPU and the versions that the figures belong to."""
    import torch

    if not torch.cuda.is_available():
        return None
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").strip()
    try:
        import triton
    except ImportError:
        triton = None
    return {
        "device": torch.cuda.get_device_name(),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": driver,
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "commit": _output("git", "rev-parse", "--short", "HEAD").strip(),
    }


def build(_: Path) -> dict[str, Any]:
    """Compiles `_cpu` and `_cuda` beside the sources."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    return _ran("build", command, {"CONE_CUDA": "1"})


def test(_: Path) -> dict[str, Any]:
    """Runs the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    result = _ran("test", command)
    counts = re.findall(r"(\d+) (passed|failed|error|skipped)", result["last"])
    return result | {what: int(number) for number, what in counts}


def sanitize(_: Path) -> dict[str, Any]:
    """Runs a small case of each op under the checkers of memory, of barriers and of races."""
    if shutil.which("compute-sanitizer") is None:
        return {"ok": False, "last": "compute-sanitizer is not on the PATH"}
    results: dict[str, Any] = {}
    start = time.perf_counter()
    for number, tool in enumerate(SANITIZERS):
        command = [
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "bench/gpu_small_case.py",
        ]
        # Blocks that torch keeps for later would hide accesses out of bounds.
        left = 1 - (time.perf_counter() - start) / LIMIT_SECONDS["sanitize"]
        share = left / (len(SANITIZERS) - number)
        results[tool] = _ran("sanitize", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, share=share)
    return {"ok": all(result["ok"] for result in results.values()), **results}


def bench(file: Path) -> dict[str, Any]:
    """Times the kernels; writes the table beside the JSON."""
    measured = file.with_suffix(".bench.json")
    result = _ran("bench", [sys.executable, "bench/gpu_kernels.py", str(measured), str(file.with_suffix(".md"))])
    if measured.exists():
        result |= json.loads(measured.read_text())
        measured.unlink()
    return result


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "build": build,
    "test": test,
    "sanitize": sanitize,
    "bench": bench,
}


def _ran(stage: str, command: list[str], environment: dict[str, str] | None = None, share: float = 1) -> dict[str, Any]:
    """Whether the command succeeded within the stage's limit (or a share of it), and the last lines that it printed."""
    limit = LIMIT_SECONDS[stage] * share
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **(environment or {})}
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        printed, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        printed += f"\nstopped after {limit:.0f} s"
    print(printed, flush=True)
    return {"ok": process.returncode == 0, "last": "\n".join(printed.strip().splitlines()[-12:])}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
