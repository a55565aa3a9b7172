"""Where tensors are and what runs there: copies to a GPU, the current device, CPU threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, as `tensor.to` gives it, without a wait for the copy to a GPU.

    The driver has read ordinary memory when this returns. Pinned memory it may read later, when its owner may have
    written to it again, so a copy of that is sent.
    """
    if tensor.device == device:
        return tensor
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor.clone() if tensor.is_pinned() else tensor).to(device, non_blocking=True)


class OnItsWay:
    """A tensor of a GPU whose values are being copied to the host, which goes on meanwhile.

    Examples:
        >>> on_its_way = OnItsWay(mask)
        >>> hidden = model(ids, mask)
        >>> on_its_way.values().max()  # what the mask held before the model ran
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)  # into pinned memory, which torch takes by itself
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(tensor.device))

    def values(self) -> Tensor:
        """The values, on the CPU; waits until they are there, and not for what the GPU was given after them."""
        self._arrived.synchronize()
        return self._copy


def is_captured(tensor: Tensor) -> bool:
    """Whether what is computed from a tensor now is recorded in a CUDA graph, so that there is no value to look at."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def has_no_values(tensor: Tensor) -> bool:
    """Whether torch writes down what is done with a tensor, for later values: torch.compile, export, make_fx, fakes.

    Nothing may be decided by a value of it then.
    """
    if torch.compiler.is_compiling():
        return True
    if type(tensor) is Tensor and torch._C._len_torch_dispatch_stack() == 0:
        return False
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return isinstance(tensor, FakeTensor) or get_proxy_mode() is not None


@functools.cache
def on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, with the device of its first argument (a tensor, or several) as the current one while it runs.

    torch restores the device before it without making a context on a device that nothing runs on, unlike the CUDA
    runtime.
    """

    @functools.wraps(kernel)
    def run(first: Any, *others: Any) -> Any:
        x = first if isinstance(first, Tensor) else first[0]
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            return kernel(first, *others)

    return run


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Runs a block with this many of torch's CPU threads, and restores the number before it; None changes nothing.

    Examples:
        >>> with cpu_threads(1):
        ...     x @ y
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
