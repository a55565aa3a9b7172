"""Where tensors are and what runs there: copies to a GPU, the current device, CPU threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, as `tensor.to`, but that what comes from the CPU is in the queue when this returns.

    The driver has read ordinary memory by then. Pinned memory it reads later, when its owner may have filled it
    again, so that is copied first.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor.clone() if tensor.is_pinned() else tensor).to(device, non_blocking=True)


@functools.cache
def on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` with the device of its first argument, a tensor or several, as the current one, and put back after it.

    torch puts it back without making a context on a device that nothing runs on, which the CUDA runtime would.
    """

    @functools.wraps(kernel)
    def run(first: Any, *others: Any) -> Any:
        x = first if isinstance(first, Tensor) else first[0]
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            return kernel(first, *others)

    return run


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """So many threads, and those of before again afterwards; None leaves them.

    Example:
        >>> with cpu_threads(1):
        ...     x @ y
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
