"""What compiled kernels are told of tensors: addresses, shapes, strides in elements."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def address(tensor: Tensor | None) -> int:
    """Where the tensor's elements are; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def sum_addresses(sums: dict[str, Tensor]) -> dict[str, int]:
    """Where each sum is, by name."""
    return {field: total.data_ptr() for field, total in sums.items()}


def column_stride(x: Tensor) -> int:
    """The stride of the last dimension; a single column has whatever stride, and 1 keeps it on the fast path."""
    return 1 if x.shape[-1] == 1 else x.stride(-1)


def rows_of(x: Tensor, dtype: int) -> dict[str, object]:
    """Rows x (L, n, d) as bindings take them; `dtype` is the number of their dtype."""
    base, step = x.data_ptr(), x.stride(0) * x.element_size()
    return {
        "layers": [base + layer * step for layer in range(x.shape[0])],
        "dtype": dtype,
        "n": x.shape[1],
        "d": x.shape[2],
        "row_stride": x.stride(1),
        "col_stride": column_stride(x),
    }


def hidden_states_of(
    layers: Sequence[Tensor], dtype: int, mask: Tensor | None, cu_seqlens: Tensor | None, n_sentences: int
) -> dict[str, object]:
    """Layers (B, T, d) or (N, d), of one set of strides, as bindings take them."""
    first = layers[0]
    return {
        "layers": [layer.data_ptr() for layer in layers],
        "dtype": dtype,
        "n_sentences": n_sentences,
        "n_tokens": first.shape[-2],
        "d": first.shape[-1],
        "strides": (first.stride(0), first.stride(-2), column_stride(first)),
        "mask": address(mask),
        "cu_seqlens": address(cu_seqlens),
    }


def of_same_strides(layers: Sequence[Tensor]) -> Sequence[Tensor]:
    """The layers; where their strides differ, contiguous copies, for one call takes one set of strides."""
    if all(layer.stride() == layers[0].stride() for layer in layers):
        return layers
    return [layer.contiguous() for layer in layers]
