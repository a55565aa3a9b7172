"""The CUDA kernels of second moments and top eigenvectors: pointers, shapes and strides handed to cone_kernels._cuda."""

from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels import _cuda

# cone::DType in csrc/include/cone/types.h
_DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}


def second_moment(
    moment: Tensor,
    x: Tensor,
    use: Tensor | None,
    weights: Tensor | None,
    pilot: Tensor | None,
    about_pilot: bool,
) -> None:
    """Adds Σ x xᵀ, or Σ (x − pilot)(x − pilot)ᵀ, of x (L, n, d) to the upper triangle of `moment` (L, d, d)."""
    rows, factors = _rows(x), {"weights": _address(weights), "pilot": _address(pilot)}
    size = _cuda.second_moment_workspace(**rows, **factors)
    workspace = torch.empty(size, dtype=torch.float64, device=x.device)
    _cuda.second_moment(
        **rows,
        **factors,
        use=_address(use),
        about_pilot=about_pilot,
        moment=moment.data_ptr(),
        workspace=workspace.data_ptr(),
        **_place(x),
    )


def _rows(x: Tensor) -> dict[str, object]:
    if x.dtype not in _DTYPES:
        wanted = "float32, bfloat16 and float16"
        raise TypeError(f"x: got dtype {str(x.dtype).removeprefix('torch.')}; backend cuda takes {wanted}")
    # A single column has whatever stride; 1 keeps it on the fast path.
    strides = (x.stride(0), x.stride(1), 1 if x.shape[-1] == 1 else x.stride(-1))
    return {"data": x.data_ptr(), "dtype": _DTYPES[x.dtype], "shape": tuple(x.shape), "strides": strides}


def _place(x: Tensor) -> dict[str, int]:
    return {"device": x.device.index, "stream": torch.cuda.current_stream(x.device).cuda_stream}


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
