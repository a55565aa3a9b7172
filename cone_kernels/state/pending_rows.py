"""Rows that wait until there are enough of them for one matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ROWS = 512


@dataclass(frozen=True, eq=False)
class _Arrival:
    """Rows that came together: those of neighbouring layers, of which the first is at `start`."""

    start: int
    rows: Tensor  # (l, n, d)
    use: Tensor  # (l, n) bool


class PendingRows:
    """Rows of L layers in order of arrival, given out in blocks of 512 however they were batched.

    Neighbouring layers whose rows came together are given out together, for one product of them all. Rows that are left
    out wait with the others, marked: to remove them the host would have to wait for the device.
    """

    def __init__(self, n_layers: int) -> None:
        self._arrivals: list[tuple[_Arrival, ...]] = [()] * n_layers
        self.backend = "auto"

    def extend(self, at: slice, rows: Tensor, use: Tensor, backend: str) -> None:
        """Adds a copy of rows (l, n, d) to the end of the l layers at these positions.

        Args:
            at: positions among the layers.
            rows: (l, n, d).
            use: (l, n) bool: which of them count; it is kept.
            backend: which is to multiply them.
        """
        self.backend = backend
        if rows.shape[1] > 0:
            positions = range(len(self._arrivals))[at]
            arrival = _Arrival(positions.start, rows.detach().clone(), use)
            for position in positions:
                self._arrivals[position] += (arrival,)

    def full_runs(self, at: slice) -> Iterator[slice]:
        """As `runs`, those where a whole block waits."""
        return self.runs(at, BLOCK_ROWS)

    def runs(self, at: slice = slice(None), least: int = 1) -> Iterator[slice]:
        """The positions, of those at `at`, where at least so many rows wait: neighbours whose rows came together."""
        positions = range(len(self._arrivals))[at]
        first = positions.start
        for position in positions:
            end = position + 1
            if end < positions.stop and self._arrivals[end] == self._arrivals[position]:
                continue
            if sum(arrival.rows.shape[1] for arrival in self._arrivals[first]) >= least:
                yield slice(first, end)
            first = end

    def waiting(self, run: slice) -> tuple[Tensor, Tensor]:
        """All rows (l, n, d) of a run, and which of them count (l, n) bool; they stay."""
        arrivals = self._arrivals[run.start]
        if len(arrivals) != 1:
            parts = [(one.rows[_within(one, run)], one.use[_within(one, run)]) for one in arrivals]
            rows, use = zip(*parts, strict=True)
            self._set(run, torch.cat(rows, 1), torch.cat(use, 1))
        (only,) = self._arrivals[run.start]
        return only.rows[_within(only, run)], only.use[_within(only, run)]

    def take_blocks(self, run: slice) -> tuple[Tensor, Tensor]:
        """Removes and returns the first rows of a run, a multiple of 512 of them."""
        rows, use = self.waiting(run)
        cut = rows.shape[1] // BLOCK_ROWS * BLOCK_ROWS
        self._set(run, rows[:, cut:].clone(), use[:, cut:].clone())
        return rows[:, :cut], use[:, :cut]

    def _set(self, run: slice, rows: Tensor, use: Tensor) -> None:
        arrivals = (_Arrival(run.start, rows, use),) if rows.shape[1] > 0 else ()
        self._arrivals[run] = [arrivals] * (run.stop - run.start)


def _within(arrival: _Arrival, run: slice) -> slice:
    """Where the layers of a run are in what arrived."""
    return slice(run.start - arrival.start, run.stop - arrival.start)
