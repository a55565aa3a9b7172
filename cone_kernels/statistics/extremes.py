"""The rows that lie furthest along an axis, found while rows stream by; only the rows kept take memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# How many numbers a block of rows has: few enough that its float64 copies take tens of megabytes at any width.
_BLOCK_NUMBERS = 2**22


def project(rows: Tensor, axes: Tensor, origin: Tensor | None = None) -> Tensor:
    """(x − origin)·v of every row on every axis, bitwise the same however the rows are cut into blocks.

    A matrix product would round a row differently in another block, and equal rows would not tie.

    Args:
        rows: x (n, d), any floating dtype; taken to float64.
        axes: v (k, d) float64.
        origin: (d,) float64; None is zero.

    Returns:
        (n, k) float64.

    Examples:
        >>> project(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]], dtype=torch.float64))
        tensor([[2.]], dtype=torch.float64)
    """
    exact = rows.double() if origin is None else rows.double() - origin
    return torch.stack([(exact * axis).sum(-1) for axis in axes], 1)


def block_rows(dim: int) -> int:
    """How many rows of this width to take at once."""
    return max(1, _BLOCK_NUMBERS // dim)


@dataclass(frozen=True)
class Extreme:
    """A row far along an axis: its index and its projection."""

    index: int
    projection: float


class Extremes:
    """The `count` highest and lowest of the projections seen so far, for each of k axes.

    Of equal projections the row of smaller index comes first, at both ends, so the answer does not depend on the order
    or the blocks in which rows are added. Fewer rows than `count`: all of them, at both ends.

    Args:
        count: how many at each end.
        axes: k.

    Raises:
        ValueError: `count` or `axes` is below 1.

    Examples:
        >>> extremes = Extremes(count=1, axes=1)
        >>> extremes.add(torch.tensor([0, 1, 2]), torch.tensor([[0.5], [2.0], [-1.0]]))
        >>> extremes.highest(0), extremes.lowest(0)
        ((Extreme(index=1, projection=2.0),), (Extreme(index=2, projection=-1.0),))
    """

    def __init__(self, count: int, axes: int) -> None:
        for name, value in {"count": count, "axes": axes}.items():
            if value < 1:
                raise ValueError(f"{name}: got {value}; it must be at least 1")
        self._high = [_First(count) for _ in range(axes)]
        self._low = [_First(count) for _ in range(axes)]

    def add(self, indices: Tensor, projections: Tensor) -> None:
        """Adds rows.

        Args:
            indices: (n,) int64, of rows not added before.
            projections: (n, k) float64.

        Raises:
            ValueError: the shapes do not fit, or a projection is not finite.
        """
        if projections.shape != (len(indices), len(self._high)):
            wanted = f"(n, k) = ({len(indices)}, {len(self._high)})"
            raise ValueError(f"projections: got shape {tuple(projections.shape)}; it must be {wanted}")
        if not bool(projections.isfinite().all()):
            raise ValueError("projections: got values that are not finite; they must be finite, so leave such rows out")
        ids, values = indices.cpu().numpy(), projections.double().cpu().numpy()
        for high, low, column in zip(self._high, self._low, values.T, strict=True):
            high.add(-column, ids)
            low.add(column, ids)

    def highest(self, axis: int) -> tuple[Extreme, ...]:
        """The rows furthest along the axis, the furthest first."""
        first = self._high[axis]
        return tuple(Extreme(int(i), -float(key)) for i, key in zip(first.indices, first.keys, strict=True))

    def lowest(self, axis: int) -> tuple[Extreme, ...]:
        """The rows furthest against the axis, the furthest first."""
        first = self._low[axis]
        return tuple(Extreme(int(i), float(key)) for i, key in zip(first.indices, first.keys, strict=True))


class _First:
    """The `count` rows of smallest key so far, in order; of equal keys the smaller index first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.keys: NDArray[np.float64] = np.empty(0)
        self.indices: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, keys: NDArray[np.float64], indices: NDArray[np.int64]) -> None:
        keys, indices = np.concatenate([self.keys, keys]), np.concatenate([self.indices, indices])
        order = np.lexsort((indices, keys))[: self.count]
        self.keys, self.indices = keys[order], indices[order]
