"""Triton's mean_pairwise_cosine_backward: one read of the rows, everything in float64."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.pointers import require_gpu_dtype
from cone_kernels.kernels.triton.launch import launch, layer_and_number
from cone_kernels.kernels.triton.layers import column_offsets, first_element, layer_arguments
from cone_kernels.kernels.triton.row_sums import LEAST_NORMAL, is_safe
from cone_kernels.kernels.triton.shapes import backward_shape_of

_TILES = 8  # tiles of rows that a program takes while it keeps the unit sum in registers


def mean_pairwise_cosine_backward(x: Tensor, unit_sum: Tensor, scale: Tensor) -> Tensor:
    """scale · (s − (s·u)u)/‖x‖ for the rows of x (L, n, d), of its dtype; unit_sum s (L, d) and scale (L,) float64."""
    require_gpu_dtype("x", x.dtype, "triton")
    n_layers, n, d = x.shape
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if gradient.numel() == 0:
        return gradient
    shape = backward_shape_of(d)
    launch(
        _backward,
        (n_layers * triton.cdiv(n, shape.rows * _TILES),),
        gradient,
        unit_sum.contiguous(),
        scale.contiguous(),
        n,
        **layer_arguments(x.unbind(0)),
        d=d,
        SLABS=shape.slabs,
        ROWS=shape.rows,
        TILES=_TILES,
        COLUMNS=shape.columns,
        num_warps=shape.warps,
        maxnreg=shape.registers,
    )
    return gradient


@triton.jit(do_not_specialize=["n", "layer_step", "outer_step", "row_step"])
def _backward(
    gradient, unit_sum, scale, n,
    layers, layer_step, outer_step, row_step, column_stride,
    ELEMENT: tl.constexpr, TABLE: tl.constexpr, VECTOR: tl.constexpr, d: tl.constexpr,
    SLABS: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, tile = layer_and_number(tl.cdiv(n, ROWS * TILES))
    first_row = tile * (ROWS * TILES)
    past = tl.minimum(first_row + ROWS * TILES, n)
    first = first_element(layers, layer, layer_step, ELEMENT, TABLE, VECTOR)
    sums = unit_sum + layer * d
    factor = tl.load(scale + layer)
    if SLABS == 1:
        columns = tl.arange(0, COLUMNS)
        in_row = columns < d
        s = tl.load(sums + columns, mask=in_row, other=0.0)
    for begin in range(first_row, past, ROWS):
        row = begin + tl.arange(0, ROWS)
        valid = row < past
        rows = first + (row * row_step * VECTOR)[:, None]
        to = gradient + ((layer * n + row) * d)[:, None]
        if SLABS == 1:
            inside = valid[:, None] & in_row[None, :]
            x = (
                tl.load(rows + column_offsets(columns, column_stride)[None, :], mask=inside, other=0.0)
                .to(tl.float32)
                .to(tl.float64)
            )
            along, each, used = _factors(tl.sum(x * x, 1), tl.sum(x * s[None, :], 1), factor)
            _store(to + columns[None, :], x, s, along, each, used, inside, ELEMENT)
        else:  # read twice: a row does not fit the registers
            norm_sq = tl.zeros((ROWS,), tl.float64)
            projection = tl.zeros((ROWS,), tl.float64)
            for slab in range(SLABS):
                columns = slab * COLUMNS + tl.arange(0, COLUMNS)
                in_row = columns < d
                inside = valid[:, None] & in_row[None, :]
                s = tl.load(sums + columns, mask=in_row, other=0.0)
                x = tl.load(rows + column_offsets(columns, column_stride)[None, :], mask=inside, other=0.0)
                x = x.to(tl.float32).to(tl.float64)
                norm_sq += tl.sum(x * x, 1)
                projection += tl.sum(x * s[None, :], 1)
            along, each, used = _factors(norm_sq, projection, factor)
            for slab in range(SLABS):
                columns = slab * COLUMNS + tl.arange(0, COLUMNS)
                in_row = columns < d
                inside = valid[:, None] & in_row[None, :]
                s = tl.load(sums + columns, mask=in_row, other=0.0)
                x = tl.load(rows + column_offsets(columns, column_stride)[None, :], mask=inside, other=0.0)
                x = x.to(tl.float32).to(tl.float64)
                _store(to + columns[None, :], x, s, along, each, used, inside, ELEMENT)


@triton.jit
def _factors(norm_sq, projection, factor):
    """(s·x)/‖x‖² and factor/‖x‖ of rows, and which of them are used."""
    used = (norm_sq >= LEAST_NORMAL) & (norm_sq < float("inf"))
    bounded = tl.where(used, norm_sq, 1.0)
    narrow = bounded.to(tl.float32)
    if tl.sum((is_safe(narrow) == 0).to(tl.int32), 0) == 0:
        # Two Newton steps take float32's inverse root to float64, far faster than a float64 root and a quotient.
        inverse = tl.rsqrt(narrow).to(tl.float64)
        inverse *= 1.5 - 0.5 * bounded * inverse * inverse
        inverse *= 1.5 - 0.5 * bounded * inverse * inverse
    else:
        inverse = 1.0 / tl.sqrt(bounded)
    # One factor 1/‖x‖ at a time: its powers may leave float64.
    return projection * inverse * inverse, factor * inverse, used


@triton.jit
def _store(to, x, s, along, each, used, inside, ELEMENT: tl.constexpr):
    gradient = each[:, None] * (s[None, :] - x * along[:, None])
    # Rounded to float32 and from there to 16 bits.
    tl.store(to, tl.where(used[:, None], gradient, 0.0).to(tl.float32).to(ELEMENT), mask=inside)
