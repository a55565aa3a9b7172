"""A stand-in for a GPU: tensors in ordinary memory that say they are on cuda:0 and refuse what CUDA refuses.

Ops run the CPU's kernels, so it says nothing of a GPU's speed or rounding. It shows that what crosses between the
devices does so on purpose, and counts what a GPU would be given: operations to launch, and waits of the host.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from cone_kernels import backends
from cone_kernels.ops.arguments import traced
from tests.support.built_once import built_once, cache_folder

CUDA = torch.device("cuda:0")
_GUARD = Path(__file__).with_name("device_guard.cpp")

# Ops that are called directly but for tensors of subclasses; a GPU's are of none.
_TRACED = ("masked_mean_pool", "mean_pairwise_cosine", "pool_moments", "row_moments", "second_moment")

aten = torch.ops.aten
# What takes tensors of both devices; an index may be on the CPU whatever it is used on.
_COPIES = (aten._to_copy, aten.copy_, aten._foreach_copy_, aten._copy_from, aten.set_)
_INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
_PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot, aten.addmv)
# After these the host knows a number of values, or a value, so it waits for the device.
_WAITS = (
    aten._local_scalar_dense,
    aten.nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.masked_select,
    aten.equal,
    aten.bincount,
)


class StandIn(Tensor):
    """A tensor that says it is on a GPU; `held` is the CPU tensor of the same memory."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> StandIn:
        keys: Any = {"dispatch_device": True, "device_for_backend_keys": CUDA}
        made: StandIn = Tensor._make_subclass(cls, held, requires_grad, **keys)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {}, Work())

    def tolist(self) -> Any:
        """Subclasses of torch's have none."""
        return self.cpu().tolist()

    def numpy(self, **options: Any) -> Any:
        """Refused as CUDA does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args: Any, **options: Any) -> Any:
        return self.numpy()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def record_stream(self, stream: Any) -> None:
        """There is one stream, so nothing is freed too early."""


@dataclass
class Work:
    """What the stand-in was given: how often each operation was launched, and how often the host waited for one."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)


class _OnStandIn(TorchDispatchMode):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and _is_made_of_others(func):
            with self:
                # In inference mode torch hands over what is made of other operations as a whole.
                return func.decompose(*args, **(kwargs or {}))
        return _dispatched(func, args, kwargs or {}, self._work)


@cache
def _is_made_of_others(func: Any) -> bool:
    """What `OpOverload.decompose` asks at every call, which takes as long as all else here."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return key in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any], work: Work) -> Any:
    if func is torch.ops.prim.device.default:
        return CUDA if isinstance(args[0], StandIn) else torch.device("cpu")
    packet = func.overloadpacket
    tensors = _tensors([*args, *kwargs.values()])
    wrappers = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, StandIn)}
    on_gpu = bool(wrappers)
    if on_gpu:
        _refuse_what_cuda_refuses(packet, args, tensors)
    if kwargs.get("device") is not None:
        to_gpu = torch.device(kwargs["device"]).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        to_gpu = on_gpu if packet is not aten.copy_ else isinstance(args[0], StandIn)
    if on_gpu or to_gpu:
        _count(func, packet, args, kwargs, tensors, to_gpu, work)

    result = func(*_held(args), **_held(kwargs))

    def wrapped(value: Any) -> Any:
        if not to_gpu or not isinstance(value, Tensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else StandIn(value)

    return wrapped(result) if isinstance(result, Tensor) else tree_map(wrapped, result)


# Arguments are values, and lists and dictionaries of them: torch's walk through any tree takes several times as long.
def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
        elif isinstance(value, dict):
            found += _tensors(value.values())
    return found


def _held(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.held
    if isinstance(value, dict):
        return {name: _held(one) for name, one in value.items()}
    return type(value)(map(_held, value)) if type(value) in (list, tuple) else value


def _refuse_what_cuda_refuses(packet: Any, args: Any, tensors: list[Tensor]) -> None:
    if packet in _COPIES:
        return
    if packet in _INDEXED and isinstance(args[0], StandIn):
        tensors = [args[0], *args[2:3]]
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, StandIn) and tensor.dim() > 0]
    if elsewhere:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({packet})"
        )
    if packet in _PRODUCTS and not tensors[0].is_floating_point():
        raise RuntimeError(f'"{packet}" not implemented for {tensors[0].dtype} on CUDA')


def _count(
    func: Any, packet: Any, args: Any, kwargs: dict[str, Any], sources: list[Tensor], to_gpu: bool, work: Work
) -> None:
    on_gpu = any(isinstance(tensor, StandIn) for tensor in sources)
    asynchronous = packet in _COPIES and bool(kwargs.get("non_blocking") or args[2:3] == (True,))
    sent = packet in _COPIES and not isinstance(sources[-1], StandIn) and not asynchronous
    by_mask = packet in _INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
    sizes_unknown = packet is aten.repeat_interleave and kwargs.get("output_size") is None
    fetched = on_gpu and not to_gpu and not asynchronous
    if packet in _WAITS or sent or by_mask or sizes_unknown or fetched:
        work.waits[str(packet)] += 1
    if not func.is_view:
        work.launches[str(packet)] += 1


class _Stream:
    """A stream of the stand-in, on which everything is done at once."""

    def __init__(self, *args: Any) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass


class _Event:
    """A mark in a stream of the stand-in; whoever waits for it waits for the device."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def record(self, stream: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        self._work.waits["event"] += 1


