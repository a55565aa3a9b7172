"""Whether two sources agree on which vectors are each other's nearest, on evenly spaced rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# So many rows are kept at most, and so many of them ask for their neighbours.
_MOST, _QUERIES = 8192, 1024


@dataclass(frozen=True)
class NeighbourOverlap:
    """How many of the k nearest rows by cosine two sources share.

    Attributes:
        k: neighbours of a row.
        queries: rows whose neighbours were looked up, among `among` rows.
        overlap: the mean share of the k that both name.
        stderr: its standard error over the queries.
        chance: the share that two random choices have in common.
    """

    k: int
    queries: int
    among: int
    overlap: float
    stderr: float
    chance: float


class EvenlySpaced:
    """Keeps every s-th of the rows that stream by, s a power of two that doubles whenever there are too many.

    Examples:
        >>> kept = EvenlySpaced()
        >>> kept.add(a, b)
        >>> kept.overlap(10).overlap
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._step, self._seen = 1, 0
        self._a: list[Tensor] = []
        self._b: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        """Takes rows (n, width) and their twins."""
        at = torch.arange((-self._seen) % self._step, len(a), self._step)
        self._seen += len(a)
        self._a.append(a[at].float())
        self._b.append(b[at].float())
        while sum(map(len, self._a)) > self._most:
            # A new step keeps the rows whose number it divides: every second of those that are there.
            self._a, self._b = [torch.cat(self._a)[::2]], [torch.cat(self._b)[::2]]
            self._step *= 2

    def overlap(self, k: int) -> NeighbourOverlap | None:
        """The overlap of the k nearest; None with fewer than k + 2 rows."""
        rows = [torch.nn.functional.normalize(torch.cat(kept).double(), dim=1) for kept in (self._a, self._b)]
        n = len(rows[0])
        if n < k + 2:
            return None
        queries = torch.arange(0, n, max(1, n // _QUERIES))
        nearest = []
        for unit in rows:
            cosines = unit[queries] @ unit.mT
            cosines[torch.arange(len(queries)), queries] = -torch.inf
            nearest.append(cosines.topk(k, dim=1).indices)
        shared = (nearest[0][:, :, None] == nearest[1][:, None, :]).sum((1, 2)).double() / k
        error = float(shared.std()) / math.sqrt(len(shared))
        return NeighbourOverlap(k, len(queries), n, float(shared.mean()), error, k / (n - 1))
