"""Products of covariances with the newest vectors of each basis, from the covariances or from data read once."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from cone_kernels.kernels.triton.powers_of_two import scale_towards


@triton.jit
def diagonal_scales(x, scale, d, stride_l, stride_n, stride_d, WIDTH: tl.constexpr):
    """scale (L): the power of two that brings the largest magnitude on each diagonal to 1."""
    layer = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([WIDTH], tl.float64)
    for first in range(0, d, WIDTH):
        i = first + tl.arange(0, WIDTH)
        place = x + layer * stride_l + i.to(tl.int64) * (stride_n + stride_d)
        value = tl.abs(tl.load(place, mask=i < d, other=0.0).to(tl.float64))
        largest = tl.where(value > largest, value, largest)
    tl.store(scale + layer, scale_towards(tl.max(largest, 0), 0))


@triton.jit
def newest_vectors(state, PART: tl.constexpr):
    """Numbers of `PART` rows of the basis to multiply, which of them exist, and whether the layer is finished."""
    size, fresh, finished = tl.load(state), tl.load(state + 1), tl.load(state + 3)
    place = tl.program_id(2) * PART + tl.arange(0, PART)
    return size + place, place < fresh, finished != 0


@triton.jit
def multiply_covariance(
    x, basis, image, state, scale, d, columns, stride_l, stride_n, stride_d,
    SIZE: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """image (L, SIZE, columns) = scale · C v for the newest rows v of basis (L, SIZE, columns)."""
    layer = tl.program_id(0).to(tl.int64)
    vector, there, finished = newest_vectors(state + layer * 4, PART)
    if finished:
        return
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = x + layer * stride_l + i.to(tl.int64)[:, None] * stride_n
    rows_of_layer = (layer * SIZE + vector) * columns
    product = tl.zeros([ROWS, PART], tl.float64)
    for first in range(0, d, WIDTH):
        j = first + tl.arange(0, WIDTH)
        inside = (i < d)[:, None] & (j < d)[None, :]
        matrix = tl.load(row + j.to(tl.int64)[None, :] * stride_d, mask=inside, other=0.0).to(tl.float64)
        vectors = tl.load(basis + rows_of_layer[:, None] + j[None, :], mask=there[:, None], other=0.0)
        product = tl.dot(matrix, tl.trans(vectors), product, out_dtype=tl.float64)
    product = product * tl.load(scale + layer)
    tl.store(image + rows_of_layer[None, :] + i[:, None], product, mask=there[None, :] & (i < d)[:, None])


@triton.jit
def centred(x, mean, row, column, n, d, stride_n, stride_d, CENTER: tl.constexpr):
    """Some columns of some rows less the mean, in float64; 0 beyond the edges."""
    inside = (row < n)[:, None] & (column < d)[None, :]
    offset = row.to(tl.int64)[:, None] * stride_n + column.to(tl.int64)[None, :] * stride_d
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float64)
    if CENTER:
        value = tl.where(inside, value - tl.load(mean + column, mask=column < d, other=0.0)[None, :], 0.0)
    return value


@triton.jit
def multiply_data(
    x, mean, basis, partial, state, n, d, columns, part_rows, stride_l, stride_n, stride_d,
    CENTER: tl.constexpr, SIZE: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """partial (L, vector parts, row parts, PART, columns) = Xᵀ (X v) of one part of the rows, `ROWS` rows at a time."""
    layer = tl.program_id(0).to(tl.int64)
    vector, there, finished = newest_vectors(state + layer * 4, PART)
    if finished:
        return
    x += layer * stride_l
    mean += layer * d
    rows_of_layer = (layer * SIZE + vector) * columns
    number = (layer * tl.num_programs(2) + tl.program_id(2)) * tl.num_programs(1) + tl.program_id(1)
    partial += number * PART * columns
    begin = tl.program_id(1) * part_rows
    for first_row in range(begin, tl.minimum(begin + part_rows, n), ROWS):
        row = first_row + tl.arange(0, ROWS)
        along = tl.zeros([ROWS, PART], tl.float64)
        # The next columns are loaded while these are multiplied. Besides, Triton 3.6 cannot compile a float64 product
        # of 16-bit loads from the same turn of a loop.
        data = centred(x, mean, row, tl.arange(0, WIDTH), n, d, stride_n, stride_d, CENTER)
        for first in range(0, columns, WIDTH):
            j = first + tl.arange(0, WIDTH)
            vectors = tl.load(basis + rows_of_layer[:, None] + j[None, :], mask=there[:, None], other=0.0)
            along = tl.dot(data, tl.trans(vectors), along, out_dtype=tl.float64)
            data = centred(x, mean, row, j + WIDTH, n, d, stride_n, stride_d, CENTER)
        # the same rows again, now from the cache
        data = centred(x, mean, row, tl.arange(0, WIDTH), n, d, stride_n, stride_d, CENTER)
        for first in range(0, columns, WIDTH):
            j = first + tl.arange(0, WIDTH)
            place = partial + tl.arange(0, PART)[:, None] * columns + j[None, :]
            there_before = tl.where(first_row > begin, columns, 0)
            total = tl.load(place, mask=(j < there_before)[None, :], other=0.0)
            tl.store(place, tl.dot(tl.trans(along), data, total, out_dtype=tl.float64))
            data = centred(x, mean, row, j + WIDTH, n, d, stride_n, stride_d, CENTER)
        tl.debug_barrier()  # the next rows are added to what other threads store here


@triton.jit(do_not_specialize=["divisor"])  # Triton would make a Python constant of 1, which has no `.to`
def add_parts(
    partial, image, state, parts, columns, divisor, SIZE: tl.constexpr, PART: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """image = the sum of the parts, in their order, over `divisor`."""
    layer = tl.program_id(0).to(tl.int64)
    vector, there, finished = newest_vectors(state + layer * 4, PART)
    if finished:
        return
    j = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    first = (layer * tl.num_programs(2) + tl.program_id(2)) * parts * PART * columns
    place = partial + first + tl.arange(0, PART)[:, None] * columns + j[None, :]
    total = tl.load(place)
    for _ in range(1, parts):
        place += PART * columns
        total += tl.load(place)
    target = image + ((layer * SIZE + vector) * columns)[:, None] + j[None, :]
    tl.store(target, total / divisor.to(tl.float64), mask=there[:, None])
