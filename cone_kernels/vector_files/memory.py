"""Vectors that are given in Python: an array, a tensor, or an iterable of batches or rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cone_kernels.ops.arguments import as_tensor, dtype_name
from cone_kernels.vector_files.cursor import Cursor
from cone_kernels.vector_files.fingerprint import BLOCK_BYTES, sampled
from cone_kernels.vector_files.lines import vector_of
from cone_kernels.vector_files.reading import Reader, VectorFileError, check_kind, check_shape


class ArrayRows(Reader):
    """The rows of an array or a tensor (n, d), also of a NumPy memory map; a block is a view where it can be one."""

    def __init__(self, array: np.ndarray[Any, Any] | Tensor, name: str) -> None:
        self.name = name
        self.rows, self.dim = check_shape(array.shape, name)
        self.kind = check_kind(_kind(array), name)
        self._array = array.detach() if isinstance(array, Tensor) else array

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        return [_tensor(self._array[start:stop], self.name)]

    def fingerprint(self) -> str:
        """Of rows that are spread evenly over the array."""
        assert self.rows is not None
        size = self.dim * self._array.dtype.itemsize
        sha256 = hashlib.sha256()
        for start, stop in sampled(self.rows, max(1, BLOCK_BYTES // size)):
            rows = _tensor(self._array[start:stop], self.name).cpu().contiguous()
            sha256.update(rows.view(torch.uint8).numpy().tobytes())
        return sha256.hexdigest()


class IterableRows(Reader):
    """The rows of an iterable of batches (n, d) or of single rows (d,): arrays, tensors, or lists of numbers.

    What is no iterator itself is iterated anew for every pass; an iterator can be read once.
    """

    rows = None

    def __init__(self, rows: Iterable[Any], name: str) -> None:
        self.name = name
        self._given = rows
        iterator = iter(rows)
        self.once = iterator is rows
        self.dim, self.kind = 0, ""
        first = next(iterator, None)
        if first is None:
            raise VectorFileError(f"{name} is empty; it must have a vector")
        batch = self._batch(first, 0)
        self.dim, self.kind = batch.shape[1], dtype_name(batch.dtype)
        # What was taken for a look is given out first.
        self._begun: Iterator[Any] | None = chain([first], iterator)
        self._cursor = Cursor(self._batches, nearest=lambda row: 0)

    def pieces(self, start: int, stop: int) -> Iterator[Tensor]:
        for _, rows in self._cursor.between(start, stop):
            yield rows
        if self._cursor.row < stop:
            self.rows = self._cursor.row

    def _batches(self, row: int) -> Iterator[Tensor]:
        given, self._begun = self._begun, None
        if given is None:
            if self.once:
                raise VectorFileError(
                    f"{self.name}: got an iterator that has been read; rows must be asked for in order"
                )
            given = iter(self._given)
        done = 0
        for value in given:
            batch = self._batch(value, done)
            done += len(batch)
            yield batch

    def _batch(self, value: Any, row: int) -> Tensor:
        """A batch or a row as (n, d), of the first one's width and dtype."""
        where = f"{self.name}: row {row}"
        if isinstance(value, str):
            raise VectorFileError(
                f"{where} is the string {value!r:.40}; it must be numbers (with pgvector after register_vector)"
            )
        if isinstance(value, (list, tuple)):
            if value and isinstance(value[0], (list, tuple, np.ndarray, Tensor)):
                return torch.cat([self._batch(each, row + at) for at, each in enumerate(value)])
            value = vector_of(value, self.dim, where)
        elif not isinstance(value, (np.ndarray, Tensor)):
            value = np.asarray(value)
        kind = check_kind(_kind(value), where)
        value = value[None] if len(value.shape) == 1 else value
        _, dim = check_shape(value.shape, where)
        if self.dim and dim != self.dim:
            raise VectorFileError(f"{where} has width {dim}; it must be {self.dim}, as row 0")
        if self.kind and kind != self.kind:
            raise VectorFileError(f"{where} holds {kind}; it must hold {self.kind}, as row 0")
        return _tensor(value, where)


def reader_of(rows: Any, name: str) -> Reader:
    """The reader of what is given.

    Raises:
        TypeError: it is no array, tensor or iterable of them.
        VectorFileError: it has another shape or dtype, or is empty.
    """
    if isinstance(rows, (np.ndarray, Tensor)):
        return ArrayRows(rows, name)
    if isinstance(rows, (str, bytes, dict)) or not isinstance(rows, Iterable):
        raise TypeError(f"rows: got {type(rows).__name__}; it must be an array, a tensor or an iterable of them")
    return IterableRows(rows, name)


def _kind(value: np.ndarray[Any, Any] | Tensor) -> str:
    if isinstance(value, Tensor):
        return dtype_name(value.dtype)
    return "Python objects" if value.dtype.hasobject else value.dtype.name


def _tensor(value: np.ndarray[Any, Any] | Tensor, where: str) -> Tensor:
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    # Blocks are summed here, wherever the rows are.
    return as_tensor(where, value).detach().cpu()
