"""Eigenvectors of small symmetric matrices: parallel Jacobi rotations in one program, the matrix in global memory."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl

_MOST_SWEEPS = tl.constexpr(24)
_NEGLIGIBLE = tl.constexpr(2.0**-50)  # entries off the diagonal below this share of the largest on it are left


@triton.jit
def next_place(i, players):
    """Where entry i goes after a round of the circle method: neighbours 2m, 2m + 1 meet, and entry 0 stays."""
    top = tl.where(i == players - 2, players - 1, i + 2)
    moved = tl.where(i % 2 == 0, top, tl.where(i == 1, 2, i - 2))
    return tl.where((i == 0) | (i >= players) | (players == 2), i, moved)


@triton.jit
def rotations(pair, i, SIZE: tl.constexpr):
    """What entries i of the diagonal become, and the shares of i and of its neighbour i ^ 1 in the rotated i."""
    mine, other = tl.load(pair + i * (2 * SIZE + 1)), tl.load(pair + (i ^ 1) * (2 * SIZE + 1))
    between = tl.load(pair + i // 2 * (4 * SIZE + 2) + 1)  # above the diagonal
    gap, twice = other - mine, 2.0 * between
    span = tl.abs(gap) + tl.sqrt(gap * gap + twice * twice)
    tangent = twice / tl.where(span == 0.0, 1.0, span)
    tangent = tl.where((gap < 0.0) | ((gap == 0.0) & (i % 2 == 1)), -tangent, tangent)
    cosine = 1.0 / tl.sqrt(1.0 + tangent * tangent)
    return mine - tangent * between, cosine, -tangent * cosine


@triton.jit
def largest_entries(pair, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """The largest magnitudes on the diagonal of the matrix and off it."""
    on, off = tl.zeros([ROWS, SIZE], tl.float64), tl.zeros([ROWS, SIZE], tl.float64)
    column = tl.arange(0, SIZE)[None, :]
    for first in range(0, SIZE, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        value = tl.abs(tl.load(pair + row * (2 * SIZE) + column))
        on = tl.maximum(on, tl.where(row == column, value, 0.0))
        off = tl.maximum(off, tl.where(row == column, 0.0, value))
    return tl.max(on), tl.max(off)


@triton.jit
def symmetric_eigen(pairs, size, SIZE: tl.constexpr, ROWS: tl.constexpr):
    """Diagonalises a symmetric matrix, zero beyond `size`, `ROWS` rows at a time; returns which pair holds the result.

    pairs (2, SIZE, 2 SIZE): the first is the matrix and, beside it, the identity; the second is scratch. In the result
    the diagonal of the matrix is the eigenvalues, in no order, and the row beside each is its eigenvector.
    """
    players = (size + 1) // 2 * 2
    column = tl.arange(0, 2 * SIZE)
    own = column < SIZE  # columns of the matrix rotate with its rows, those of the vectors stay
    neighbour = tl.where(own, column ^ 1, column)
    place = tl.where(own, next_place(column, players), column)
    side, sweep = 0, 0
    on, off = largest_entries(pairs, SIZE, ROWS)
    limit = _NEGLIGIBLE * on
    while (off > limit) & (sweep < _MOST_SWEEPS):
        for _ in range(players - 1):
            old, new = pairs + side * (2 * SIZE * SIZE), pairs + (1 - side) * (2 * SIZE * SIZE)
            _, share, other_share = rotations(old, column & (SIZE - 1), SIZE)
            share = tl.where(own, share, 1.0)[None, :]
            other_share = tl.where(own, other_share, 0.0)[None, :]
            for first in range(0, SIZE, ROWS):
                row = first + tl.arange(0, ROWS)
                diagonal, row_share, row_other_share = rotations(old, row, SIZE)
                here, there = old + row[:, None] * (2 * SIZE), old + (row ^ 1)[:, None] * (2 * SIZE)
                mine = share * tl.load(here + column[None, :]) + other_share * tl.load(here + neighbour[None, :])
                other = share * tl.load(there + column[None, :]) + other_share * tl.load(there + neighbour[None, :])
                value = row_share[:, None] * mine + row_other_share[:, None] * other
                value = tl.where(row[:, None] == column[None, :], diagonal[:, None], value)
                value = tl.where((row ^ 1)[:, None] == column[None, :], 0.0, value)
                tl.store(new + next_place(row, players)[:, None] * (2 * SIZE) + place[None, :], value)
            tl.debug_barrier()
            side = 1 - side
        on, off = largest_entries(pairs + side * (2 * SIZE * SIZE), SIZE, ROWS)
        sweep += 1
    return side
