"""Triton's masked_mean_pool: one read of the tokens that count, a program for each sentence and slab of columns."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.pointers import count_sentences, of_same_strides, require_gpu_dtype
from cone_kernels.kernels.triton.launch import launch, layer_and_number
from cone_kernels.kernels.triton.layers import (
    column_offsets,
    first_element,
    layer_arguments,
)
from cone_kernels.kernels.triton.shapes import pool_shape_of
from cone_kernels.kernels.triton.tokens import is_counted, plain_mean, span_of, token_arguments


def masked_mean_pool(layers: Sequence[Tensor], mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The mean over each sentence's tokens (L, B, d), float32."""
    require_gpu_dtype("hidden_states", layers[0].dtype, "triton")
    layers = of_same_strides(layers)
    first, n_sentences = layers[0], count_sentences(mask, cu_seqlens)
    n_tokens, d = first.shape[-2:]
    pooled = torch.empty((len(layers), n_sentences, d), dtype=torch.float32, device=first.device)
    if pooled.numel() == 0:
        return pooled
    shape = pool_shape_of(d, first.element_size())
    launch(
        _pool,
        (len(layers) * n_sentences, shape.slabs),
        pooled,
        n_sentences,
        **layer_arguments(layers),
        **token_arguments(mask, cu_seqlens, n_tokens, first.device),
        d=d,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        STAGES=shape.stages,
        num_warps=shape.warps,
        maxnreg=shape.registers,
    )
    return pooled


@triton.jit(do_not_specialize=["sentences", "layer_step", "outer_step", "row_step", "tokens"])
def _pool(
    pooled, sentences,
    layers, layer_step, outer_step, row_step, column_stride,
    selection, tokens,
    ELEMENT: tl.constexpr, TABLE: tl.constexpr, VECTOR: tl.constexpr, PACKED: tl.constexpr, d: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    layer, sentence = layer_and_number(sentences)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < d
    offsets = column_offsets(columns, column_stride)
    start = first_element(layers, layer, layer_step, ELEMENT, TABLE, VECTOR)
    if not PACKED:
        start += sentence * outer_step * VECTOR
    first_token, past_token, size = span_of(selection, sentence, tokens, PACKED)
    total = tl.zeros((COLUMNS,), tl.float64)
    for tile in tl.range(first_token, past_token, ROWS, num_stages=STAGES):
        token = tile + tl.arange(0, ROWS)
        valid = is_counted(selection, sentence, token, tokens, token < past_token, PACKED)
        elements = (token * row_step * VECTOR)[:, None] + offsets[None, :]
        x = tl.load(start + elements, mask=valid[:, None] & in_row[None, :], other=0.0).to(tl.float32)
        total += tl.sum(x, 0).to(tl.float64)
    mean = (total * (1.0 / size.to(tl.float64))).to(tl.float32)  # of no token: NaN
    # A sum that left float32 need not leave float64.
    if tl.sum((mean * 0.0 != 0.0).to(tl.int32), 0) > 0:
        at = start + offsets
        mean = plain_mean(
            at, first_token, past_token, size, selection, sentence, tokens, row_step * VECTOR, columns, in_row, PACKED
        )
    tl.store(pooled + (layer * sentences + sentence) * d + columns, mean, mask=in_row)
