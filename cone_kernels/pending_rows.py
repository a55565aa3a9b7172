"""Rows that wait until there are enough of them for one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 512


class PendingRows:
    """A buffer of rows in order of arrival; given out in blocks of 512, so that the cut does not depend on batches."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._parts: list[Tensor] = []
        self._size = 0
        self.backend = "auto"

    @property
    def full(self) -> bool:
        """Whether there is a whole block."""
        return self._size >= BLOCK_ROWS

    def extend(self, rows: Tensor, backend: str) -> None:
        """Copies rows (n, d) to the end; `backend` is to multiply them."""
        self.backend = backend
        if len(rows) == 0:
            return
        self._parts.append(rows.detach().clone())
        self._size += len(rows)

    def waiting(self) -> Tensor:
        """All rows (n, d); they stay."""
        if len(self._parts) != 1:
            self._parts = [torch.cat(self._parts)] if self._parts else [torch.empty(0, self._dim)]
        return self._parts[0]

    def take_blocks(self) -> Tensor:
        """Removes and returns the first rows, a multiple of 512 of them."""
        rows = self.waiting()
        cut = len(rows) // BLOCK_ROWS * BLOCK_ROWS
        self._parts, self._size = [rows[cut:].clone()], len(rows) - cut
        return rows[:cut]
