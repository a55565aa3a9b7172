from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch

from cone_kernels import backends
from cone_kernels.backends import Backend, BackendUnavailable, Capability, capabilities, record, resolve

CPU = torch.device("cpu")


def test_auto_takes_the_compiled_kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    for op in backends.ops_of(Backend.REFERENCE):
        assert resolve("auto", CPU, op) is Backend.CPU


def test_one_asked_for_by_name_is_taken() -> None:
    assert resolve("reference", CPU, "row_moments") is Backend.REFERENCE
    assert resolve(Backend.CPU, CPU, "row_moments") is Backend.CPU


def test_environment_variable_decides_auto_and_only_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "reference")
    assert resolve("auto", CPU, "row_moments") is Backend.REFERENCE
    assert resolve("cpu", CPU, "row_moments") is Backend.CPU
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(ValueError, match="CONE_KERNELS_BACKEND: got 'fast'"):
        resolve("auto", CPU, "row_moments")


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_what_cannot_run_raises_and_never_falls_back(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    capabilities.cache_clear()
    with pytest.raises(BackendUnavailable, match=f"backend={backend} cannot run row_moments: "):
        resolve(backend, CPU, "row_moments")
    assert capabilities()[Backend(backend)].reason
    capabilities.cache_clear()


@pytest.fixture
def cuda_capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Capability]]:
    """What is said of `_cuda` on a machine with a GPU and driver of these kinds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def told(found: tuple[int, int] = (9, 0), gpus: int = 1, driver: int = 13000, built: int = 13000) -> Capability:
        extension = ModuleType("cone_kernels._cuda")
        extension.__spec__ = ModuleSpec("cone_kernels._cuda", None)
        versions = {"runtime_version": built, "driver_version": lambda: driver, "architectures": [800, 900]}
        vars(extension).update(versions, device_count=lambda: gpus)
        monkeypatch.setitem(sys.modules, "cone_kernels._cuda", extension)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: found)
        monkeypatch.setattr(
            backends, "ops_of", lambda backend: ("row_moments",)
        )  # the adapter must not import this one
        capabilities.cache_clear()
        return capabilities()[Backend.CUDA]

    yield told
    capabilities.cache_clear()


@pytest.mark.parametrize("found", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 1)])
def test_cuda_kernels_run_on_every_later_gpu(found: tuple[int, int], cuda_capability: Any) -> None:
    assert cuda_capability(found).available
    # Machine code of one major version is enough for an older driver of the same; PTX is not.
    assert cuda_capability(found, driver=13000, built=13020).available == (found[0] < 10)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"found": (7, 5)}, "the GPU has compute capability 7.5; it must have 8.0 or more"),
        ({"gpus": 0, "driver": 12040}, "built with CUDA 13.0, finds no GPU; the driver has CUDA 12.4"),
        ({"found": (10, 0), "built": 13020}, "the driver has CUDA 13.0; .* needs 13.2 or more on this GPU"),
    ],
)
def test_auto_passes_over_cuda_kernels_that_cannot_run(
    machine: dict[str, Any], reason: str, cuda_capability: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    told = cuda_capability(**machine)
    assert not told.available
    assert re.search(reason, told.reason)
    assert resolve("auto", torch.device("cuda"), "row_moments") is not Backend.CUDA
    with pytest.raises(BackendUnavailable, match="backend=cuda cannot run row_moments"):
        resolve("cuda", torch.device("cuda"), "row_moments")


def test_cpu_kernels_refuse_another_device() -> None:
    with pytest.raises(BackendUnavailable, match="cannot run row_moments on device meta; it runs on cpu"):
        resolve("cpu", torch.device("meta"), "row_moments")
    with pytest.raises(BackendUnavailable, match="no backend runs row_moments on device meta"):
        resolve("auto", torch.device("meta"), "row_moments")


def test_records_nest() -> None:
    with record() as outer:
        backends.kernel("row_moments", "reference")
        with record() as inner:
            backends.kernel("row_moments", "cpu")
        backends.kernel("pool_moments", "cpu")
    assert inner == [("row_moments", Backend.CPU)]
    assert outer == [
        ("row_moments", Backend.REFERENCE),
        ("row_moments", Backend.CPU),
        ("pool_moments", Backend.CPU),
    ]


def test_every_backend_has_every_op_it_names() -> None:
    for capability in capabilities().values():
        for op in capability.ops if capability.available else ():
            assert callable(backends.kernel(op, capability.backend))


def test_an_unknown_instruction_set_is_refused() -> None:
    from cone_kernels import _cpu

    before = _cpu.isa()
    with pytest.raises(ValueError, match="isa: got 'sse9'"):
        _cpu.force_isa("sse9")
    assert _cpu.isa() == before


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    heavy = ("torch", "numpy", "transformers", "rich")
    code = f"import sys, cone_kernels; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    import cone_kernels

    for name in cone_kernels.__all__:
        assert getattr(cone_kernels, name) is not None
    assert set(cone_kernels.__all__) == set(dir(cone_kernels))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cone_kernels.nothing
