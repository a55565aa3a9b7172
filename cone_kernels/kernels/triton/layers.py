"""Where the rows of all layers are, in a form that one launch takes."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.pointers import GPU_DTYPES, column_stride

_ELEMENTS = {dtype: getattr(tl, str(dtype).removeprefix("torch.")) for dtype in GPU_DTYPES}
_VECTOR_BYTES = 16  # of the widest load that a thread makes


def layer_arguments(layers: Sequence[Tensor]) -> dict[str, object]:
    """Arguments of a kernel for layers alike in shape and strides, (..., rows, d): see `first_element`.

    Evenly spaced layers, as views of one tensor are, need no more than the first one's address; others a table of
    addresses. outer_step and row_step, strides in units of VECTOR elements, are those of the two dimensions before d.
    """
    first = layers[0]
    size = first.element_size()
    addresses = [layer.data_ptr() for layer in layers]
    step = addresses[1] - addresses[0] if len(addresses) > 1 else 0
    even = step % size == 0 and addresses == [addresses[0] + step * layer for layer in range(len(addresses))]
    row_stride, outer_stride = first.stride(-2), first.stride(0) if first.dim() > 2 else 0
    spacing = [step // size] if even else []
    multiples = [*addresses, *(stride * size for stride in (row_stride, outer_stride, *spacing))]
    aligned = column_stride(first) == 1 and all(multiple % _VECTOR_BYTES == 0 for multiple in multiples)
    vector = _VECTOR_BYTES // size if aligned else 1
    return {
        "layers": first if even else _on_device(addresses, first.device),
        "layer_step": step // size // vector if even else 0,
        "outer_step": outer_stride // vector,
        "row_step": row_stride // vector,
        "column_stride": column_stride(first),
        "ELEMENT": _ELEMENTS[first.dtype],
        "TABLE": not even,
        "VECTOR": vector,
    }


def _on_device(addresses: Sequence[int], device: torch.device) -> Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # Replays of the graph would read the host's memory again. A number that a kernel is given stays in the graph.
        return torch.cat([torch.full((1,), address, dtype=torch.int64, device=device) for address in addresses])
    # A copy from pinned memory does not wait for the device.
    table = torch.tensor(addresses, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    return table.to(device, non_blocking=True)


@triton.jit
def column_offsets(columns, column_stride):
    """Where columns are in their row, in elements; 64 bits, because rows of large strides span more than 2^31."""
    return columns.to(tl.int64) * column_stride


@triton.jit
def first_element(layers, layer, layer_step, ELEMENT: tl.constexpr, TABLE: tl.constexpr, VECTOR: tl.constexpr):
    """A pointer to the first element of a layer; where VECTOR > 1 the compiler is told that it is 16-byte aligned."""
    if TABLE:
        first = tl.load(layers + layer).to(tl.pointer_type(ELEMENT))
    else:
        first = layers + layer.to(tl.int64) * layer_step * VECTOR
    if VECTOR > 1:
        first = tl.multiple_of(first, 16)
    return first
