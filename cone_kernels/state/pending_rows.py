"""Rows that wait until there are enough of them for one matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 512


class PendingRows:
    """A buffer of rows in order of arrival, given out in blocks of 512 however they were batched.

    Rows that are left out wait with the others, marked: to remove them the host would have to wait for the device.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._size = 0
        self.backend = "auto"

    def __len__(self) -> int:
        return self._size

    @property
    def full(self) -> bool:
        """Whether there is a whole block."""
        return self._size >= BLOCK_ROWS

    def extend(self, rows: Tensor, use: Tensor, backend: str) -> None:
        """Copies rows (n, d) to the end; use (n,) bool: which of them count; `backend` is to multiply them."""
        self.backend = backend
        if len(rows) == 0:
            return
        self._parts.append((rows.detach().clone(), use.clone()))
        self._size += len(rows)

    def waiting(self) -> tuple[Tensor, Tensor]:
        """All rows (n, d) and which of them count (n,) bool; they stay."""
        if not self._parts:  # there is no device yet to be on
            return torch.empty(0, self._dim), torch.empty(0, dtype=torch.bool)
        if len(self._parts) > 1:
            rows, use = zip(*self._parts, strict=True)
            self._parts = [(torch.cat(rows), torch.cat(use))]
        return self._parts[0]

    def take_blocks(self) -> tuple[Tensor, Tensor]:
        """Removes and returns the first rows, a multiple of 512 of them."""
        rows, use = self.waiting()
        cut = len(rows) // BLOCK_ROWS * BLOCK_ROWS
        self._parts, self._size = [], len(rows) - cut
        if self._size > 0:
            self._parts.append((rows[cut:].clone(), use[cut:].clone()))
        return rows[:cut], use[:cut]
