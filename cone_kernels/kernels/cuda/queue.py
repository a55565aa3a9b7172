"""Where the CUDA kernels run: a device and its current stream."""

from __future__ import annotations

import torch
from torch import Tensor


def device_number(x: Tensor) -> int:
    """The index of the tensor's device."""
    return x.device.index or 0


def queue_of(x: Tensor) -> tuple[int, int]:
    """The tensor's device and its current stream, as bindings take them."""
    return device_number(x), torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
