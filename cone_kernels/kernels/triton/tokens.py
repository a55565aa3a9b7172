"""Which tokens of a sentence count: by a mask (B, T) or, where sentences are packed, by their first rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.devices import to_device

_MASK_BLOCK = tl.constexpr(512)


def token_arguments(
    mask: Tensor | None, cu_seqlens: Tensor | None, n_tokens: int, device: torch.device
) -> dict[str, object]:
    """Arguments of a kernel for `span_of`; `n_tokens`: T, or N where sentences are packed."""
    if mask is not None:
        return {"selection": mask.view(torch.uint8), "tokens": n_tokens, "PACKED": False}
    assert cu_seqlens is not None
    return {"selection": to_device(cu_seqlens, device), "tokens": n_tokens, "PACKED": True}


@triton.jit
def span_of(selection, sentence, tokens, PACKED: tl.constexpr):
    """A sentence's first token that counts, the one behind its last, how many count; packed: as rows of the batch."""
    if PACKED:
        first = tl.load(selection + sentence)
        past = tl.load(selection + sentence + 1)
        size = past - first
    else:
        first = sentence * 0 + tokens
        past = sentence * 0
        size = sentence * 0
        for begin in range(0, tokens, _MASK_BLOCK):
            token = begin + tl.arange(0, _MASK_BLOCK)
            counts = tl.load(selection + sentence * tokens + token, mask=token < tokens, other=0) != 0
            first = tl.minimum(first, tl.min(tl.where(counts, token, tokens), 0))
            past = tl.maximum(past, tl.max(tl.where(counts, token + 1, 0), 0))
            size += tl.sum(counts.to(tl.int64), 0)
    return first, past, size


@triton.jit
def is_counted(selection, sentence, token, tokens, within, PACKED: tl.constexpr):
    """Which of the tokens that are `within` the sentence's span count."""
    return within if PACKED else within & (tl.load(selection + sentence * tokens + token, mask=within, other=0) != 0)


@triton.jit
def plain_mean(start, first, past, size, selection, sentence, tokens, row_step, columns, in_row, PACKED: tl.constexpr):
    """The mean of a sentence's tokens, finite or not, taken in float64; start: the columns of its first token."""
    total = tl.zeros((columns.shape[0],), tl.float64)
    for token in range(first, past):
        if is_counted(selection, sentence, token, tokens, token < past, PACKED):
            total += tl.load(start + token * row_step, mask=in_row, other=0.0).to(tl.float64)
    return (total * (1.0 / size.to(tl.float64))).to(tl.float32)
