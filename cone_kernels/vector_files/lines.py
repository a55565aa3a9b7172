"""Vectors of `.jsonl` files: arrays of numbers, one a line, alone or as a field of an object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cone_kernels.vector_files.cursor import Cursor
from cone_kernels.vector_files.reading import Format, Reader, VectorFileError, chosen

Line = tuple[int, bytes]
# So many lines are in memory at a time.
_LINES = 256


class JsonLines(Reader):
    """Arrays of numbers as float64, which is what a number of JSON is; empty lines are no rows.

    Lines are parsed when they are asked for: what a range leaves out before it is passed over unparsed.

    Args:
        path: the file.
        field: of an object; None for the only one that is an array of numbers in the first.

    Raises:
        VectorFileError: the file is empty, or its first line is no vector and no object with one.
    """

    kind = "float64"

    def __init__(self, path: Path, field: str | None) -> None:
        self.name, self.files, self.rows = str(path), (path,), None
        self._path = path
        first = next(self._lines(), [])
        if not first:
            raise VectorFileError(f"{path} is empty; it must have a vector")
        record = self._parsed(first[0])
        if isinstance(record, list):
            if field is not None:
                raise VectorFileError(f"{self._where(first[0])} is an array, which has no field {field!r}")
        elif isinstance(record, dict):
            found = {name: type(value).__name__ for name, value in record.items()}
            usable = [name for name, value in record.items() if not_numbers(value) is None]
            field = chosen(field, found, usable, self._where(first[0]), "fields")
            self.fields = [name for name in record if name != field]
        else:
            raise VectorFileError(f"{self._where(first[0])} is {record!r:.40}; it must be an array or an object")
        self._field = field
        self.dim = 0
        self.dim = len(self._vector(first[0]))
        self._cursor = Cursor(lambda row: self._lines(), nearest=lambda row: 0)

    def pieces(self, start: int, stop: int) -> Iterator[Tensor]:
        for _, lines in self._cursor.between(start, stop):
            yield torch.from_numpy(np.array([self._vector(line) for line in lines]))
        if self._cursor.row < stop:
            self.rows = self._cursor.row

    def ids(self, field: str, rows: Sequence[int]) -> list[str | None]:
        wanted, found, row = set(rows), {}, 0
        for lines in self._lines():
            for line in lines:
                if row in wanted:
                    record = self._parsed(line)
                    if not isinstance(record, dict) or field not in record:
                        raise VectorFileError(f"{self._where(line)} has no field {field!r}")
                    found[row] = None if record[field] is None else str(record[field])
                row += 1
            if len(found) == len(wanted):
                break
        beyond = wanted - found.keys()
        if beyond:
            raise VectorFileError(f"{self.name} has {row} rows; there is no row {min(beyond)}")
        return [found[row] for row in rows]

    def _lines(self) -> Iterator[list[Line]]:
        """The lines that are not empty, with their numbers from 1."""
        with self._path.open("rb") as file:
            lines = ((number, raw) for number, raw in enumerate(file, start=1) if not raw.isspace())
            while some := list(islice(lines, _LINES)):
                yield some

    def _where(self, line: Line) -> str:
        return f"{self.name}: line {line[0]}"

    def _parsed(self, line: Line) -> Any:
        try:
            return json.loads(line[1])
        except (ValueError, RecursionError) as error:
            raise VectorFileError(f"{self._where(line)} is not JSON: {error}") from error

    def _vector(self, line: Line) -> np.ndarray[Any, Any]:
        value, what = self._parsed(line), self._where(line)
        if self._field is not None:
            if not isinstance(value, dict) or self._field not in value:
                raise VectorFileError(f"{what} has no field {self._field!r}")
            value, what = value[self._field], f"{what}: field {self._field!r}"
        return vector_of(value, self.dim, what)


def vector_of(value: Any, dim: int, where: str) -> np.ndarray[Any, Any]:
    """A list of numbers as float64 (d,).

    Args:
        value: what should be one.
        dim: the width that it must have; 0 for any.
        where: what messages begin with.

    Raises:
        VectorFileError: it is no list, empty, has another width, or holds something that is no number.
    """
    wrong = not_numbers(value)
    if wrong is None and dim and len(value) != dim:
        wrong = f"has width {len(value)}; it must be {dim}, as the first row"
    if wrong is not None:
        raise VectorFileError(f"{where} {wrong}")
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError as error:
        raise VectorFileError(f"{where} holds a number beyond float64: {error}") from error


def not_numbers(value: Any) -> str | None:
    """What keeps a value from being a list of numbers; None where it is one."""
    if not isinstance(value, (list, tuple)):
        return f"is {value!r:.40}; it must be an array of numbers"
    if not value:
        return "is an empty array; it must have a number"
    if set(map(type, value)) <= {float, int}:
        return None
    at = next(at for at, number in enumerate(value) if type(number) not in (float, int))
    return f"has {value[at]!r:.40} at position {at}; it must be a number"


FORMATS = {"jsonl": Format(JsonLines, has_fields=True)}
