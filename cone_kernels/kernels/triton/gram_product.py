"""Σ x xᵀ on tensor cores: tiles of the upper triangle in float32, rows split over programs, added up in float64."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.triton.float16_planes import Float16Planes
from cone_kernels.kernels.triton.launch import launch
from cone_kernels.kernels.triton.powers_of_two import scale_towards

# Rows that the tensor cores sum in one accumulator. They truncate, so that long sums are biased; those of compute
# capability 8.x truncate more, and sum half as many rows.
_MOST_STEP = 64
_LEAST_SPLIT, _MOST_SPLIT, _PROGRAMS = 512, 8192, 512
_PARTIAL_BYTES = 64 << 20
_STRIP = 32  # rows of a tile that one program adds to the moment
# Triton's interpreter multiplies the bits of bfloat16 as if they were integers; as float32 they have the same products.
_WIDEN = tl.constexpr(triton.knobs.runtime.interpret)
# Where a column's Σ x² is in this range, its float32 products neither overflowed nor underflowed.
_SAFE_LEAST, _SAFE_MOST = tl.constexpr(2.0**-60), tl.constexpr(2.0**90)


@dataclass(frozen=True)
class TilePlan:
    """How the triangle is cut into square tiles and the rows into splits: by shape and the kind of GPU alone."""

    block: int
    step: int
    """Rows that a program multiplies at once."""
    tiles: int
    splits: int
    split_rows: int
    layers_at_once: int

    @classmethod
    def of(cls, n: int, d: int, n_layers: int, low: bool) -> TilePlan:
        """The plan for n rows of width d, with low planes or without."""
        # wgmma reads both operands from shared memory; mma.sync needs registers for them, so that its tiles are smaller
        wgmma = architecture() // 10 in (9, 10)
        block = 128 if d > 64 and (wgmma or not low) else 64
        step = _MOST_STEP // (1 if wgmma else 2)
        blocks = triton.cdiv(d, block)
        tiles = blocks * (blocks + 1) // 2
        wanted = max(triton.cdiv(_PROGRAMS, tiles * n_layers), triton.cdiv(n, _MOST_SPLIT))
        split_rows = triton.cdiv(triton.cdiv(n, min(wanted, triton.cdiv(n, _LEAST_SPLIT))), _MOST_STEP) * _MOST_STEP
        splits = triton.cdiv(n, split_rows)
        layers_at_once = max(1, _PARTIAL_BYTES // (tiles * splits * block * block * 4))
        return cls(block, step, tiles, splits, split_rows, min(layers_at_once, n_layers))


def architecture() -> int:
    """The compute capability of the GPU in use, 90 for 9.0; the interpreter takes Hopper's shapes."""
    return 90 if triton.knobs.runtime.interpret else int(triton.runtime.driver.active.get_current_target().arch)


