"""GPU kernels are launched on the current device: it is made that of the tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


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
