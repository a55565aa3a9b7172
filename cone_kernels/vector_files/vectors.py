"""Vectors that somebody has already, given out in blocks of rows whatever they are read from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cone_kernels.names import VECTOR_FORMATS, VectorFormat
from cone_kernels.vector_files.fingerprint import fingerprint_of
from cone_kernels.vector_files.formats import open_reader
from cone_kernels.vector_files.ids import IdLines
from cone_kernels.vector_files.memory import reader_of
from cone_kernels.vector_files.reading import BYTES, Reader, VectorFileError, as_floats

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

BLOCK_ROWS = 8192


class Vectors:
    """The vectors of files, one a row, in the order of the files; read a block at a time.

    `cone_kernels.names.VECTOR_FORMATS` lists the formats and the endings of names that tell them. `.npy`, stored
    `.npz`, `.safetensors` and the plain binary formats are mapped into memory, and their blocks are views of the map.
    Of tables a row group or record batch is in memory at a time; `.jsonl` and compressed `.npz` are read in order,
    so ranges of rows should be asked for in rising order. Rows are counted from 0 in messages, lines from 1.

    float32, float64, float16 and bfloat16 are given out as they are, numbers of JSON as float64. int8 and uint8 become
    float32, times `scale`; without one they are taken as they stand, which is all the same to cosines, as a positive
    scale changes none. Zero rows, NaN and infinity are no errors here: a state leaves such rows out and counts them.
    Files must not change while they are read.

    Args:
        paths: a file, a folder that Hugging Face's datasets saved, or a sequence of them, all of one width and dtype.
        format: one of `VECTOR_FORMATS`; None tells it by the names' endings.
        field: the array, tensor, column or key that holds the vectors; None where there is only one.
        ids: texts or ids of the rows, for `ids_of`: the name of a column or key beside the vectors, or a text file
            with one line a row (or several files, in order). A path with a slash in it is never taken for a column.
        scale: what int8 and uint8 are multiplied by.

    Attributes:
        name: of the files, for people.
        dim: d, the width.
        kind: the dtype in the files.
        dtype: of the blocks.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: a file cannot be read.
        ModuleNotFoundError: pyarrow, datasets or faiss is not installed.
        VectorFileError: an unknown ending, a damaged or truncated file, other dtypes (among them object arrays, which
            are pickles and never loaded), widths that differ, no such field, ids of another number. At once where
            headers, sizes, schemas or first rows show it, else with the row where reading comes upon it.
        ValueError: an argument is out of range, or does not go with another.

    Examples:
        >>> vectors = Vectors(["a.npy", "b.npy"])
        >>> n_rows = sum(len(block) for _, block in vectors.blocks())
    """

    def __init__(
        self,
        paths: Paths,
        *,
        format: VectorFormat | None = None,  # noqa: A002
        field: str | None = None,
        ids: Paths | None = None,
        scale: float | None = None,
    ) -> None:
        found = _paths(paths)
        ids = ids if ids is None or isinstance(ids, (str, os.PathLike)) else list(ids)
        self._arguments = {"paths": found, "format": format, "field": field, "ids": ids, "scale": scale}
        if not found:
            raise ValueError("vectors: got no file; it must be at least one")
        if len(set(found)) < len(found):
            twice = next(path for path in found if found.count(path) > 1)
            raise ValueError(f"vectors: {twice} is named twice; each file must be named once")
        if format is not None and format not in VECTOR_FORMATS:
            raise ValueError(f"format: got {format!r}; it must be one of {', '.join(VECTOR_FORMATS)}")
        self._begin([open_reader(path, format, field) for path in found], scale)
        self._ids: IdLines | str | None = None if ids is None else self._found_ids(ids)

    @classmethod
    def from_rows(
        cls,
        rows: Any,
        *,
        ids: Sequence[str] | None = None,
        scale: float | None = None,
        name: str = "<vectors>",
    ) -> Vectors:
        """Vectors that are given in Python.

        Args:
            rows: an array or a tensor (n, d), also a memory map; or an iterable of batches (n, d) or of rows (d,),
                each an array, a tensor or a list of numbers, such as the rows of a vector database's cursor.
                An iterator can be read once, from its start; a list of batches again and again.
            ids: a text or an id for each row.
            scale: as in `Vectors`.
            name: what messages call it.

        Raises:
            TypeError: it is none of these.
            VectorFileError, ValueError: as in `Vectors`.

        Examples:
            >>> Vectors.from_rows(torch.randn(1000, 384)).rows
            1000
        """
        vectors = cls.__new__(cls)
        vectors._arguments = {}
        vectors._begin([reader_of(rows, name)], scale)
        vectors._ids = None
        if ids is not None:
            vectors._given_ids = list(map(str, ids))
            vectors._check_ids(len(vectors._given_ids), "ids")
        return vectors

    def _begin(self, readers: Sequence[Reader], scale: float | None) -> None:
        first = readers[0]
        for reader in readers[1:]:
            for what in ("dim", "kind"):
                got, wanted = getattr(reader, what), getattr(first, what)
                if got != wanted:
                    word = "width" if what == "dim" else "dtype"
                    raise VectorFileError(
                        f"{reader.name} has the {word} {got}, and {first.name} {wanted}; all must have the same"
                    )
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: got {scale}; it must be a positive number")
        if scale is not None and first.kind not in BYTES:
            raise ValueError(f"scale: got {scale} for {first.kind}; it must be None, as only int8 and uint8 have one")
        self._readers, self.scale = readers, scale
        self._given_ids: list[str] | None = None
        self.dim, self.kind = first.dim, first.kind
        self.dtype: torch.dtype = torch.float32 if self.kind in BYTES else getattr(torch, self.kind)
        more = len(readers) - 1
        self.name = Path(first.name).name + (f" and {more} more" if more else "")
        if self.rows == 0:
            raise VectorFileError(f"{first.name} is empty; it must have a vector")

    @property
    def rows(self) -> int | None:
        """How many vectors there are; None of `.jsonl` and iterables until they have been read to their end."""
        rows = [reader.rows for reader in self._readers]
        return None if None in rows else sum(n for n in rows if n is not None)

    @property
    def read_once(self) -> bool:
        """Whether it can be read only once, because an iterator was given."""
        return any(reader.once for reader in self._readers)

    @property
    def in_files(self) -> bool:
        """Whether all of it is in files, which every process can open anew; then it can be pickled."""
        return bool(self._arguments)

    @property
    def has_ids(self) -> bool:
        """Whether `ids_of` knows texts or ids of the rows."""
        return self._ids is not None or self._given_ids is not None

    @property
    def fingerprint(self) -> str | None:
        """sha256 (hex) over what can be had of the vectors without reading all of them; None of an iterable.

        It is made of width, dtype, field and scale, and of the files' sizes and samples, 4 MiB of each
        (`fingerprint_of`). So it tells data sets apart and stays when files are moved or renamed; a change between the
        samples that keeps the size is not seen.
        """
        parts = [fingerprint_of(reader.files) if reader.files else reader.fingerprint() for reader in self._readers]
        if None in parts:
            return None
        about = [self.dim, self.kind, self.scale, self._arguments.get("field"), *parts]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def blocks(self, start: int = 0, stop: int | None = None, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, vectors (n, d)) in order, each of `rows` rows but the last.

        How the rows lie in files, row groups or batches does not change how they are cut. A block may be a view of a
        file or of what was given, whose rows need not be contiguous; it is to be read, not written.

        Args:
            start: the first row.
            stop: the row before which to end; None for all rows.
            rows: n, at least 1.

        Raises:
            VectorFileError: a row has another width, is null or holds no numbers, or a file is damaged or has changed.
            ValueError: the range is out of order, or ends after the last row where their number is known.

        Examples:
            >>> [first for first, _ in Vectors.from_rows(torch.ones(5, 2)).blocks(1, rows=2)]
            [1, 3]
        """
        if rows < 1:
            raise ValueError(f"rows: got {rows}; it must be at least 1")
        end = self._end(start, stop)
        while end is None or start < end:
            wanted = min(rows, end - start) if end is not None else rows
            block = self._block(start, start + wanted)
            if len(block):
                yield start, block
            start += len(block)
            if len(block) < wanted:
                if stop is not None:
                    raise VectorFileError(f"{self.name} ends before row {start}; rows up to {stop} were asked for")
                break
        if end is None and self._ids_expected is not None:
            self._check_ids(*self._ids_expected)

    def read(self, start: int, stop: int) -> Tensor:
        """The vectors (n, d) of rows `start` up to `stop`.

        Raises:
            VectorFileError, ValueError: as in `blocks`.
        """
        for _, block in self.blocks(start, stop, max(1, stop - start)):
            return block
        return torch.empty(0, self.dim, dtype=self.dtype)

    def ids_of(self, rows: Sequence[int]) -> list[str | None]:
        """The texts or ids of these rows; None where a table has null.

        Raises:
            ValueError: no ids were given, or there is no such row; or rows of several `.jsonl` files are asked for
                before these have been read, which alone shows how many each has.
            VectorFileError: they cannot be read.
        """
        known = self.rows if self._ids_expected is None else self._ids_expected[0]
        if any(row < 0 or (known is not None and row >= known) for row in rows):
            raise ValueError(f"rows: got {min(rows)} up to {max(rows)}; each must be from 0 to one before {known}")
        if self._given_ids is not None:
            return [self._given_ids[row] for row in rows]
        if self._ids is None:
            raise ValueError("ids: got none for these vectors; it must be a column beside them or a file of lines")
        if isinstance(self._ids, IdLines):
            return self._ids.ids(rows)
        found: dict[int, str | None] = {}
        first = 0
        for reader in self._readers:
            if reader.rows is None and len(self._readers) > 1:
                raise ValueError(
                    f"rows: got some of {self.name}, not read yet; all must be read before ids are asked for"
                )
            here = [row for row in rows if first <= row and (reader.rows is None or row < first + reader.rows)]
            if here:
                found.update(zip(here, reader.ids(self._ids, [row - first for row in here]), strict=True))
            first += reader.rows or 0
        return [found[row] for row in rows]

    def __getstate__(self) -> dict[str, Any]:
        """Pickled, vectors are their arguments: another process opens the files anew."""
        if not self.in_files:
            raise TypeError(
                f"{self.name}: got vectors that are not in files; only files can be opened by other processes"
            )
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    def _end(self, start: int, stop: int | None) -> int | None:
        known = self.rows
        if start < 0 or (stop is not None and stop < start) or (known is not None and (stop or start) > known):
            of = "an unknown number of" if known is None else f"{known:,}"
            raise ValueError(f"rows: got {start} up to {stop} of {of} rows; it must be a range of them")
        return known if stop is None else stop

    def _block(self, start: int, stop: int) -> Tensor:
        """The rows from `start` up to `stop`, from all files that have some of them."""
        pieces: list[Tensor] = []
        first = 0
        for reader in self._readers:
            if first >= stop:
                break
            if reader.rows is None or start < first + reader.rows:
                pieces += reader.pieces(max(start - first, 0), stop - first)
            if reader.rows is None:
                break
            first += reader.rows
        if len(pieces) != 1:
            pieces = [torch.cat(pieces) if pieces else torch.empty(0, self.dim, dtype=self.dtype)]
        return as_floats(pieces[0], self.scale)

    @property
    def _ids_expected(self) -> tuple[int, str] | None:
        if self._given_ids is not None:
            return len(self._given_ids), "ids"
        return (self._ids.rows, self._ids.name) if isinstance(self._ids, IdLines) else None

    def _found_ids(self, ids: Paths) -> IdLines | str:
        """The column that ids are in, or the lines of files."""
        paths = _paths(ids)
        if isinstance(ids, str) and os.sep not in ids:
            lacking = [reader.name for reader in self._readers if ids not in reader.fields]
            if len(lacking) < len(self._readers):
                if lacking:
                    raise VectorFileError(f"{lacking[0]} has no field {ids!r} for ids; {self._readers[0].name} has")
                if paths[0].exists():
                    raise ValueError(f"ids: got {ids!r}, a field and a file; it must be ./{ids} for the file")
                return ids
        for path in paths:
            if not path.is_file():
                fields = ", ".join(map(repr, self._readers[0].fields)) or "none"
                raise FileNotFoundError(
                    f"ids: there is no file {path}, nor a field of this name; the fields are {fields}"
                )
        lines = IdLines(paths)
        self._check_ids(lines.rows, lines.name)
        return lines

    def _check_ids(self, count: int, name: str) -> None:
        if self.rows is not None and count != self.rows:
            raise VectorFileError(f"{name} has {count:,} lines for {self.rows:,} vectors; it must have one for each")


def _paths(paths: Paths) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
