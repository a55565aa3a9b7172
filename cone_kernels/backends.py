"""The one place that chooses which backend runs an op.

A backend is a module whose `__all__` names its kernels, one function an op, of the op's name; or a folder with one such
module an op. `auto` takes the best available backend that has the op and runs on the tensor's device. A
backend asked for by name, as an argument or through the environment variable CONE_KERNELS_BACKEND, runs or raises
`BackendUnavailable`, and never falls back.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ENVIRONMENT_VARIABLE = "CONE_KERNELS_BACKEND"


class Backend(str, Enum):
    """Who computes an op."""

    REFERENCE = "reference"
    CPU = "cpu"
    TRITON = "triton"
    CUDA = "cuda"

    def __str__(self) -> str:
        return self.value


class BackendUnavailable(RuntimeError):  # noqa: N818 - the name says what is wrong, as torch's own do
    """The backend asked for cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Capability:
    """What a backend can do on this machine, and why not where it cannot."""

    backend: Backend
    available: bool
    reason: str
    ops: tuple[str, ...] = ()
    """What it has kernels for; none where it is not available."""
    devices: tuple[str, ...] = ()
    """Types of the devices that its kernels run on."""


# The module that has a backend's kernel for an op.
_MODULES = {
    Backend.REFERENCE: "cone_kernels.kernels.reference",
    Backend.CPU: "cone_kernels.kernels.cpu",
    Backend.TRITON: "cone_kernels.kernels.triton.{op}",
    Backend.CUDA: "cone_kernels.kernels.cuda",
}
# A look-up, since torch.compile under torch 2.11 cannot trace `Backend(name)`.
_BY_NAME: dict[str, Backend] = {backend.value: backend for backend in Backend}
# What `auto` tries on a device, in this order. Triton's interpreter runs on the CPU too, but only when asked for.
_PREFERENCE = {
    "cuda": (Backend.CUDA, Backend.TRITON, Backend.REFERENCE),
    "cpu": (Backend.CPU, Backend.REFERENCE),
}
_LEAST_COMPUTE_CAPABILITY = (8, 0)
_runs: list[list[tuple[str, Backend]]] = []


@functools.cache
def capabilities() -> dict[Backend, Capability]:
    """What each backend can do here, the fastest first.

    Examples:
        >>> capabilities()[Backend.CPU].available
        True
    """
    return {
        Backend.CUDA: _cuda_capability(),
        Backend.TRITON: _triton_capability(),
        Backend.CPU: _cpu_capability(),
        Backend.REFERENCE: _reference_capability(),
    }


def ops_of(backend: Backend) -> tuple[str, ...]:
    """The ops that `backend`, which must be available, has kernels for; the reference has them all.

    Examples:
        >>> "row_moments" in ops_of(Backend.REFERENCE)
        True
    """
    module = _MODULES[backend]
    if "{op}" in module:
        return tuple(op for op in ops_of(Backend.REFERENCE) if importlib.util.find_spec(module.format(op=op)))
    return tuple(importlib.import_module(module).__all__)


def resolve(backend: str | Backend, device: torch.device, op: str) -> Backend:
    """The backend that runs `op` on tensors of `device`.

    Args:
        backend: a backend's name, or "auto": CONE_KERNELS_BACKEND where set, else the best one for the device.
        device: where the op's tensors are.
        op: one of the reference's `ops_of`.

    Raises:
        ValueError: `backend` or the environment variable names no backend.
        BackendUnavailable: the backend asked for cannot run this op here, or no backend can.
    """
    source = "backend"
    if backend == "auto" and ENVIRONMENT_VARIABLE in os.environ:
        source, backend = ENVIRONMENT_VARIABLE, os.environ[ENVIRONMENT_VARIABLE]
    if backend == "auto":
        name = _preferred(device.type, op)
        if not name:
            raise BackendUnavailable(f"no backend runs {op} on device {device}: {_reasons(op)}")
        return _BY_NAME[name]
    if backend not in _BY_NAME:
        names = ", ".join(["auto", *Backend])
        raise ValueError(f"{source}: got {backend!r}; it must be one of {names}")
    chosen = _BY_NAME[backend]
    refusal = _refusal(chosen.value, device.type, op)
    if refusal:
        raise BackendUnavailable(f"{source}={chosen} {refusal}")
    return chosen


def kernel(op: str, backend: str | Backend) -> Callable[..., Any]:
    """The function of `backend` for `op`; the run is noted for `record`."""
    chosen = _BY_NAME[backend]
    for runs in _runs:
        runs.append((op, chosen))
    return function(op, chosen)


@functools.cache
def function(name: str, backend: Backend) -> Callable[..., Any]:
    """The function `name` of a backend: a kernel, or what an op needs beside it, which is not noted as a run."""
    found: Callable[..., Any] = getattr(importlib.import_module(_MODULES[backend].format(op=name)), name)
    if backend not in (Backend.CUDA, Backend.TRITON):
        return found
    from cone_kernels.devices import on_its_device

    return on_its_device(found)


