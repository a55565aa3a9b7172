"""Block shapes by width and element size, chosen so that nothing spills; compiled and checked by the tests."""

from __future__ import annotations

from dataclasses import dataclass

import triton

# A thread owns 8 neighbouring columns: one 16-byte load of a 16-bit type, two of float32.
_COLUMNS_PER_WARP = 256
# Wider rows are cut into slabs of so many columns: sums of more of them do not fit the registers of a multiprocessor.
_WIDEST = 2048
_SLAB = 1024


@dataclass(frozen=True)
class Shape:
    """The tile that a program works on."""

    columns: int
    rows: int
    slabs: int
    warps: int
    stages: int

    @property
    def registers(self) -> int:
        """Of a thread, at most: all there are. Left to itself, ptxas spills a few to come down to a rounder number."""
        return min(255, 65536 // (32 * self.warps))


def shape_of(d: int, element_size: int) -> Shape:
    """The shape for rows of width d: 4 rows of a tile, 2 of a slab."""
    columns = _SLAB if d > _WIDEST else max(64, triton.next_power_of_2(d))
    warps = max(1, columns // _COLUMNS_PER_WARP)
    return Shape(columns, 2 if d > _WIDEST else 4, triton.cdiv(d, columns), warps, 5 if element_size == 2 else 3)


def pool_shape_of(d: int, element_size: int) -> Shape:
    """The shape for plain sums of rows of width d, which need few registers: 8 or 16 rows of a tile."""
    columns = min(_SLAB, max(64, triton.next_power_of_2(d)))
    warps = max(1, columns // _COLUMNS_PER_WARP)
    return Shape(columns, 32 // element_size, triton.cdiv(d, columns), warps, 3)


def backward_shape_of(d: int) -> Shape:
    """The shape for the gradient of rows of width d, which are kept in float64: 2 rows of a tile."""
    columns = _SLAB if d > 2 * _WIDEST else max(64, triton.next_power_of_2(d))
    warps = max(1, columns // _COLUMNS_PER_WARP)
    return Shape(columns, 2, triton.cdiv(d, columns), warps, 1)
