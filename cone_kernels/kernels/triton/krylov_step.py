"""A step of the subspace iteration, a program a layer: Ritz pairs, their residuals, a basis that grows by them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

from cone_kernels.kernels.triton.jacobi import symmetric_eigen

RESTART_BLOCKS = tl.constexpr(2)  # the basis is restarted with so many
# Residuals below this many roundings of the largest Ritz value are noise and no direction to search in.
_NOISE = tl.constexpr(2.0**-49)
# A direction of which less than this is left, squared, when the others are taken off it depends on them.
_DEPENDENT = tl.constexpr(1e-12)


@triton.jit
def krylov_step(
    basis, image, next_basis, next_image, pairs, directions, coefficients, ritz, order, state, scale, tolerance,
    values, vectors, residuals, iterations, next_value, converged, d, columns, k, block, capacity, max_iterations,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Takes layers from basis, image (L, SIZE, columns) to the next ones.

    Scratch: pairs (L, 2, SIZE, 2 SIZE), directions (L, 2, BLOCK, columns), coefficients (L, SIZE, PART),
    ritz (L, 3, SIZE): Ritz values, residuals and lengths of the vectors; order (L, SIZE) int32.
    state (L, 4) int32: vectors multiplied before this step, vectors multiplied in it, steps done, whether finished.
    """
    layer = tl.program_id(0).to(tl.int64)
    state += layer * 4
    if tl.load(state + 3) != 0:
        return
    size = tl.load(state) + tl.load(state + 1)
    basis += layer * SIZE * columns
    image += layer * SIZE * columns
    next_basis += layer * SIZE * columns
    next_image += layer * SIZE * columns
    pairs += layer * 4 * SIZE * SIZE
    directions += layer * 2 * BLOCK * columns
    coefficients += layer * SIZE * PART
    ritz += layer * 3 * SIZE
    order += layer * SIZE

    project(basis, image, pairs, size, columns, SIZE, TILE, WIDTH)
    tl.debug_barrier()
    found = pairs + symmetric_eigen(pairs, size, SIZE, ROWS) * (2 * SIZE * SIZE)
    sort_values(found, order, ritz, size, SIZE, ROWS)
    tl.debug_barrier()
    kept = tl.where((size + block > capacity) & (capacity < d), RESTART_BLOCKS * block, size)
    rotate(found, order, ritz, basis, image, next_basis, next_image, directions, size, kept, columns, SIZE, BLOCK,
           TILE, WIDTH)  # fmt: skip
    steps = tl.load(state + 2) + 1
    tl.debug_barrier()

    everything = tl.arange(0, SIZE)
    largest = tl.max(tl.abs(tl.load(ritz + everything, mask=everything < size, other=0.0)), 0)
    wanted = tl.arange(0, BLOCK)
    theta = tl.load(ritz + wanted, mask=wanted < size, other=0.0)
    residual = tl.load(ritz + SIZE + wanted, mask=wanted < size, other=0.0)
    limit = tl.load(tolerance)
    # the next Ritz value is there for the eigengap alone: its error is the square of its residual over its own gap
    limits = tl.where(wanted < k, limit, tl.maximum(limit, 1e-3)) * largest
    checked = (wanted <= k) & (wanted < d)
    done = tl.sum((checked & ~(residual <= limits)).to(tl.int32), 0) == 0
    unscale = 1.0 / tl.load(scale + layer)
    tl.store(values + layer * k + wanted, theta * unscale, mask=wanted < k)
    tl.store(residuals + layer * k + wanted, residual * unscale, mask=wanted < k)
    tl.store(next_value + layer + wanted * 0, theta * unscale, mask=(wanted == k) & (wanted < d))
    tl.store(state + 2, steps)  # not at the end: it would take registers while the basis grows
    tl.store(iterations + layer, steps.to(tl.int64))
    tl.store(converged + layer, done.to(tl.uint8))

    filled = kept
    if (steps < max_iterations) & (done == 0):
        limit_filled = tl.minimum(kept + block, capacity)
        filled = expand(next_basis, directions, coefficients, ritz + SIZE, kept, limit_filled, block, _NOISE * largest,
                        columns, BLOCK, PART, TILE, WIDTH)  # fmt: skip
    finished = filled == kept
    if finished:
        store_vectors(next_basis, ritz + 2 * SIZE, vectors + layer * k * d, k, d, columns, PART, WIDTH)
    tl.store(state, kept)
    tl.store(state + 1, filled - kept)
    tl.store(state + 3, finished.to(tl.int32))


@triton.jit
def rows_at(matrix, row, column, columns):
    return matrix + row[:, None] * columns + column[None, :]


