from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cone_kernels import backends
from cone_kernels.backends import Backend, BackendUnavailable, capabilities, record, resolve

CPU = torch.device("cpu")


def test_auto_takes_the_compiled_kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    for op in backends.OPS:
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