def add_raw_products(moment: Tensor, x: Tensor, use: Tensor | None) -> None:
    """Adds Σ x xᵀ of 16-bit rows x (L, n, d) as they are to the upper triangle of `moment` (L, d, d)."""
    n_layers, n, d = x.shape
    plan = TilePlan.of(n, d, n_layers, low=False)
    for first in range(0, n_layers, plan.layers_at_once):
        layers = slice(first, first + plan.layers_at_once)
        rows, chosen = x[layers], x if use is None else use[layers].view(torch.uint8)
        shape = (n, d, *x.stride(), 0 if use is None else use.stride(0))
        partial = _multiply(plan, rows, rows, chosen, shape, LOW=False, USE=use is not None)
        launch(
            add_raw_tiles,
            (plan.tiles, plan.block // _STRIP, len(rows)),
            moment[layers],
            partial,
            plan.splits,
            rows,
            chosen,
            *shape,
            RANGE=x.dtype == torch.bfloat16,
            USE=use is not None,
            BLOCK=plan.block,
            STRIP=_STRIP,
        )


def add_plane_products(
    moment: Tensor, planes: Float16Planes, n_used: Tensor | None, n: int, pilot: Tensor | None
) -> None:
    """Adds Σ (x − pilot)(x − pilot)ᵀ of rows given as planes to the upper triangle of `moment` (L, d, d).

    With `pilot` (L, d) it is corrected to Σ x xᵀ; n_used (L,) int64 is then how many of the n rows are used, None: all.
    """
    n_layers, rows, columns = planes.high.shape
    plan = TilePlan.of(rows, columns, n_layers, low=True)
    for first in range(0, n_layers, plan.layers_at_once):
        layers = slice(first, first + plan.layers_at_once)
        high, sums, target = planes.high[layers], planes.sums[layers], moment[layers]
        shape = (rows, columns, *high.stride(), 0)
        partial = _multiply(plan, high, planes.low[layers], high, shape, LOW=True, USE=False)
        launch(
            add_plane_tiles,
            (plan.tiles, plan.block // _STRIP, len(high)),
            target,
            partial,
            plan.splits,
            planes.scale[layers],
            sums,
            target if pilot is None else pilot[layers],
            sums if n_used is None else n_used[layers],
            n,
            moment.shape[-1],
            columns,
            sums.shape[1],
            PILOT=pilot is not None,
            USE=n_used is not None,
            BLOCK=plan.block,
            STRIP=_STRIP,
        )


def _multiply(plan: TilePlan, x: Tensor, low: Tensor, use: Tensor, shape: tuple[int, ...], **modes: bool) -> Tensor:
    size = (len(x), plan.splits, plan.tiles, plan.block, plan.block)
    partial = torch.empty(size, dtype=torch.float32, device=x.device)
    launch(
        multiply_tiles,
        (plan.tiles, plan.splits, len(x)),
        x,
        low,
        use,
        *shape,
        partial,
        plan.split_rows,
        **modes,
        BLOCK=plan.block,
        STEP=plan.step,
        num_warps=8 if plan.block == 128 else 4,
        num_stages=3,
    )
    return partial


@triton.jit
def triangle_tile(tile):
    """Row and column (i <= j) of tile number j (j + 1) / 2 + i."""
    j = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > tile, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= tile, j + 1, j)
    return tile - j * (j + 1) // 2, j


@triton.jit
def used_rows(use, row, end, USE: tl.constexpr):
    keep = row < end
    if USE:
        keep = keep & (tl.load(use + row, mask=keep, other=0) != 0)
    return keep


@triton.jit
def columns_of(x, row, keep, column, d, stride_n, stride_d):
    """Some columns of some rows; 0 beyond the edges."""
    offset = row.to(tl.int64)[:, None] * stride_n + column.to(tl.int64)[None, :] * stride_d
    return tl.load(x + offset, mask=keep[:, None] & (column < d)[None, :], other=0.0)


@triton.jit
def dot_of_rows(left, right):
    """leftᵀ right in float32 of 16-bit rows."""
    if _WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(tl.trans(left), right)


@triton.jit
def multiply_tiles(
    x, low, use, n, d, stride_l, stride_n, stride_d, stride_use, partial, split_rows,
    LOW: tl.constexpr, USE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """partial (L, splits, tiles, BLOCK, BLOCK) float32: one tile over one split of the rows; with LOW of x + low."""
    tile, split, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_block, j_block = triangle_tile(tile)
    i, j = i_block * BLOCK + tl.arange(0, BLOCK), j_block * BLOCK + tl.arange(0, BLOCK)
    x += layer * stride_l
    low += layer * stride_l
    use += layer * stride_use
    end = tl.minimum((split + 1) * split_rows, n)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    error = tl.zeros([BLOCK, BLOCK], tl.float32)
    for first in range(split * split_rows, end, STEP):
        row = first + tl.arange(0, STEP)
        keep = used_rows(use, row, end, USE)
        left = columns_of(x, row, keep, i, d, stride_n, stride_d)
        right = columns_of(x, row, keep, j, d, stride_n, stride_d)
        if LOW:  # the small products first, while truncation costs little
            left_low = columns_of(low, row, keep, i, d, stride_n, stride_d)
            right_low = columns_of(low, row, keep, j, d, stride_n, stride_d)
            product = tl.dot(tl.trans(left), right_low)
            product = tl.dot(tl.trans(left_low), right, product)
            product = tl.dot(tl.trans(left), right, product)
        else:
            product = dot_of_rows(left, right)
        # compensated (Kahan) sums: as exact as float64 here, and far cheaper than converting to it
        product -= error
        added = total + product
        error = (added - total) - product
        total = added
    number = (layer * tl.num_programs(1) + split) * tl.num_programs(0) + tile
    cell = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(partial + number * BLOCK * BLOCK + cell, total)


@triton.jit
def sum_of_partials(partial, layer, tile, splits, cell, BLOCK: tl.constexpr):
    """Entries `cell` of a tile, in float64, over all splits in their order."""
    tiles = tl.num_programs(0).to(tl.int64)
    place = partial + (layer * splits * tiles + tile) * BLOCK * BLOCK + cell
    total = tl.load(place).to(tl.float64)
    for _ in range(1, splits):
        place += tiles * BLOCK * BLOCK
        total += tl.load(place).to(tl.float64)
    return total


@triton.jit
def add_upper(moment, layer, i, j, d, value):
    kept = (i[:, None] <= j[None, :]) & (j < d)[None, :]
    target = moment + layer * d * d + i.to(tl.int64)[:, None] * d + j[None, :]
    tl.store(target, tl.load(target, mask=kept, other=0.0) + value, mask=kept)


@triton.jit
def squares_are_safe(partial, layer, block, place, column, d, splits, BLOCK: tl.constexpr):
    square = sum_of_partials(partial, layer, block * (block + 1) // 2 + block, splits, place * (BLOCK + 1), BLOCK)
    return ((square >= _SAFE_LEAST) & (square <= _SAFE_MOST)) | (column >= d)


@triton.jit
def add_raw_tiles(
    moment, partial, splits, x, use, n, d, stride_l, stride_n, stride_d, stride_use,
    RANGE: tl.constexpr, USE: tl.constexpr, BLOCK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """Adds a strip of a tile to the moment; with RANGE it first checks that the tile stayed within float32."""
    tile, strip, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_block, j_block = triangle_tile(tile)
    i_place, j_place = strip * STRIP + tl.arange(0, STRIP), tl.arange(0, BLOCK)
    i, j = i_block * BLOCK + i_place, j_block * BLOCK + j_place
    total = sum_of_partials(partial, layer, tile, splits, i_place[:, None] * BLOCK + j_place[None, :], BLOCK)
    if RANGE:
        i_safe = squares_are_safe(partial, layer, i_block, i_place, i, d, splits, BLOCK)
        j_safe = squares_are_safe(partial, layer, j_block, j_place, j, d, splits, BLOCK)
        if (tl.min(i_safe.to(tl.int32), 0) & tl.min(j_safe.to(tl.int32), 0)) == 0:
            total = scaled_product(
                x + layer * stride_l, use + layer * stride_use, i, j, n, d, stride_n, stride_d, USE, STRIP, BLOCK
            )
    add_upper(moment, layer, i, j, d, total)


@triton.jit
def scaled_product(
    x, use, i, j, n, d, stride_n, stride_d, USE: tl.constexpr, STRIP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Columns i times columns j over all rows, each column scaled by a power of two first. Rare, and slow."""
    i_largest, j_largest = tl.zeros([STRIP], tl.float64), tl.zeros([BLOCK], tl.float64)
    for first in range(0, n, STRIP):
        row = first + tl.arange(0, STRIP)
        keep = used_rows(use, row, n, USE)
        i_most = tl.max(tl.abs(columns_of(x, row, keep, i, d, stride_n, stride_d).to(tl.float32)), 0).to(tl.float64)
        j_most = tl.max(tl.abs(columns_of(x, row, keep, j, d, stride_n, stride_d).to(tl.float32)), 0).to(tl.float64)
        i_largest = tl.where(i_most > i_largest, i_most, i_largest)
        j_largest = tl.where(j_most > j_largest, j_most, j_largest)
    i_scale, j_scale = scale_towards(i_largest, 0), scale_towards(j_largest, 0)
    total = tl.zeros([STRIP, BLOCK], tl.float64)
    for first in range(0, n, STRIP):
        row = first + tl.arange(0, STRIP)
        keep = used_rows(use, row, n, USE)
        left = columns_of(x, row, keep, i, d, stride_n, stride_d).to(tl.float64) * i_scale[None, :]
        right = columns_of(x, row, keep, j, d, stride_n, stride_d).to(tl.float64) * j_scale[None, :]
        left, right = left.to(tl.float32).to(tl.bfloat16), right.to(tl.float32).to(tl.bfloat16)
        total += dot_of_rows(left, right).to(tl.float64)
    return total * (1.0 / i_scale)[:, None] * (1.0 / j_scale)[None, :]


@triton.jit
def sum_of_parts(sums, parts, columns, column):
    place = sums + column
    total = tl.load(place)
    for _ in range(1, parts):
        place += columns
        total += tl.load(place)
    return total


@triton.jit(do_not_specialize=["n"])  # Triton would make a Python constant of 1, which has no `.to`
def add_plane_tiles(
    moment, partial, splits, scale, sums, pilot, n_used, n, d, columns, parts,
    PILOT: tl.constexpr, USE: tl.constexpr, BLOCK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    """Unscales a strip of a tile and adds it to the moment; with PILOT also p tᵀ + t pᵀ + n p pᵀ, t the column sums."""
    tile, strip, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_block, j_block = triangle_tile(tile)
    i_place, j_place = strip * STRIP + tl.arange(0, STRIP), tl.arange(0, BLOCK)
    i, j = i_block * BLOCK + i_place, j_block * BLOCK + j_place
    total = sum_of_partials(partial, layer, tile, splits, i_place[:, None] * BLOCK + j_place[None, :], BLOCK)
    scale += layer * columns
    total = total * ((1.0 / tl.load(scale + i))[:, None] * (1.0 / tl.load(scale + j))[None, :])
    if PILOT:
        sums += layer * parts * columns
        i_sum, j_sum = sum_of_parts(sums, parts, columns, i), sum_of_parts(sums, parts, columns, j)
        pilot += layer * d
        i_pilot = tl.load(pilot + i, mask=i < d, other=0.0)
        j_pilot = tl.load(pilot + j, mask=j < d, other=0.0)
        rows = (tl.load(n_used + layer) if USE else n).to(tl.float64)
        total += i_pilot[:, None] * (j_sum + rows * j_pilot)[None, :] + i_sum[:, None] * j_pilot[None, :]
    add_upper(moment, layer, i, j, d, total)
