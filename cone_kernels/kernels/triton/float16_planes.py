"""Rows less a pilot as two float16 planes, high + low, each column scaled by a power of two: 22 bits of every value."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.triton.launch import launch
from cone_kernels.kernels.triton.powers_of_two import scale_towards

PAD = 128  # rows and columns of the planes are padded with zeros to a multiple of it
_PART_ROWS, _STEP_ROWS, _COLUMNS = 256, 8, 128
# A column's largest magnitude goes to [2^13, 2^14): float16 ends at 2^16, and lost bits are below 2^-24.
_EXPONENT = tl.constexpr(13)


@dataclass(frozen=True)
class Float16Planes:
    """(x · weight − pilot) · scale = high + low, for layers and rows padded to multiples of `PAD`."""

    high: Tensor
    """(L, rows, columns) float16."""
    low: Tensor
    """(L, rows, columns) float16."""
    scale: Tensor
    """(L, columns) float64, powers of two."""
    sums: Tensor
    """(L, parts, columns) float64: Σ (x · weight − pilot) before rounding, by parts of the rows."""


def padded(size: int) -> int:
    """`size` rounded up to a multiple of `PAD`."""
    return (size + PAD - 1) // PAD * PAD


def planes_of(x: Tensor, use: Tensor | None, weights: Tensor | None, pilot: Tensor | None) -> Float16Planes:
    """The planes of rows x (L, n, d) of any strides; use (L, n) bool, weights (L, n), pilot (L, d) float64."""
    n_layers, n, d = x.shape
    rows, columns, parts = padded(n), padded(d), triton.cdiv(padded(n), _PART_ROWS)

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    maxima, sums, scale = (empty(n_layers, parts, columns), empty(n_layers, parts, columns), empty(n_layers, columns))
    high, low = (empty(n_layers, rows, columns, dtype=torch.float16) for _ in range(2))
    grid = (columns // _COLUMNS, parts, n_layers)
    selection = (
        x,
        use.view(torch.uint8) if use is not None else x,
        weights if weights is not None else x,
        pilot if pilot is not None else x,
        n,
        d,
        *x.stride(),
        use.stride(0) if use is not None else 0,
        weights.stride(0) if weights is not None else 0,
    )
    given = {
        "USE": use is not None,
        "WEIGHTS": weights is not None,
        "PILOT": pilot is not None,
        "PART_ROWS": _PART_ROWS,
        "STEP": _STEP_ROWS,
        "COLUMNS": _COLUMNS,
    }
    launch(column_maxima, grid, *selection, maxima, parts, **given)
    launch(write_planes, grid, *selection, maxima, high, low, scale, sums, rows, parts, **given)
    return Float16Planes(high, low, scale, sums)


@triton.jit
def rows_less_pilot(
    x, use, weights, pilot, row, column, layer, n, d, stride_l, stride_n, stride_d, stride_use, stride_weights,
    USE: tl.constexpr, WEIGHTS: tl.constexpr, PILOT: tl.constexpr,
):  # fmt: skip
    """x · weight − pilot in float64 for rows and columns of a layer; 0 beyond the edges and for rows not used."""
    keep = row < n
    if USE:
        keep = keep & (tl.load(use + layer * stride_use + row, mask=keep, other=0) != 0)
    kept = keep[:, None] & (column < d)[None, :]
    offset = layer * stride_l + row.to(tl.int64)[:, None] * stride_n + column.to(tl.int64)[None, :] * stride_d
    value = tl.load(x + offset, mask=kept, other=0.0).to(tl.float64)
    if WEIGHTS:
        value = value * tl.load(weights + layer * stride_weights + row, mask=keep, other=0.0)[:, None]
    if PILOT:
        value = value - tl.load(pilot + layer * d + column, mask=column < d, other=0.0)[None, :]
        value = tl.where(kept, value, 0.0)
    return value


@triton.jit
def column_maxima(
    x, use, weights, pilot, n, d, stride_l, stride_n, stride_d, stride_use, stride_weights, maxima, parts,
    USE: tl.constexpr, WEIGHTS: tl.constexpr, PILOT: tl.constexpr,
    PART_ROWS: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """maxima (L, parts, columns): the largest magnitude of each column in each part of the rows."""
    part, layer = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    largest = tl.zeros([STEP, COLUMNS], tl.float64)
    for step in range(0, PART_ROWS, STEP):
        row = part * PART_ROWS + step + tl.arange(0, STEP)
        value = rows_less_pilot(
            x, use, weights, pilot, row, column, layer, n, d, stride_l, stride_n, stride_d, stride_use, stride_weights,
            USE, WEIGHTS, PILOT,
        )  # fmt: skip
        magnitude = tl.abs(value)
        largest = tl.where(magnitude > largest, magnitude, largest)
    tl.store(
        maxima + (layer * parts + part) * tl.num_programs(0) * COLUMNS + column,
        tl.max(largest, 0),
    )


@triton.jit
def write_planes(
    x, use, weights, pilot, n, d, stride_l, stride_n, stride_d, stride_use, stride_weights,
    maxima, high, low, scale, sums, rows, parts,
    USE: tl.constexpr, WEIGHTS: tl.constexpr, PILOT: tl.constexpr,
    PART_ROWS: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes one part of the rows to the planes, and its column sums."""
    part, layer = tl.program_id(1), tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    columns = tl.num_programs(0) * COLUMNS
    largest = tl.zeros([COLUMNS], tl.float64)
    for other in range(parts):
        magnitude = tl.load(maxima + (layer * parts + other) * columns + column)
        largest = tl.where(magnitude > largest, magnitude, largest)
    factor = scale_towards(largest, _EXPONENT)
    if part == 0:
        tl.store(scale + layer * columns + column, factor)

    total = tl.zeros([STEP, COLUMNS], tl.float64)
    for step in range(0, PART_ROWS, STEP):
        row = part * PART_ROWS + step + tl.arange(0, STEP)
        value = rows_less_pilot(
            x, use, weights, pilot, row, column, layer, n, d, stride_l, stride_n, stride_d, stride_use, stride_weights,
            USE, WEIGHTS, PILOT,
        )  # fmt: skip
        total += value
        scaled = value * factor[None, :]
        rounded = scaled.to(tl.float16)
        offset = (layer * rows + row.to(tl.int64))[:, None] * columns + column[None, :]
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        tl.store(high + offset, rounded, mask=inside)
        tl.store(low + offset, (scaled - rounded.to(tl.float64)).to(tl.float16), mask=inside)
    tl.store(sums + (layer * parts + part) * columns + column, tl.sum(total, 0))
