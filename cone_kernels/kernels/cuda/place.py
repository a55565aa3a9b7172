"""Which tensors the CUDA kernels take, and where they run: the device and its current stream."""

from __future__ import annotations

import torch
from torch import Tensor

# cone::DType in csrc/include/cone/types.h
_DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}


def dtype_number(name: str, dtype: torch.dtype) -> int:
    """The dtype as the kernels number it; TypeError, of the argument `name`, where they do not take it."""
    if dtype not in _DTYPES:
        got, wanted = (str(one).removeprefix("torch.") for one in (dtype, "float32, bfloat16 or float16"))
        raise TypeError(f"{name}: got dtype {got}; the CUDA kernels take {wanted}")
    return _DTYPES[dtype]


def device_number(x: Tensor) -> int:
    """The device's index."""
    return x.device.index or 0


def place_of(x: Tensor) -> tuple[int, int]:
    """The device and its current stream."""
    return device_number(x), torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
