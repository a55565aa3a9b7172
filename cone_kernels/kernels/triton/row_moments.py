"""Triton's row_moments: one read of the rows; rows too wide for the registers are read twice, for their norms first."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.pointers import require_gpu_dtype
from cone_kernels.kernels.segments import Segments
from cone_kernels.kernels.triton.launch import launch
from cone_kernels.kernels.triton.layers import column_offsets, first_element, layer_arguments
from cone_kernels.kernels.triton.row_sums import (
    COUNTS,
    TILES,
    TOTALS,
    PartialSums,
    add_row,
    add_tile,
    item_at,
    positions_of_slice,
    store_part,
    store_slice,
)
from cone_kernels.kernels.triton.shapes import shape_of
from cone_kernels.kernels.triton.squared_norms import squared_norms


def row_moments(x: Tensor, groups: Tensor | None, sums: dict[str, Tensor]) -> Tensor:
    """Adds the rows of x (L, n, d) to `sums`; returns the status (L, n)."""
    require_gpu_dtype("x", x.dtype, "triton")
    n_layers, n, d = x.shape
    status = torch.zeros((n_layers, n), dtype=torch.uint8, device=x.device)
    if status.numel() == 0:
        return status
    shape = shape_of(d, x.element_size())
    segments = Segments.of(groups, n, sums["count"].shape[-1], n_layers, n)
    partial = PartialSums(segments, n_layers, d, shape.slabs, sums)
    rows = layer_arguments(x.unbind(0))
    launch(
        _add_rows,
        (n_layers, segments.parts, shape.slabs),
        status=status,
        norm_sq=status if shape.slabs == 1 else squared_norms(rows, n_layers, n, n, d, None),
        **rows,
        **partial.arguments,
        d=d,
        ALL="sum" in sums,
        NORMS=shape.slabs > 1,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        STAGES=shape.stages,
        num_warps=shape.warps,
        maxnreg=shape.registers,
    )
    partial.add()
    return status


@triton.jit(
    do_not_specialize=[
        "layer_step", "outer_step", "row_step", "items", "groups", "group_parts", "slices", "slabs",
    ]
)  # fmt: skip
def _add_rows(
    status, norm_sq,
    layers, layer_step, outer_step, row_step, column_stride,
    items, groups, group_parts, slices, order, starts,
    unit_sum, unit_parts, column_parts, all_counts, all_totals, slabs,
    ELEMENT: tl.constexpr, TABLE: tl.constexpr, VECTOR: tl.constexpr, ORDERED: tl.constexpr, SLICED: tl.constexpr,
    d: tl.constexpr, ALL: tl.constexpr, NORMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    slab = tl.program_id(2)
    columns = slab * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < d
    offsets = column_offsets(columns, column_stride)
    first = first_element(layers, layer, layer_step, ELEMENT, TABLE, VECTOR)
    none = tl.zeros((COLUMNS,), tl.float64)
    plain, squares, unit_squares = none, none, none
    for group in range(part // slices, groups, group_parts):
        begin, end = positions_of_slice(group, part, groups, items, starts, slices, ORDERED)
        unit = none
        counts, totals = tl.zeros((COUNTS,), tl.int32), tl.zeros((TOTALS,), tl.float64)
        for block in range(begin, end, TILES * ROWS):
            block_end = tl.minimum(block + TILES * ROWS, end)
            unsafe = layer * 0  # a bit for each tile
            for position in tl.range(block, block_end, ROWS, num_stages=STAGES):
                at = position + tl.arange(0, ROWS)
                valid = at < block_end
                row = item_at(at, group, groups, order, valid, ORDERED)
                elements = (row * row_step * VECTOR)[:, None] + offsets[None, :]
                x = tl.load(first + elements, mask=valid[:, None] & in_row[None, :], other=0.0).to(tl.float32)
                if NORMS:
                    row_norm_sq = tl.load(norm_sq + layer * items + row, mask=valid, other=0.0).to(tl.float32)
                else:
                    row_norm_sq = tl.sum(x * x, 1)
                state = (unit, plain, squares, unit_squares, counts, totals)
                state, all_safe = add_tile(x, row_norm_sq, valid, state, ALL)
                unit, plain, squares, unit_squares, counts, totals = state
                unsafe |= (all_safe == 0).to(tl.int64) << ((position - block) // ROWS)
            if unsafe != 0:
                for position in range(block, block_end):
                    if (unsafe >> ((position - block) // ROWS)) & 1 != 0:
                        row = item_at(position, group, groups, order, True, ORDERED)
                        elements = row * row_step * VECTOR + offsets
                        wide = tl.load(first + elements, mask=in_row, other=0.0).to(tl.float64)
                        wide_norm_sq = tl.load(norm_sq + layer * items + row) if NORMS else tl.sum(wide * wide, 0)
                        state = (unit, plain, squares, unit_squares, counts, totals)
                        state, left_out = add_row(wide, wide_norm_sq, state, ALL)
                        unit, plain, squares, unit_squares, counts, totals = state
                        tl.store(status + layer * items + row, left_out.to(tl.uint8))
        store_slice(
            unit, counts, totals, unit_sum, unit_parts, all_counts, all_totals,
            layer * groups + group, part, slices, slab, slabs, columns, in_row, d, SLICED,
        )  # fmt: skip
    if ALL:
        part_of_layer = layer * (group_parts * slices) + part
        store_part(column_parts, part_of_layer, columns, in_row, d, plain, squares, unit_squares)
