"""Triton's pool_moments: one read of the tokens that count; wide ones are read twice, for their norms first."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.pointers import of_same_strides, require_gpu_dtype
from cone_kernels.kernels.segments import Segments
from cone_kernels.kernels.triton.launch import launch
from cone_kernels.kernels.triton.layers import (
    column_offsets,
    first_element,
    layer_arguments,
)
from cone_kernels.kernels.triton.row_sums import (
    COUNTS,
    EMPTY,
    NONFINITE,
    TILES,
    TOTALS,
    ZERO,
    PartialSums,
    add_row,
    add_tile,
    entry,
    entry_of,
    item_at,
    positions_of_slice,
    store_part,
    store_slice,
)
from cone_kernels.kernels.triton.sentence_directions import add_directions
from cone_kernels.kernels.triton.shapes import shape_of
from cone_kernels.kernels.triton.squared_norms import squared_norms
from cone_kernels.kernels.triton.tokens import is_counted, plain_mean, span_of, token_arguments


def pool_moments(
    layers: Sequence[Tensor],
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    groups: Tensor,
    sums: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Adds the tokens of each layer to `sums`; returns pooled (L, B, d) and the status of each sentence (L, B)."""
    require_gpu_dtype("hidden_states", layers[0].dtype, "triton")
    layers = of_same_strides(layers)
    first, n_layers, n_sentences = layers[0], len(layers), len(groups)
    n_tokens, d = first.shape[-2:]
    pooled = torch.empty((n_layers, n_sentences, d), dtype=torch.float32, device=first.device)
    status = torch.empty((n_layers, n_sentences), dtype=torch.uint8, device=first.device)
    if status.numel() == 0:
        return pooled, status
    shape = shape_of(d, first.element_size())
    n_rows = n_tokens if mask is None else n_sentences * n_tokens
    segments = Segments.of(groups, n_sentences, sums["count"].shape[-1], n_layers, n_rows)
    mean_units = torch.empty_like(pooled)
    partial = PartialSums(segments, n_layers, d, shape.slabs, sums)
    hidden = layer_arguments(layers)
    tokens = token_arguments(mask, cu_seqlens, n_tokens, first.device)
    launch(
        _add_sentences,
        (n_layers, segments.parts, shape.slabs),
        pooled=pooled,
        mean_units=mean_units,
        status=status,
        norm_sq=pooled if shape.slabs == 1 else squared_norms(hidden, n_layers, n_rows, n_tokens, d, mask),
        rows=n_rows,
        **hidden,
        **tokens,
        **partial.arguments,
        d=d,
        NORMS=shape.slabs > 1,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        STAGES=shape.stages,
        num_warps=shape.warps,
        maxnreg=shape.registers,
    )
    partial.add()
    add_directions(mean_units, segments, sums)
    return pooled, status


