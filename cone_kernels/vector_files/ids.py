"""Ids or texts of rows: the lines of text files, one line a row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cone_kernels.vector_files.reading import VectorFileError

# The place of every so many lines is kept.
_STRIDE = 1024


class IdLines:
    """The lines of text files, found by row number; of the files only places are in memory, one for each 1024 lines.

    Only a line feed, or a carriage return and a line feed, ends a line; an empty line is an empty text.

    Args:
        paths: the files, in the order of the rows.

    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.name = ", ".join(map(str, paths))
        self.rows = 0
        self._paths = paths
        self._starts: list[int] = []  # the row of each file's first line
        self._places: list[list[int]] = []  # of each file, where every 1024th line begins
        for path in paths:
            self._starts.append(self.rows)
            places, lines, at = [], 0, 0
            with path.open("rb") as file:
                for line in file:
                    if lines % _STRIDE == 0:
                        places.append(at)
                    lines, at = lines + 1, at + len(line)
            self._places.append(places)
            self.rows += lines

    def ids(self, rows: Sequence[int]) -> list[str | None]:
        """The lines of these rows.

        Raises:
            VectorFileError: a line is not UTF-8.
        """
        return [self._line(row) for row in rows]

    def _line(self, row: int) -> str:
        which = bisect_right(self._starts, row) - 1
        line = row - self._starts[which]
        with self._paths[which].open("rb") as file:
            file.seek(self._places[which][line // _STRIDE])
            raw = next(islice(file, line % _STRIDE, None))
        try:
            return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise VectorFileError(f"{self._paths[which]}: line {line + 1} is not UTF-8: {error}") from error
