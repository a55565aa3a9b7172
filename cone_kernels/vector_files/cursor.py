"""Ranges of rows from a source that is read in order: each goes on where the one before ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar


class Rows(Protocol):
    """What can be cut by rows: a list, a tensor, an Arrow array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


Piece = TypeVar("Piece", bound=Rows)


class Cursor(Generic[Piece]):
    """Where the reading of a source stands, so that ranges in rising order read it once.

    Args:
        begin: gives the rows from a row of `nearest` on, piece by piece.
        nearest: gives the last row, at or before a row, where reading can begin.

    Examples:
        >>> cursor = Cursor(lambda row: iter(["abc", "de"]), nearest=lambda row: 0)
        >>> list(cursor.between(1, 4))
        [(1, 'bc'), (3, 'd')]
    """

    def __init__(self, begin: Callable[[int], Iterator[Piece]], nearest: Callable[[int], int]) -> None:
        self._begin = begin
        self._nearest = nearest
        self._pieces: Iterator[Piece] | None = None
        self._piece: Piece | None = None
        self.row = 0  # of what comes next

    def between(self, start: int, stop: int) -> Iterator[tuple[int, Piece]]:
        """(first row, rows) of all that is there from `start` up to `stop`; what comes before `start` is passed over.

        Where the source has ended, `row` is how many rows it has.
        """
        begin = self._nearest(start)
        if self._pieces is None or not begin <= self.row <= start:
            self._pieces, self._piece, self.row = self._begin(begin), None, begin
        while self.row < stop:
            piece = self._next() if self._piece is None else self._piece
            if piece is None:
                return
            end = min(self.row + len(piece), stop)
            first, at = max(self.row, min(start, end)), self.row
            self._piece = piece[end - at :] if end < at + len(piece) else None
            self.row = end
            if first < end:
                yield first, piece[first - at : end - at]

    def _next(self) -> Piece | None:
        """The next piece; None at the end of the source. What failed begins anew, and is not taken for ended."""
        assert self._pieces is not None
        try:
            return next(self._pieces, None)
        except BaseException:
            self._pieces = None
            raise
