"""The CUDA kernels of sums, means and their gradients: tensors' addresses handed to cone_kernels._cuda.

Kernels run on the current stream. Memory for partial sums is torch's, so that launches can be captured in a CUDA graph.
Nothing waits for the GPU, but at times the copy of `cu_seqlens` from the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cone_kernels import _cuda
from cone_kernels.devices import to_device
from cone_kernels.kernels.cosine import CosineAndSums, cosine_by_row_moments
from cone_kernels.kernels.cuda.queue import device_number, queue_of
from cone_kernels.kernels.pointers import (
    DTYPE_NUMBERS,
    address,
    count_sentences,
    hidden_states_of,
    of_same_strides,
    require_gpu_dtype,
    rows_of,
    sum_addresses,
)
from cone_kernels.kernels.segments import Segments


def row_moments(x: Tensor, groups: Tensor | None, sums: dict[str, Tensor]) -> Tensor:
    """Adds the rows of x (L, n, d) to `sums`; returns the status (L, n)."""
    require_gpu_dtype("x", x.dtype, "cuda")
    n_layers, n, d = x.shape
    rows = rows_of(x)
    segments = Segments.of(groups, n, sums["count"].shape[-1], n_layers, n, _items_by_group)
    slabs = _cuda.row_moment_slabs(**rows, sums=sum_addresses(sums), device=device_number(x))
    partials = _partials(x, segments, (n_layers, n, d), slabs, columns="sum" in sums)
    status = torch.zeros((n_layers, n), dtype=torch.uint8, device=x.device)
    _cuda.row_moments(
        **rows,
        segments=_segments(segments),
        sums=sum_addresses(sums),
        partials=_partials_and_slabs(partials, slabs),
        status=status.data_ptr(),
        queue=queue_of(x),
    )
    return status


def mean_pairwise_cosine(x: Tensor, alone: bool) -> CosineAndSums:
    """A (...) of x (..., n, d), how many rows were left out (...), s (..., d) and n (...)."""
    require_gpu_dtype("x", x.dtype, "cuda")
    *batch, n, d = x.shape
    flat = x.reshape(math.prod(batch), n, d)
    rows = rows_of(flat)
    size = _cuda.mean_pairwise_cosine_workspace(**rows, device=device_number(x))
    if size == 0:
        return cosine_by_row_moments(row_moments, x)
    cosine = torch.empty(batch, dtype=torch.float64, device=x.device)
    left_out, count = (torch.empty(batch, dtype=torch.int64, device=x.device) for _ in range(2))
    unit_sum = torch.empty((*batch, d), dtype=torch.float64, device=x.device)
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    _cuda.mean_pairwise_cosine(
        **rows,
        cosine=cosine.data_ptr(),
        left_out=left_out.data_ptr(),
        unit_sum=unit_sum.data_ptr(),
        count=count.data_ptr(),
        workspace=workspace.data_ptr(),
        queue=queue_of(x),
    )
    return cosine, left_out, unit_sum, count


def pool_moments(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    sums: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Adds the tokens of each layer to `sums`; returns pooled (L, B, d) and the status of each sentence (L, B)."""
    layers, cu_seqlens = of_same_strides(layers), _on_device_of(layers[0], cu_seqlens)
    by_warps = pool_and_row_moments(layers, mask, cu_seqlens, groups, sums, {})
    if by_warps is not None:
        pooled, status, _ = by_warps
        return pooled, status
    first, n_sentences, n_groups = layers[0], len(groups), sums["count"].shape[-1]
    hidden = hidden_states_of(layers, mask, cu_seqlens, n_sentences)
    pooled, status = _pooled_and_status(layers, n_sentences)
    rows = first.shape[-2] if mask is None else mask.numel()
    segments = Segments.of(groups, n_sentences, n_groups, len(layers), rows, _items_by_group)
    slabs = _cuda.pool_moment_slabs(**hidden, device=device_number(first))
    partials = _partials(first, segments, (len(layers), rows, first.shape[-1]), slabs, columns=True)
    positions, sizes = _token_lists(mask)
    mean_units = torch.empty_like(pooled)
    _cuda.pool_moments(
        **hidden,
        lists=(address(positions), address(sizes), address(cu_seqlens)),
        segments=_segments(segments),
        pooled=pooled.data_ptr(),
        mean_units=mean_units.data_ptr(),
        sums=sum_addresses(sums),
        partials=_partials_and_slabs(partials, slabs),
        status=status.data_ptr(),
        queue=queue_of(first),
    )
    return pooled, status


