"""Squared norms of rows that are too wide to be kept in registers until their norms are known."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.triton.launch import launch, layer_and_number
from cone_kernels.kernels.triton.layers import column_offsets, first_element
from cone_kernels.kernels.triton.row_sums import is_safe

_ROWS = 4
_COLUMNS = 1024


def squared_norms(layers: dict[str, object], n_layers: int, n: int, tokens: int, d: int, mask: Tensor | None) -> Tensor:
    """‖x‖² (L, n) in float64 of rows given as `layer_arguments`: row i is row i % tokens of item i // tokens.

    mask: (n,) uint8; rows where it is 0 are not read.
    """
    first = layers["layers"]
    assert isinstance(first, Tensor)
    norm_sq = torch.empty((n_layers, n), dtype=torch.float64, device=first.device)
    launch(
        _squared_norms,
        (n_layers * triton.cdiv(n, _ROWS),),
        norm_sq,
        norm_sq if mask is None else mask,
        n,
        tokens,
        **layers,
        d=d,
        MASKED=mask is not None,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=4,
        maxnreg=128,
    )
    return norm_sq


@triton.jit(do_not_specialize=["n", "tokens", "layer_step", "outer_step", "row_step"])
def _squared_norms(
    norm_sq, mask, n, tokens,
    layers, layer_step, outer_step, row_step, column_stride,
    ELEMENT: tl.constexpr, TABLE: tl.constexpr, VECTOR: tl.constexpr,
    d: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, tile = layer_and_number(tl.cdiv(n, ROWS))
    row = tile * ROWS + tl.arange(0, ROWS)
    valid = row < n
    if MASKED:
        valid &= tl.load(mask + row, mask=valid, other=0) != 0
    first = first_element(layers, layer, layer_step, ELEMENT, TABLE, VECTOR)
    elements = (row // tokens * outer_step + row % tokens * row_step) * VECTOR
    total = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, d, COLUMNS):
        columns = begin + tl.arange(0, COLUMNS)
        at = elements[:, None] + column_offsets(columns, column_stride)[None, :]
        x = tl.load(first + at, mask=valid[:, None] & (columns < d)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(x * x, 1)
    safe = is_safe(total)
    exact = total.to(tl.float64)
    if tl.max((valid & (safe == 0)).to(tl.int32), 0) > 0:
        wide = tl.zeros((ROWS,), tl.float64)
        for begin in range(0, d, COLUMNS):
            columns = begin + tl.arange(0, COLUMNS)
            at = elements[:, None] + column_offsets(columns, column_stride)[None, :]
            x = tl.load(first + at, mask=valid[:, None] & (columns < d)[None, :], other=0.0).to(tl.float64)
            wide += tl.sum(x * x, 1)
        exact = tl.where(safe, exact, wide)
    tl.store(norm_sq + layer * n + row, exact, mask=valid)
