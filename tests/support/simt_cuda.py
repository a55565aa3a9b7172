"""backend="cuda" on CPU tensors: the adapter as it is, above the kernels that tests/kernels/simt runs on the CPU."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator

import pytest

from cone_kernels import backends
from tests.support import simt_build


def order_of_threads(seed: int) -> None:
    """The order in which blocks, and threads between barriers, run: 0 forwards, 1 backwards, else shuffled."""
    ctypes.CDLL(str(simt_build.cuda_module().path)).simt_order(seed)


def launches() -> int:
    """How many kernels have been launched so far."""
    return int(ctypes.CDLL(str(simt_build.cuda_module().path)).simt_launches())


SHARED_BYTES = 227 << 10
"""Of a block, on the GPU that the tests stand in for."""


def most_shared_memory(bytes_of_block: int) -> None:
    """How much shared memory a block may have from now on."""
    ctypes.CDLL(str(simt_build.cuda_module().path)).simt_most_shared(bytes_of_block)


@pytest.fixture
def simt_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For one test, backend="cuda" runs on CPU tensors."""
    module = simt_build.cuda_module()
    if "cone_kernels.kernels.cuda" not in sys.modules and importlib.util.find_spec("cone_kernels._cuda") is None:
        # Without nvcc there is no extension for the adapter to import.
        monkeypatch.setitem(sys.modules, "cone_kernels._cuda", module)
    for adapter in ("moments", "matrices"):
        monkeypatch.setattr(importlib.import_module(f"cone_kernels.kernels.cuda.{adapter}"), "_cuda", module)
    cuda = backends.Backend.CUDA
    capability = backends.Capability(cuda, True, "", backends.ops_of(cuda), ("cpu",))
    monkeypatch.setattr(backends, "_cuda_capability", lambda: capability)
    backends.capabilities.cache_clear()
    yield
    order_of_threads(0)
    most_shared_memory(SHARED_BYTES)
    backends.capabilities.cache_clear()