@contextmanager
def record() -> Iterator[list[tuple[str, Backend]]]:
    """Collects (op, backend) of every kernel that runs inside the block.

    Examples:
        >>> with record() as runs:
        ...     _ = mean_pairwise_cosine(x, backend="cpu")
        >>> runs
        [('mean_pairwise_cosine', <Backend.CPU: 'cpu'>)]
    """
    runs: list[tuple[str, Backend]] = []
    _runs.append(runs)
    try:
        yield runs
    finally:
        _runs[:] = [other for other in _runs if other is not runs]


def _preferred(device_type: str, op: str) -> str:
    capable = capabilities()
    for backend in _PREFERENCE.get(device_type, ()):
        capability = capable[backend]
        if capability.available and op in capability.ops:
            return backend.value
    return ""


def _refusal(backend: str, device_type: str, op: str) -> str:
    """Why a backend asked for by name does not run an op; "" where it does."""
    capability = capabilities()[Backend(backend)]
    if not capability.available:
        return f"cannot run {op}: {capability.reason}"
    if op not in capability.ops:
        return f"has no kernel for {op}; it has {', '.join(capability.ops)}"
    if device_type not in capability.devices:
        return f"cannot run {op} on device {device_type}; it runs on {', '.join(capability.devices)}"
    return ""


# torch.compile takes the answers as constants instead of tracing the search; as assume_constant_result, without torch.
_preferred._dynamo_marked_constant = True  # type: ignore[attr-defined]
_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _reasons(op: str) -> str:
    return "; ".join(f"{capability.backend}: {_reason(capability, op)}" for capability in capabilities().values())


def _reason(capability: Capability, op: str) -> str:
    if not capability.available:
        return capability.reason
    return f"runs on {', '.join(capability.devices)}" if op in capability.ops else f"has no kernel for {op}"


def _capability(backend: Backend, missing: str, devices: tuple[str, ...]) -> Capability:
    return Capability(backend, not missing, missing, () if missing else ops_of(backend), devices)


def _missing_torch() -> str:
    return "" if importlib.util.find_spec("torch") else "torch is not installed (pip install torch)"


def _reference_capability() -> Capability:
    return _capability(Backend.REFERENCE, _missing_torch(), ("cpu", "cuda"))


def _cpu_capability() -> Capability:
    missing = _missing_torch()
    if not missing and importlib.util.find_spec("cone_kernels._cpu") is None:
        missing = "the extension cone_kernels._cpu is not built (pip install . builds it)"
    return _capability(Backend.CPU, missing or _failure_to_load(), ("cpu",))


def _failure_to_load() -> str:
    """Why `_cpu` does not load, "" where it does; torch is loaded first, whose OpenMP library it takes."""
    try:
        importlib.import_module("torch")
        importlib.import_module("cone_kernels._cpu")
    except ImportError as error:
        return f"the extension cone_kernels._cpu does not load: {error}"
    return ""


def _triton_capability() -> Capability:
    missing = _missing_torch()
    if not missing and importlib.util.find_spec("triton") is None:
        missing = "triton is not installed (pip install triton)"
    if not missing and os.environ.get("TRITON_INTERPRET") == "1":
        return _capability(Backend.TRITON, "", ("cuda", "cpu"))
    return _capability(Backend.TRITON, missing or _missing_gpu(), ("cuda",))


def _cuda_capability() -> Capability:
    missing = "the extension cone_kernels._cuda is not built (there was no nvcc, or CONE_CUDA=0 was set)"
    if importlib.util.find_spec("cone_kernels._cuda") is not None:
        missing = _missing_torch() or _missing_gpu() or _missing_machine_code()
    return _capability(Backend.CUDA, missing, ("cuda",))


def _missing_machine_code() -> str:
    """Why `_cuda` as it was built cannot run on the current GPU; asked without making a context on it."""
    import torch

    extension = importlib.import_module("cone_kernels._cuda")
    versions = (extension.runtime_version, extension.driver_version())
    built, driver = (f"{version // 1000}.{version % 1000 // 10}" for version in versions)
    try:
        gpus = extension.device_count()
    except RuntimeError as error:
        return f"the extension cone_kernels._cuda finds no GPU: {error}"
    if gpus == 0:
        return f"the extension cone_kernels._cuda, built with CUDA {built}, finds no GPU; the driver has CUDA {driver}"
    major, minor = torch.cuda.get_device_capability()
    found, architectures = 100 * major + 10 * minor, extension.architectures
    if any(architecture // 100 == major and architecture <= found for architecture in architectures):
        return ""
    if found < max(architectures):
        names = ", ".join(f"{architecture // 100}.{architecture % 100 // 10}" for architecture in architectures)
        return f"the GPU has compute capability {major}.{minor}; the extension cone_kernels._cuda is built for {names}"
    if versions[1] < versions[0]:
        return f"the driver has CUDA {driver}; the extension cone_kernels._cuda needs {built} or more on this GPU"
    return ""


def _missing_gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "torch finds no GPU that it can use"
    found = torch.cuda.get_device_capability()
    if found < _LEAST_COMPUTE_CAPABILITY:
        least = ".".join(map(str, _LEAST_COMPUTE_CAPABILITY))
        return f"the GPU has compute capability {found[0]}.{found[1]}; it must have {least} or more"
    return ""