def pool_and_row_moments(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    token_sums: dict[str, Tensor],
    sentence_sums: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Adds the tokens of each layer to `token_sums`, their pooled vectors to `sentence_sums`, in one call.

    Without `sentence_sums` it adds tokens alone.

    Returns:
        As `pool_moments`, and the status (L, B) of each pooled vector: that of `row_moments`, or 4 for a sentence
        without a token. None, and nothing is added, where the rows are not aligned or too wide for a warp.
    """
    require_gpu_dtype("hidden_states", layers[0].dtype, "cuda")
    layers, cu_seqlens = of_same_strides(layers), _on_device_of(layers[0], cu_seqlens)
    first, n_groups = layers[0], token_sums["count"].shape[-1]
    hidden = hidden_states_of(layers, mask, cu_seqlens, len(groups))
    size = _cuda.warp_moments_workspace(
        **hidden, groups=n_groups, both_levels=bool(sentence_sums), device=device_number(first)
    )
    if size == 0:
        return None
    pooled, status = _pooled_and_status(layers, len(groups))
    of_vectors = torch.empty_like(status) if sentence_sums else status
    workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
    _cuda.warp_moments(
        **hidden,
        group_of=groups.data_ptr(),
        groups=n_groups,
        pooled=pooled.data_ptr(),
        sums=sum_addresses(token_sums),
        status=status.data_ptr(),
        pooled_sums=sum_addresses(sentence_sums),
        pooled_status=of_vectors.data_ptr(),
        workspace=workspace.data_ptr(),
        queue=queue_of(first),
    )
    return pooled, status, of_vectors


def _pooled_and_status(layers: Sequence[Tensor], n_sentences: int) -> tuple[Tensor, Tensor]:
    first = layers[0]
    shape = (len(layers), n_sentences)
    pooled = torch.empty((*shape, first.shape[-1]), dtype=torch.float32, device=first.device)
    return pooled, torch.empty(shape, dtype=torch.uint8, device=first.device)


def masked_mean_pool(layers: Sequence[Tensor], mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The mean over each sentence's tokens (L, B, d), float32."""
    require_gpu_dtype("hidden_states", layers[0].dtype, "cuda")
    layers, cu_seqlens = of_same_strides(layers), _on_device_of(layers[0], cu_seqlens)
    first = layers[0]
    n_sentences = count_sentences(mask, cu_seqlens)
    hidden = hidden_states_of(layers, mask, cu_seqlens, n_sentences)
    positions, sizes = _token_lists(mask)
    pooled = torch.empty((len(layers), n_sentences, first.shape[-1]), dtype=torch.float32, device=first.device)
    _cuda.masked_mean_pool(
        **hidden,
        lists=(address(positions), address(sizes), address(cu_seqlens)),
        pooled=pooled.data_ptr(),
        queue=queue_of(first),
    )
    return pooled


def mean_pairwise_cosine_backward(x: Tensor, unit_sum: Tensor, scale: Tensor) -> Tensor:
    """scale · (s − (s·u)u)/‖x‖ for the rows of x (L, n, d), of its dtype; unit_sum s (L, d) and scale (L,) float64."""
    require_gpu_dtype("x", x.dtype, "cuda")
    unit_sum, scale = unit_sum.contiguous(), scale.contiguous()
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _cuda.mean_pairwise_cosine_backward(
        **rows_of(x),
        unit_sum=unit_sum.data_ptr(),
        scale=scale.data_ptr(),
        grad_rows=gradient.data_ptr(),
        queue=queue_of(x),
    )
    return gradient


def masked_mean_pool_backward(
    grad: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, n_tokens: int, dtype: torch.dtype
) -> Tensor:
    """grad (L, B, d) shared out among each sentence's tokens: (L, B, T, d), or packed (L, N, d), of `dtype`."""
    require_gpu_dtype("dtype", dtype, "cuda")
    require_gpu_dtype("grad", grad.dtype, "cuda")
    layers, n_sentences, d = grad.shape
    cu_seqlens = _on_device_of(grad, cu_seqlens)
    shape = (layers, n_tokens, d) if mask is None else (layers, n_sentences, n_tokens, d)
    gradient = torch.empty(shape, dtype=dtype, device=grad.device)
    _cuda.masked_mean_pool_backward(
        **rows_of(grad),
        result_dtype=DTYPE_NUMBERS[dtype],
        n_tokens=n_tokens,
        mask=address(mask),
        cu_seqlens=address(cu_seqlens),
        grad_hidden=gradient.data_ptr(),
        queue=queue_of(grad),
    )
    return gradient


_Partials: TypeAlias = "tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]"


def _partials(like: Tensor, segments: Segments, shape: tuple[int, int, int], slabs: int, *, columns: bool) -> _Partials:
    """Memory for the sums that the parts of rows of `shape` (L, n, d) leave: MomentPartials of the CUDA sources."""
    n_layers, n, d = shape
    by_slice = (n_layers, segments.groups, segments.slices)

    def floats(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float64, device=like.device)

    return (
        floats(n_layers, segments.parts, 3, d) if columns else None,
        floats(*by_slice, d) if segments.slices > 1 else None,
        torch.zeros((*by_slice, slabs, _cuda.scalars), dtype=torch.float64, device=like.device),
        floats(n_layers, n) if slabs > 1 else None,
    )


def _partials_and_slabs(partials: _Partials, slabs: int) -> tuple[int, int, int, int, int]:
    columns, units, scalars, norms_sq = map(address, partials)
    return columns, units, scalars, norms_sq, slabs


def _token_lists(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """For each sentence the positions (B, T) of the tokens that the mask keeps, and how many they are (B,)."""
    if mask is None:
        return None, None
    positions = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    sizes = torch.empty(len(mask), dtype=torch.int32, device=mask.device)
    _cuda.list_tokens(
        mask=mask.data_ptr(),
        n_sentences=mask.shape[0],
        n_tokens=mask.shape[1],
        positions=positions.data_ptr(),
        sizes=sizes.data_ptr(),
        queue=queue_of(mask),
    )
    return positions, sizes


def _items_by_group(group_of: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """`order` and `starts` of Segments, by one launch."""
    order, starts = torch.empty_like(group_of), group_of.new_empty(groups + 1)
    _cuda.list_items(
        group_of=group_of.data_ptr(),
        items=len(group_of),
        groups=groups,
        order=order.data_ptr(),
        starts=starts.data_ptr(),
        queue=queue_of(group_of),
    )
    return order, starts


def _segments(segments: Segments) -> tuple[int, int, int, int, int, int]:
    order, starts = address(segments.order), address(segments.starts)
    return segments.items, segments.groups, segments.group_parts, segments.slices, order, starts


def _on_device_of(x: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
    """The sentences' first rows, which may be on the CPU, on the device of x."""
    return None if cu_seqlens is None else to_device(cu_seqlens, x.device)
