"""What all compiled kernels take of tensors: addresses, shapes, strides in elements, and the dtypes they know."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

# cone::DType in csrc/include/cone/types.h
DTYPE_NUMBERS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# What the kernels of the GPU backends read and write; the CPU's take float64 too.
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Rows(TypedDict):
    """Rows (L, n, d) as bindings take them: the address of each layer, shape and strides in elements."""

    layers: list[int]
    dtype: int
    n: int
    d: int
    row_stride: int
    col_stride: int


class HiddenStates(TypedDict):
    """Layers (B, T, d) or (N, d) as bindings take them, with the mask or the sentences' first rows."""

    layers: list[int]
    dtype: int
    n_sentences: int
    n_tokens: int
    d: int
    strides: tuple[int, int, int]
    mask: int
    cu_seqlens: int


def require_gpu_dtype(name: str, dtype: torch.dtype, backend: str) -> None:
    """Raises a TypeError, of the argument `name`, unless kernels of the GPU backend `backend` take `dtype`."""
    if dtype not in GPU_DTYPES:
        got, *taken = (str(one).removeprefix("torch.") for one in (dtype, *GPU_DTYPES))
        raise TypeError(f"{name}: got dtype {got}; it must be one of {', '.join(taken)} for backend {backend}")


def address(tensor: Tensor | None) -> int:
    """Where the tensor's elements are; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def sum_addresses(sums: dict[str, Tensor]) -> dict[str, int]:
    """Where each sum is, by name."""
    return {field: total.data_ptr() for field, total in sums.items()}


def column_stride(x: Tensor) -> int:
    """The stride of the last dimension; 1 for a single column, whose stride means nothing: kernels are fastest at 1."""
    return 1 if x.shape[-1] == 1 else x.stride(-1)


def rows_of(x: Tensor) -> Rows:
    """Rows x (L, n, d), or (n, d) for one layer, as bindings take them."""
    base = x.data_ptr() or no_address(x)
    shape, strides = x.shape, x.stride()  # asked for once: each time takes the host as long as a row takes a kernel
    layers = [base]
    if len(shape) > 2:
        step = strides[0] * x.element_size()
        layers = [base + layer * step for layer in range(shape[0])]
    return {
        "layers": layers,
        "dtype": DTYPE_NUMBERS[x.dtype],
        "n": shape[-2],
        "d": shape[-1],
        "row_stride": strides[-2],
        "col_stride": 1 if shape[-1] == 1 else strides[-1],
    }


def hidden_states_of(
    layers: Sequence[Tensor], mask: Tensor | None, cu_seqlens: Tensor | None, n_sentences: int
) -> HiddenStates:
    """Layers (B, T, d) or (N, d), of one set of strides, as bindings take them."""
    first = layers[0]
    shape, strides = first.shape, first.stride()
    return {
        "layers": [layer.data_ptr() or no_address(layer) for layer in layers],
        "dtype": DTYPE_NUMBERS[first.dtype],
        "n_sentences": n_sentences,
        "n_tokens": shape[-2],
        "d": shape[-1],
        "strides": (strides[0], strides[-2], 1 if shape[-1] == 1 else strides[-1]),
        "mask": address(mask),
        "cu_seqlens": address(cu_seqlens),
    }


def no_address(x: Tensor) -> int:
    """0 for an input without elements; a ValueError where it has some, but no memory that they are in."""
    if x.numel() > 0:
        raise ValueError(
            f"input: got a tensor of shape {tuple(x.shape)} without memory; it must have its elements "
            "(a sharded parameter must be gathered first)"
        )
    return 0


def of_same_strides(layers: Sequence[Tensor]) -> Sequence[Tensor]:
    """The layers, or contiguous copies where their strides differ: one call takes one set of strides."""
    if len(layers) == 1:
        return layers
    strides = layers[0].stride()
    if all([layer.stride() == strides for layer in layers]):  # noqa: C419 - takes the host half a generator's time
        return layers
    return [layer.contiguous() for layer in layers]


def count_sentences(mask: Tensor | None, cu_seqlens: Tensor | None) -> int:
    """How many sentences there are, by the mask (B, T) or else by the sentences' first rows (B + 1,)."""
    if mask is not None:
        return mask.shape[0]  # len() goes through Python code of torch
    assert cu_seqlens is not None
    return cu_seqlens.shape[0] - 1


@functools.lru_cache(maxsize=16)
def start_block(k: int, d: int) -> Tensor:
    """(b, d) float64 on the CPU: the vectors that the search for k eigenvectors starts with, the same at every call.

    b is a multiple of 8, as vectors are multiplied eight at a time, and more than k; or d where that is less.
    """
    block = min(d, (k + 8) // 8 * 8)
    generator = torch.Generator().manual_seed(0)
    return torch.randn((block, d), dtype=torch.float64, generator=generator, device="cpu")
