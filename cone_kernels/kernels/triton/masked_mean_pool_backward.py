"""Triton's masked_mean_pool_backward: one write of the gradients of all tokens."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.pointers import count_sentences, require_gpu_dtype
from cone_kernels.kernels.triton.launch import launch, layer_and_number
from cone_kernels.kernels.triton.layers import column_offsets, first_element, layer_arguments
from cone_kernels.kernels.triton.shapes import pool_shape_of
from cone_kernels.kernels.triton.tokens import is_counted, span_of, token_arguments

# Tokens of a sentence that one program writes, so that few long sentences keep a GPU busy too; more of a sentence that
# would take more than _MOST_CHUNKS programs.
_TOKENS_PER_PROGRAM = 128
_MOST_CHUNKS = 1024


def masked_mean_pool_backward(
    grad: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, n_tokens: int, dtype: torch.dtype
) -> Tensor:
    """grad (L, B, d) shared out among each sentence's tokens: (L, B, T, d), or packed (L, N, d), of `dtype`."""
    require_gpu_dtype("dtype", dtype, "triton")
    require_gpu_dtype("grad", grad.dtype, "triton")
    n_layers, n_sentences, d = grad.shape
    shape = (n_layers, n_tokens, d) if mask is None else (n_layers, n_sentences, n_tokens, d)
    gradient = torch.empty(shape, dtype=dtype, device=grad.device)
    if gradient.numel() == 0:
        return gradient
    assert n_sentences == count_sentences(mask, cu_seqlens)
    longest = n_tokens if mask is not None else triton.cdiv(n_tokens, n_sentences)
    chunks = min(triton.cdiv(longest, _TOKENS_PER_PROGRAM), _MOST_CHUNKS)
    tile = pool_shape_of(d, gradient.element_size())
    launch(
        _backward,
        (n_layers * n_sentences, tile.slabs, chunks),
        gradient,
        n_sentences,
        chunks,
        **layer_arguments(grad.unbind(0)),
        **token_arguments(mask, cu_seqlens, n_tokens, grad.device),
        d=d,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return gradient


@triton.jit(do_not_specialize=["sentences", "chunks", "layer_step", "outer_step", "row_step", "tokens"])
def _backward(
    gradient, sentences, chunks,
    layers, layer_step, outer_step, row_step, column_stride,
    selection, tokens,
    ELEMENT: tl.constexpr, TABLE: tl.constexpr, VECTOR: tl.constexpr, PACKED: tl.constexpr, d: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, sentence = layer_and_number(sentences)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(2)
    in_row = columns < d
    first, past, size = span_of(selection, sentence, tokens, PACKED)
    to = gradient + layer * tokens * d
    if not PACKED:
        to = gradient + (layer * sentences + sentence) * tokens * d
        first = sentence * 0  # tokens that do not count get a zero
        past = first + tokens
    from_row = first_element(layers, layer, layer_step, ELEMENT, TABLE, VECTOR) + sentence * row_step * VECTOR
    grad = tl.load(from_row + column_offsets(columns, column_stride), mask=in_row, other=0.0).to(tl.float64)
    # Rounded to float32 and from there to 16 bits. A sentence without a token shares out nothing.
    share = (grad / tl.maximum(size, 1).to(tl.float64)).to(tl.float32).to(gradient.dtype.element_ty)
    for begin in range(first + chunk * ROWS, past, chunks * ROWS):
        token = begin + tl.arange(0, ROWS)
        within = token < past
        counted = is_counted(selection, sentence, token, tokens, within, PACKED)
        value = tl.where(counted[:, None], share[None, :], 0.0).to(gradient.dtype.element_ty)
        tl.store(to + (token * d)[:, None] + columns[None, :], value, mask=within[:, None] & in_row[None, :])
