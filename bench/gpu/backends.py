"""Which of the GPU backends can be tried here.

python -m bench.gpu.backends   # JSON: a backend's name -> what is missing, "" where nothing is
"""

from __future__ import annotations

import importlib
import json

from cone_kernels import backends

GPU_BACKENDS = ("triton", "cuda")


def missing() -> dict[str, str]:
    """What keeps each GPU backend, and the CPU kernels that are compared with, from running; "" where nothing does."""
    return {name: _why_not(name) for name in (*GPU_BACKENDS, "cpu")}


def available() -> tuple[str, ...]:
    """The GPU backends that run here."""
    return tuple(name for name in GPU_BACKENDS if not _why_not(name))


def _why_not(name: str) -> str:
    capability = backends.capabilities()[backends.Backend(name)]
    if not capability.available:
        return capability.reason
    extension = {"triton": "triton", "cuda": "cone_kernels._cuda", "cpu": "cone_kernels._cpu"}[name]
    try:
        importlib.import_module(extension)
    except ImportError as error:  # built, but for another Python or against a library that is not here
        return f"{extension} cannot be imported: {error}"
    return ""


if __name__ == "__main__":
    print(json.dumps(missing()))
