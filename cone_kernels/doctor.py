"""What this machine offers to the kernels: versions, backends, threads, instruction sets, memory and its bandwidth."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

SCHEMA = "cone_kernels/doctor/1"
BANDWIDTH_BYTES = 256 << 20
_PACKAGES = ("torch", "transformers", "sentence-transformers", "triton", "numpy", "safetensors")


def examine() -> dict[str, Any]:
    """Everything `cone doctor` shows, as JSON data; measures for about a second and never raises for what is missing.

    Examples:
        >>> examine()["cpu"]["isa"]
        'avx512'
    """
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "backends": backends(),
        "cpu": cpu(),
        "gpus": gpus(),
        "memory": memory(),
        "bandwidth": bandwidth(),
    }


def versions() -> dict[str, str | None]:
    """The versions of this package, Python and the packages that numbers may depend on; None: it is not installed."""
    from cone_kernels import __version__

    return {"cone_kernels": __version__, "python": platform.python_version()} | {
        package: _version(package) for package in _PACKAGES
    }


@lru_cache
def _version(package: str) -> str | None:
    """Kept: to read the metadata of them all takes as long as to compare two states."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def backends() -> list[dict[str, Any]]:
    """Each backend: whether it runs here, on which devices, which ops it has, and why not where it does not."""
    from cone_kernels.backends import capabilities

    return [
        {
            "backend": str(capability.backend),
            "available": capability.available,
            "reason": capability.reason,
            "devices": list(capability.devices),
            "ops": list(capability.ops),
        }
        for capability in capabilities().values()
    ]


def cpu() -> dict[str, Any]:
    """Cores, threads and instruction sets."""
    found: dict[str, Any] = {
        "name": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "isa": None,
        "supported_isas": [],
    }
    if importlib.util.find_spec("torch"):
        import torch

        found["torch_threads"] = torch.get_num_threads()
    if importlib.util.find_spec("cone_kernels._cpu"):
        # Where neither torch nor the system has OpenMP's library, it does not load.
        with suppress(ImportError):
            from cone_kernels import _cpu

            found["isa"] = _cpu.isa()
            found["supported_isas"] = list(_cpu.supported_isas())
    return found


def gpus() -> list[dict[str, Any]]:
    """The GPUs that torch sees."""
    if not importlib.util.find_spec("torch"):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"} for gpu in found
    ]


def memory() -> dict[str, int | None]:
    """Bytes of memory: in all, available, and the limit of this process's control group."""
    info: dict[str, int] = {}
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        info = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    return {
        "total_bytes": info.get("MemTotal"),
        "available_bytes": info.get("MemAvailable"),
        "limit_bytes": _cgroup_limit(),
    }


def bandwidth() -> dict[str, Any]:
    """Memory bandwidth, best of five: `torch.sum` of 256 MiB of float32, or numpy's copy where torch is missing."""
    import numpy as np

    if importlib.util.find_spec("torch"):
        import torch

        x = torch.ones(BANDWIDTH_BYTES // 4)
        seconds = _best_seconds(lambda: torch.sum(x))
        return {
            "method": "torch.sum, bytes read",
            "bytes": BANDWIDTH_BYTES,
            "gb_per_s": BANDWIDTH_BYTES / seconds / 1e9,
        }
    source = np.ones(BANDWIDTH_BYTES // 8, np.float32)
    target = np.zeros_like(source)
    seconds = _best_seconds(lambda: np.copyto(target, source))
    method = "numpy.copyto on one thread, bytes read and written (torch is not installed)"
    return {"method": method, "bytes": BANDWIDTH_BYTES, "gb_per_s": BANDWIDTH_BYTES / seconds / 1e9}


def _best_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cgroup_limit() -> int | None:
    """The memory limit of control groups version 2, or 1; None where there is none."""
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        # Version 1 says "no limit" by a number near 2**63.
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None
