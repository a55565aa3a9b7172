"""NumPy's files: `.npy` and `.npz`."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from cone_kernels.vector_files.mapped import Layout, MappedRows
from cone_kernels.vector_files.reading import (
    KINDS,
    Format,
    Reader,
    VectorFileError,
    check_kind,
    check_shape,
    chosen,
)

# In a zip file the lengths of a member's name and extra field stand at its start, and its content after those.
_LENGTHS_AT, _MEMBER_HEADER = 26, 30


def open_npy(path: Path, field: str | None) -> Reader:
    """The array of a `.npy` file, in C or Fortran order, of either byte order.

    Raises:
        VectorFileError: it is no such file, of another shape or dtype (objects are pickles), or cut short.
    """
    with path.open("rb") as file:
        return _array(path, file, str(path), 0, path.stat().st_size)


def open_npz(path: Path, field: str | None) -> Reader:
    """An array of a `.npz` file, stored or compressed; a compressed one is unpacked as it is read, in order.

    Raises:
        VectorFileError: as for `open_npy`, or the file has no such array, or several.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise VectorFileError(f"{path} is not an .npz file, or one that is cut short: {error}") from error
    with archive:
        headers = {}
        for name in archive.namelist():
            where = f"{path}: array {name.removesuffix('.npy')!r}"
            with _unpacked(where), archive.open(name) as member:
                shape, _, dtype = _header(member, where)
            headers[name.removesuffix(".npy")] = (shape, dtype)
        found = {name: f"{_kind(dtype)} of shape {shape}" for name, (shape, dtype) in headers.items()}
        usable = [name for name, (shape, dtype) in headers.items() if len(shape) == 2 and _kind(dtype) in KINDS]
        name = chosen(field, found, usable, str(path), "arrays")
        where = f"{path}: array {name!r}"
        info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
        if info.compress_type != zipfile.ZIP_STORED:
            return CompressedArray(path, info.filename, where)
        with path.open("rb") as file:
            file.seek(info.header_offset + _LENGTHS_AT)
            offset = info.header_offset + _MEMBER_HEADER + sum(struct.unpack("<HH", file.read(4)))
            file.seek(offset)
            return _array(path, file, where, offset, offset + info.file_size)


class FortranArray(Reader):
    """An array whose columns follow each other in the file; each block is gathered from all columns."""

    def __init__(self, path: Path, layout: Layout, dtype: np.dtype[Any]) -> None:
        self.name, self.dim, self.kind, self.rows = str(path), layout.dim, layout.kind, layout.rows
        self.files = (path,)
        self._map: dict[str, Any] = {"dtype": dtype, "offset": layout.offset, "shape": (layout.rows, layout.dim)}

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        # Mapped anew each time, so that what was read does not stay in memory.
        columns = np.memmap(self.files[0], mode="r", order="F", **self._map)
        return [torch.from_numpy(np.array(columns[start:stop], self._map["dtype"].newbyteorder("="), order="C"))]


class CompressedArray(Reader):
    """An array in a compressed `.npz` file: blocks in rising order unpack it once."""

    def __init__(self, path: Path, member: str, where: str) -> None:
        self.name, self.files = where, (path,)
        with _unpacked(where):
            self._stream: IO[bytes] = zipfile.ZipFile(path).open(member)  # noqa: SIM115 - lives as this
            shape, fortran, self._dtype = _header(self._stream, where)
        self.rows, self.dim = check_shape(shape, where)
        self.kind = check_kind(_kind(self._dtype), where)
        if fortran:
            raise VectorFileError(
                f"{where} is compressed and in Fortran order; it must be in C order to be read by rows"
            )
        self._offset = self._stream.tell()

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        row_bytes = self.dim * self._dtype.itemsize
        n = max(0, min(stop, self.rows or 0) - start)
        with _unpacked(self.name, f" after row {start}"):
            self._stream.seek(self._offset + start * row_bytes)
            content = self._stream.read(n * row_bytes)
        if len(content) < n * row_bytes:
            raise VectorFileError(f"{self.name} is cut short in row {start + len(content) // row_bytes}")
        rows = np.frombuffer(content, self._dtype).reshape(n, self.dim)
        return [torch.from_numpy(rows.astype(self._dtype.newbyteorder("=")))]


@contextmanager
def _unpacked(where: str, after: str = "") -> Iterator[None]:
    """Turns what zipfile raises at damaged bytes into an error that says where they are."""
    try:
        yield
    except VectorFileError:
        raise
    # RuntimeError: an encrypted member, or one of a compression that Python does not know.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise VectorFileError(f"{where} cannot be unpacked{after}: {error}") from error


def _array(path: Path, file: IO[bytes], where: str, begin: int, end: int) -> Reader:
    """The reader of an array that lies uncompressed in a file from `begin` to `end`."""
    shape, fortran, dtype = _header(file, where)
    rows, dim = check_shape(shape, where)
    kind = check_kind(_kind(dtype), where)
    layout = Layout(rows, dim, kind, file.tell(), swapped=not dtype.isnative)
    if end > layout.end:
        raise VectorFileError(f"{where} has {end - layout.end:,} bytes after its {rows:,} rows; it must end there")
    if end < layout.end:
        row = (end - layout.offset) // layout.row_bytes
        raise VectorFileError(
            f"{where} is cut short in row {row}: it has {end - begin:,} bytes, and must have {layout.end - begin:,}"
        )
    return FortranArray(path, layout, dtype) if fortran and rows else MappedRows(path, layout)


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype."""
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"its version is {version}, which only arrays of named fields have")
        shape, fortran, dtype = read(file)
    except (ValueError, tokenize.TokenError) as error:
        raise VectorFileError(f"{where} is not an .npy file, or a damaged one: {error}") from error
    return shape, fortran, dtype


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject:
        return "Python objects (an object array, which is a pickle and is never loaded)"
    if dtype.kind == "V":
        return f"{dtype.name} (NumPy has no bfloat16: save it as .safetensors)"
    return dtype.name


FORMATS = {"npy": Format(open_npy), "npz": Format(open_npz, has_fields=True)}
