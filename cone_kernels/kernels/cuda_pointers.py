"""What the CUDA kernels are told of a tensor: its dtype's number, its address, its device and stream."""

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


def column_stride(x: Tensor) -> int:
    """The stride of the last dimension; a single column has whatever stride, and 1 keeps it on the fast path."""
    return 1 if x.shape[-1] == 1 else x.stride(-1)


def address(tensor: Tensor | None) -> int:
    """Where the tensor's elements are; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def device_number(x: Tensor) -> int:
    """The device's index."""
    return x.device.index or 0


def place_of(x: Tensor) -> tuple[int, int]:
    """The device and its current stream."""
    return device_number(x), torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