@triton.jit
def project(basis, image, pairs, size, columns, SIZE: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """The first of the pairs: V C Vᵀ, symmetric and zero beyond `size`, and the identity."""
    for first in range(0, SIZE, TILE):
        i = first + tl.arange(0, TILE)
        for other in range(first, SIZE, TILE):
            j = other + tl.arange(0, TILE)
            product = tl.zeros([TILE, TILE], tl.float64)
            if other < size:
                for start in range(0, columns, WIDTH):
                    column = start + tl.arange(0, WIDTH)
                    left, right = rows_at(basis, i, column, columns), rows_at(image, j, column, columns)
                    product = tl.dot(tl.load(left), tl.trans(tl.load(right)), product, out_dtype=tl.float64)
            product = tl.where((i < size)[:, None] & (j < size)[None, :], product, 0.0)
            if other == first:
                product = 0.5 * (product + tl.trans(product))
            identity = (i[:, None] == j[None, :]).to(tl.float64)
            # transposed addresses take fewer registers than a transposed product: Triton 3.6 would spill
            upper, lower = rows_at(pairs, i, j, 2 * SIZE), tl.trans(rows_at(pairs, j, i, 2 * SIZE))
            tl.store(upper, product)
            tl.store(lower, product)
            tl.store(upper + SIZE, identity)
            tl.store(lower + SIZE, identity)


@triton.jit
def sort_values(found, order, ritz, size, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """order: the entries by their value, descending, those beyond `size` last; ritz: the values in that order."""
    j = tl.arange(0, SIZE)
    other = tl.load(found + j * (2 * SIZE + 1))
    unordered = tl.max((other != other).to(tl.int32), 0)
    other = tl.where(j < size, other, float("-inf"))
    for first in range(0, SIZE, ROWS):
        i = first + tl.arange(0, ROWS)
        value = tl.load(found + i * (2 * SIZE + 1))
        mine = tl.where(i < size, value, float("-inf"))[:, None]
        before = (other[None, :] > mine) | ((other[None, :] == mine) & (j[None, :] < i[:, None]))
        rank = tl.where(unordered != 0, i, tl.sum(before.to(tl.int32), 1))
        tl.store(order + rank, i)
        tl.store(ritz + rank, value)


@triton.jit
def rotate(
    found, order, ritz, basis, image, next_basis, next_image, directions, size, kept, columns,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The leading `kept` Ritz vectors and their images, and of the first `BLOCK` the residuals C v − θ v."""
    for first in range(0, kept, TILE):
        row = first + tl.arange(0, TILE)
        source = tl.load(order + row) * (2 * SIZE) + SIZE
        theta = tl.load(ritz + row)[:, None]
        residuals, lengths = tl.zeros([TILE, WIDTH], tl.float64), tl.zeros([TILE, WIDTH], tl.float64)
        for start in range(0, columns, WIDTH):
            column = start + tl.arange(0, WIDTH)
            vector, product = tl.zeros([TILE, WIDTH], tl.float64), tl.zeros([TILE, WIDTH], tl.float64)
            for other in range(0, size, TILE):
                j = other + tl.arange(0, TILE)
                turn = tl.load(found + source[:, None] + j[None, :])
                vector = tl.dot(turn, tl.load(rows_at(basis, j, column, columns)), vector, out_dtype=tl.float64)
                product = tl.dot(turn, tl.load(rows_at(image, j, column, columns)), product, out_dtype=tl.float64)
            tl.store(rows_at(next_basis, row, column, columns), vector)
            tl.store(rows_at(next_image, row, column, columns), product)
            product -= theta * vector
            tl.store(rows_at(directions, row, column, columns), product, mask=(row < BLOCK)[:, None])
            residuals += product * product
            lengths += vector * vector
        tl.store(ritz + SIZE + row, tl.sqrt(tl.sum(residuals, 1)))
        tl.store(ritz + 2 * SIZE + row, tl.sqrt(tl.sum(lengths, 1)))


@triton.jit
def expand(
    basis, directions, coefficients, norms, filled, limit, block, noise, columns,
    BLOCK: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Appends the directions (2, BLOCK, columns), orthonormal, to the `filled` rows of the basis; returns its size.

    Block Gram-Schmidt twice, within a part by the Cholesky factor of its Gram matrix; dependent directions are dropped.
    """
    for first in range(0, block, PART):
        i, j = tl.arange(0, PART), tl.arange(0, PART if PART > 16 else 16)  # tl.dot sums over 16 at least
        norm = tl.load(norms + first + i, mask=first + i < block, other=0.0)
        used = norm > noise
        factor = tl.where(used, 1.0 / tl.where(used, norm, 1.0), 0.0)
        given, lessened = directions + first * columns, directions + (BLOCK + first) * columns
        for again in tl.static_range(2):
            subtract(basis, given, lessened, coefficients, factor, filled, columns, PART, TILE, WIDTH)
            tl.debug_barrier()
            turn = orthonormal_combinations(lessened, columns, PART, WIDTH)
            factor = tl.full([PART], 1.0, tl.float64)
            # turn is lower triangular: its diagonal is 0 where a direction is dropped
            there = (tl.sum(tl.where(i[:, None] == j[None, :], turn, 0.0), 1) > 0.0).to(tl.int32)
            place = filled + tl.sum(tl.where(i[None, :] < i[:, None], there[None, :], 0), 1)
            stored = (there != 0) & (place < limit)
            for start in range(0, columns, WIDTH):
                column = start + tl.arange(0, WIDTH)
                rows = tl.load(rows_at(lessened, j, column, columns), mask=(j < PART)[:, None], other=0.0)
                turned = tl.dot(turn, rows, out_dtype=tl.float64)
                if again == 0:
                    tl.store(rows_at(given, i, column, columns), turned)
                else:
                    tl.store(rows_at(basis, place, column, columns), turned, mask=stored[:, None])
            tl.debug_barrier()
        filled += tl.sum(stored.to(tl.int32), 0)
    return filled


@triton.jit
def subtract(
    basis, given, lessened, coefficients, factor, filled, columns,
    PART: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """lessened (PART, columns): factor · given, less what of it the `filled` rows of the basis span."""
    i = tl.arange(0, PART)
    for other in range(0, filled, TILE):
        j = other + tl.arange(0, TILE)
        along = tl.zeros([TILE, PART], tl.float64)
        for start in range(0, columns, WIDTH):
            column = start + tl.arange(0, WIDTH)
            rows = tl.load(rows_at(basis, j, column, columns))
            along = tl.dot(rows, tl.trans(tl.load(rows_at(given, i, column, columns))), along, out_dtype=tl.float64)
        along = tl.where((j < filled)[:, None], along * factor[None, :], 0.0)
        tl.store(rows_at(coefficients, j, i, PART), along)
    tl.debug_barrier()
    for start in range(0, columns, WIDTH):
        column = start + tl.arange(0, WIDTH)
        spanned = tl.zeros([PART, WIDTH], tl.float64)
        for other in range(0, filled, TILE):
            j = other + tl.arange(0, TILE)
            along = tl.load(rows_at(coefficients, j, i, PART))
            rows = tl.load(rows_at(basis, j, column, columns))
            spanned = tl.dot(tl.trans(along), rows, spanned, out_dtype=tl.float64)
        rest = factor[:, None] * tl.load(rows_at(given, i, column, columns)) - spanned
        tl.store(rows_at(lessened, i, column, columns), rest)


@triton.jit
def orthonormal_combinations(rows, columns, PART: tl.constexpr, WIDTH: tl.constexpr):
    """turn (PART, PART or 16), lower triangular: turn · rows is orthonormal, 0 where a row depends on earlier ones."""
    i, j = tl.arange(0, PART), tl.arange(0, PART if PART > 16 else 16)
    gram = tl.zeros([PART, PART], tl.float64)
    for start in range(0, columns, WIDTH):
        value = tl.load(rows_at(rows, i, start + tl.arange(0, WIDTH), columns))
        gram = tl.dot(value, tl.trans(value), gram, out_dtype=tl.float64)
    turn = (i[:, None] == j[None, :]).to(tl.float64)
    for pivot in range(PART):
        chosen = i[:, None] == pivot
        row = tl.sum(tl.where(chosen, gram, 0.0), 0)
        square = tl.sum(tl.where(i == pivot, row, 0.0), 0)
        independent = square > _DEPENDENT
        inverse = tl.where(independent, 1.0 / tl.where(independent, square, 1.0), 0.0)
        share = tl.where(i > pivot, row * inverse, 0.0)[:, None]
        turn -= share * tl.sum(tl.where(chosen, turn, 0.0), 0)[None, :]
        turn = tl.where(chosen, turn * tl.sqrt(inverse), turn)
        gram -= share * row[None, :]
    return turn


@triton.jit
def store_vectors(basis, lengths, vectors, k, d, columns, PART: tl.constexpr, WIDTH: tl.constexpr):
    """vectors (k, d): the leading rows of the basis, of length 1."""
    for first in range(0, k, PART):
        i = first + tl.arange(0, PART)
        inverse = 1.0 / tl.load(lengths + i, mask=i < k, other=1.0)
        for start in range(0, d, WIDTH):
            column = start + tl.arange(0, WIDTH)
            row = tl.load(rows_at(basis, i, column, columns), mask=(i < k)[:, None], other=0.0)
            target = rows_at(vectors, i, column, d)
            tl.store(target, row * inverse[:, None], mask=(i < k)[:, None] & (column < d)[None, :])