@triton.jit(
    do_not_specialize=[
        "rows", "layer_step", "outer_step", "row_step", "tokens", "items", "groups", "group_parts", "slices", "slabs",
    ]
)  # fmt: skip
def _add_sentences(
    pooled, mean_units, status, norm_sq, rows,
    layers, layer_step, outer_step, row_step, column_stride,
    selection, tokens,
    items, groups, group_parts, slices, order, starts,
    unit_sum, unit_parts, column_parts, all_counts, all_totals, slabs,
    ELEMENT: tl.constexpr, TABLE: tl.constexpr, VECTOR: tl.constexpr, PACKED: tl.constexpr,
    ORDERED: tl.constexpr, SLICED: tl.constexpr, d: tl.constexpr, NORMS: tl.constexpr,
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
    all_plain, squares, unit_squares = none, none, none
    for group in range(part // slices, groups, group_parts):
        begin, end = positions_of_slice(group, part, groups, items, starts, slices, ORDERED)
        all_unit = none
        group_counts, totals = tl.zeros((COUNTS,), tl.int32), tl.zeros((TOTALS,), tl.float64)
        for position in range(begin, end):
            sentence = item_at(position, group, groups, order, True, ORDERED).to(tl.int64)
            first_token, past_token, size = span_of(selection, sentence, tokens, PACKED)
            start = first
            first_row = layer * 0
            if not PACKED:
                start += sentence * outer_step * VECTOR
                first_row += sentence * tokens
            unit, plain = none, none
            counts = tl.zeros((COUNTS,), tl.int32)
            for block in range(first_token, past_token, TILES * ROWS):
                block_past = tl.minimum(block + TILES * ROWS, past_token)
                unsafe = layer * 0  # a bit for each tile
                for tile in tl.range(block, block_past, ROWS, num_stages=STAGES):
                    token = tile + tl.arange(0, ROWS)
                    valid = is_counted(selection, sentence, token, tokens, token < block_past, PACKED)
                    elements = (token * row_step * VECTOR)[:, None] + offsets[None, :]
                    x = tl.load(start + elements, mask=valid[:, None] & in_row[None, :], other=0.0).to(tl.float32)
                    if NORMS:
                        token_norm_sq = tl.load(norm_sq + layer * rows + first_row + token, mask=valid, other=0.0)
                        token_norm_sq = token_norm_sq.to(tl.float32)
                    else:
                        token_norm_sq = tl.sum(x * x, 1)
                    state = (unit, plain, squares, unit_squares, counts, totals)
                    state, all_safe = add_tile(x, token_norm_sq, valid, state, True)
                    unit, plain, squares, unit_squares, counts, totals = state
                    unsafe |= (all_safe == 0).to(tl.int64) << ((tile - block) // ROWS)
                if unsafe != 0:
                    for token in range(block, block_past):
                        in_tile = (unsafe >> ((token - block) // ROWS)) & 1 != 0
                        if is_counted(selection, sentence, token, tokens, in_tile, PACKED):
                            elements = token * row_step * VECTOR + offsets
                            wide = tl.load(start + elements, mask=in_row, other=0.0).to(tl.float64)
                            if NORMS:
                                wide_norm_sq = tl.load(norm_sq + layer * rows + first_row + token)
                            else:
                                wide_norm_sq = tl.sum(wide * wide, 0)
                            state = (unit, plain, squares, unit_squares, counts, totals)
                            state, _ = add_row(wide, wide_norm_sq, state, True)
                            unit, plain, squares, unit_squares, counts, totals = state
            mean = (plain * (1.0 / size.to(tl.float64))).to(tl.float32)  # of no token: NaN
            used, zero, nonfinite = entry_of(counts, 0), entry_of(counts, 1), entry_of(counts, 2)
            if nonfinite > 0:
                at = start + offsets
                mean = plain_mean(
                    at, first_token, past_token, size, selection, sentence, tokens, row_step * VECTOR, columns, in_row,
                    PACKED,
                )  # fmt: skip
            at = layer * items + sentence
            tl.store(pooled + at * d + columns, mean, mask=in_row)
            mean_unit = (unit * (1.0 / used.to(tl.float64))).to(tl.float32)  # of no token used: NaN
            tl.store(mean_units + at * d + columns, mean_unit, mask=in_row)
            seen = tl.where(zero > 0, ZERO, 0) | tl.where(nonfinite > 0, NONFINITE, 0) | tl.where(size == 0, EMPTY, 0)
            tl.store(status + at, seen.to(tl.uint8))
            group_counts += counts + entry(3, (used > 0).to(tl.int32), COUNTS)
            size_sq = used.to(tl.float64) * used.to(tl.float64)
            totals += entry(3, tl.sum(unit * unit, 0), TOTALS) + entry(4, size_sq, TOTALS)
            all_unit += unit
            all_plain += plain
        store_slice(
            all_unit, group_counts, totals, unit_sum, unit_parts, all_counts, all_totals,
            layer * groups + group, part, slices, slab, slabs, columns, in_row, d, SLICED,
        )  # fmt: skip
    part_of_layer = layer * (group_parts * slices) + part
    store_part(column_parts, part_of_layer, columns, in_row, d, all_plain, squares, unit_squares)
