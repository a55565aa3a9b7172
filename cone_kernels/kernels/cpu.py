"""Backend `cpu`: hands addresses, shapes and strides of CPU tensors to the C++ kernels in cone_kernels._cpu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cone_kernels import _cpu
from cone_kernels.kernels.cosine import CosineAndSums
from cone_kernels.kernels.pointers import (
    DTYPE_NUMBERS,
    address,
    column_stride,
    count_sentences,
    hidden_states_of,
    no_address,
    of_same_strides,
    rows_of,
    start_block,
    sum_addresses,
)

__all__ = [
    "masked_mean_pool",
    "masked_mean_pool_backward",
    "mean_pairwise_cosine",
    "mean_pairwise_cosine_backward",
    "pool_moments",
    "row_moments",
    "second_moment",
    "top_eigenvectors",
]


def row_moments(x: Tensor, groups: Tensor | None, sums: dict[str, Tensor]) -> Tensor:
    """Adds the rows of x (L, n, d) to `sums`; returns the status (L, n)."""
    status = torch.zeros(x.shape[:2], dtype=torch.uint8, device=x.device)
    _cpu.row_moments(
        **rows_of(x),
        groups_of_rows=address(groups),
        groups=sums["count"].shape[-1],
        sums=sum_addresses(sums),
        status=status.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return status


def mean_pairwise_cosine(x: Tensor, alone: bool) -> CosineAndSums:
    """A (...) of x (..., n, d); unless it is wanted `alone`, rows left out (...), s (..., d) and n (...) as well."""
    batch, device = x.shape[:-2], x.device
    cosine = torch.empty(batch, dtype=torch.float64, device=device)
    left_out = unit_sum = count = None
    if not alone:
        left_out, count = (torch.empty(batch, dtype=torch.int64, device=device) for _ in range(2))
        unit_sum = torch.empty((*batch, x.shape[-1]), dtype=torch.float64, device=device)
    _cpu.mean_pairwise_cosine(
        **rows_of(x if len(batch) < 2 else x.flatten(0, -3)),
        cosine=cosine.data_ptr(),
        left_out=address(left_out),
        unit_sum=address(unit_sum),
        count=address(count),
        threads=torch.get_num_threads(),
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
    layers = of_same_strides(layers)
    pooled = _pooled_like(layers, len(groups))
    status = torch.empty((len(layers), len(groups)), dtype=torch.uint8, device=pooled.device)
    _cpu.pool_moments(
        **hidden_states_of(layers, mask, cu_seqlens, len(groups)),
        groups_of_sentences=groups.data_ptr(),
        groups=sums["count"].shape[-1],
        pooled=pooled.data_ptr(),
        sums=sum_addresses(sums),
        status=status.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return pooled, status


def masked_mean_pool(layers: Sequence[Tensor], mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The mean over each sentence's tokens (L, B, d), float32, or float64 for float64 layers."""
    layers = of_same_strides(layers)
    n_sentences = count_sentences(mask, cu_seqlens)
    pooled = _pooled_like(layers, n_sentences)
    _cpu.masked_mean_pool(
        **hidden_states_of(layers, mask, cu_seqlens, n_sentences),
        pooled=pooled.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return pooled


def mean_pairwise_cosine_backward(x: Tensor, unit_sum: Tensor, scale: Tensor) -> Tensor:
    """scale · (s − (s·u)u)/‖x‖ for the rows of x (L, n, d), of its dtype; unit_sum s (L, d) and scale (L,) float64."""
    unit_sum, scale = unit_sum.contiguous(), scale.contiguous()
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _cpu.mean_pairwise_cosine_backward(
        **rows_of(x),
        unit_sum=unit_sum.data_ptr(),
        scale=scale.data_ptr(),
        grad_rows=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


def masked_mean_pool_backward(
    grad: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, n_tokens: int, dtype: torch.dtype
) -> Tensor:
    """grad (L, B, d) shared out among each sentence's tokens: (L, B, T, d), or packed (L, N, d), of `dtype`."""
    layers, n_sentences, d = grad.shape
    shape = (layers, n_tokens, d) if mask is None else (layers, n_sentences, n_tokens, d)
    gradient = torch.empty(shape, dtype=dtype, device=grad.device)
    _cpu.masked_mean_pool_backward(
        **rows_of(grad),
        result_dtype=DTYPE_NUMBERS[dtype],
        n_tokens=n_tokens,
        mask=address(mask),
        cu_seqlens=address(cu_seqlens),
        grad_hidden=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


class PooledCosine(NamedTuple):
    """The mean pairwise cosine of a layer's sentences, and what its gradient needs.

    Attributes:
        cosine: NaN where there is no pair.
        rows: the vectors (B, d) that it is of.
        unit_sum: s = Σu (d,).
        used: n, how many of the rows.
        shortest: the least length of those.
    """

    cosine: float
    rows: Tensor
    unit_sum: Tensor
    used: int
    shortest: float


def pooled_cosine(layer: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> PooledCosine:
    """`masked_mean_pool` and `mean_pairwise_cosine` in one call, of (B, T, d) or (N, d).

    Without mask and cu_seqlens the rows (n, d) are what the cosine is of.
    """
    pooled = mask is not None or cu_seqlens is not None
    d = layer.shape[-1]
    rows = _pooled_like([layer], count_sentences(mask, cu_seqlens))[0] if pooled else layer
    unit_sum = torch.empty(d, dtype=torch.float64, device=layer.device)
    cosine, used, shortest = _cpu.pooled_cosine(
        layer.data_ptr() or no_address(layer),
        DTYPE_NUMBERS[layer.dtype],
        len(rows),
        layer.shape[-2],
        d,
        (layer.stride(0), layer.stride(-2), column_stride(layer)),
        address(mask),
        address(cu_seqlens),
        rows.data_ptr() if pooled else 0,
        unit_sum.data_ptr(),
        torch.get_num_threads(),
    )
    return PooledCosine(cosine, rows, unit_sum, used, shortest)


def pooled_cosine_backward(
    of: PooledCosine,
    grad: float,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """grad times the gradient of the cosine: that of the layer, which had this shape and dtype."""
    rows, n = of.rows, of.used
    scale = 2 * grad / (n * (n - 1)) if n > 1 else 0.0
    gradient = torch.empty(shape, dtype=dtype, device=rows.device)
    _cpu.pooled_cosine_backward(
        rows.data_ptr(),
        DTYPE_NUMBERS[dtype],
        len(rows),
        rows.shape[-1],
        rows.stride(0),
        column_stride(rows),
        of.unit_sum.data_ptr(),
        scale,
        shape[-2],
        address(mask),
        address(cu_seqlens),
        gradient.data_ptr(),
        torch.get_num_threads(),
    )
    return gradient


def second_moment(
    moment: Tensor,
    x: Tensor,
    use: Tensor | None,
    weights: Tensor | None,
    pilot: Tensor | None,
    about_pilot: bool,
    *,
    whole: bool = False,
) -> None:
    """Adds Σ x xᵀ, or Σ (x − pilot)(x − pilot)ᵀ, of x (L, n, d) to the upper triangle of `moment` (L, d, d).

    `whole`: the lower triangle is written too, as the mirror of the upper one.
    """
    _cpu.second_moment(
        **rows_of(x),
        use=address(use),
        weights=address(weights),
        pilot=address(pilot),
        about_pilot=about_pilot,
        moment=moment.data_ptr(),
        whole=whole,
        threads=torch.get_num_threads(),
    )


def mean_of_rows(x: Tensor, weights: Tensor | None) -> Tensor:
    """The mean (L, d) float64 of the rows of x (L, n, d), each times its weight (L, n); NaN where there is none."""
    mean = torch.empty((x.shape[0], x.shape[-1]), dtype=torch.float64, device=x.device)
    _cpu.mean_of_rows(**rows_of(x), weights=address(weights), mean=mean.data_ptr(), threads=torch.get_num_threads())
    return mean


def top_eigenvectors(
    x: Tensor, covariance: bool, center: bool, k: int, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Values, vectors, residuals, iterations, value k + 1, converged, and the mean of data; x (L, n or d, d)."""
    n_layers, _, d = x.shape
    start = start_block(k, d)

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty((n_layers, *shape), dtype=dtype, device=x.device)

    values, vectors, residuals, next_value = empty(k), empty(k, d), empty(k), empty()
    iterations, converged = empty(dtype=torch.int64), empty(dtype=torch.bool)
    mean = None if covariance else empty(d)
    _cpu.top_eigenvectors(
        **rows_of(x),
        covariance=covariance,
        center=center,
        k=k,
        tolerance=tolerance,
        max_iterations=max_iterations,
        start=start.data_ptr(),
        block=len(start),
        values=values.data_ptr(),
        vectors=vectors.data_ptr(),
        residuals=residuals.data_ptr(),
        iterations=iterations.data_ptr(),
        next_value=next_value.data_ptr(),
        mean=address(mean),
        converged=converged.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return values, vectors, residuals, iterations, next_value, converged, mean


def asymmetry(matrices: Tensor) -> tuple[float, float]:
    """The largest |C − Cᵀ| and the largest |C| of matrices (L, d, d), in one read of them."""
    apart, largest = _cpu.asymmetry(**rows_of(matrices), threads=torch.get_num_threads())
    return apart, largest


def _pooled_like(layers: Sequence[Tensor], n_sentences: int) -> Tensor:
    first = layers[0]
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return torch.empty((len(layers), n_sentences, first.shape[-1]), dtype=dtype, device=first.device)