def _guard() -> None:
    """Gives torch a guard for CUDA devices, where it has none."""
    text = _GUARD.read_bytes() + torch.__version__.encode()
    target = cache_folder("stand-in") / f"device_guard-{hashlib.sha256(text).hexdigest()[:20]}.so"
    torch_folder = Path(torch.__file__).parent

    def build(path: Path) -> None:
        compiler, flags = os.environ.get("CXX", "g++"), ["-std=c++20", "-shared", "-fPIC"]
        where = ["-I", str(torch_folder / "include"), "-L", str(torch_folder / "lib"), "-lc10"]
        subprocess.run([compiler, *flags, str(_GUARD), "-o", str(path), *where], check=True)

    ctypes.CDLL(str(built_once(target, build)))


@contextmanager
def stand_in_gpu() -> Iterator[Work]:
    """Inside, `cuda:0` is there for torch and for cone_kernels, in this thread; yields what it is given."""
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU, which `make gpu` runs the same on")
    _guard()
    work, kernel = Work(), backends.kernel

    def kernel_of_the_cpu(op: str, backend: str | backends.Backend) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if not any(isinstance(tensor, StandIn) for tensor in _tensors(args)):
                return kernel(op, backend)(*args)
            work.launches[op] += 1
            found = kernel(op, backends.Backend.CPU)(*_held(args))
            return tree_map(lambda value: StandIn(value) if isinstance(value, Tensor) else value, found)

        return run

    states = {"seed": torch.zeros(16, dtype=torch.uint8)}
    patches: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "stand-in",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(name="stand-in", total_memory=1 << 34, major=9, minor=0),
        "is_current_stream_capturing": lambda: False,
        "Stream": _Stream,
        "Event": lambda: _Event(work),
        "current_stream": lambda *_: _Stream(),
        "stream": lambda *_: nullcontext(),
        "device": lambda *_: nullcontext(),
        "synchronize": lambda *_: work.waits.update(["synchronize"]),
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: states["seed"],
        "set_rng_state": lambda state, *_: states.update(seed=state),
    }
    backends.capabilities()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in patches.items():
            patched.setattr(torch.cuda, name, value)
        patched.setattr(backends, "kernel", kernel_of_the_cpu)
        patched.setitem(backends._PREFERENCE, "cuda", (backends.Backend.REFERENCE,))
        for op in _TRACED:
            patched.setattr(f"cone_kernels.ops.{op}.traced", lambda x: type(x) is not StandIn and traced(x))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is then a copy from the CPU
        try:
            with _OnStandIn(work):
                yield work
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_overwrite_module_params_on_conversion(before)
