"""Writes vectors block by block, so that no more than a block is in memory; the file is whole or not there."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from cone_kernels.extras import require
from cone_kernels.files import whole_file
from cone_kernels.ops.arguments import dtype_name
from cone_kernels.vector_files.formats import format_of
from cone_kernels.vector_files.reading import VectorFileError

_SAFETENSORS = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


@contextmanager
def written(
    path: str | os.PathLike[str], rows: int, dim: int, dtype: torch.dtype, field: str | None = None
) -> Iterator[Callable[[Tensor], None]]:
    """Gives what takes the blocks of a new file, in order; at the end the file is at its place.

    Args:
        path: the file; the ending of its name tells the format, one of `.npy`, `.safetensors`, `.parquet`, `.fvecs` and
            `.fbin`.
        rows: how many vectors there will be.
        dim: d, their width.
        dtype: a floating dtype; `.npy` and `.parquet` have no bfloat16, and `.fvecs` and `.fbin` float32 alone.
        field: what the tensor or column is called, in a format that has names for them; None is "vectors".

    Raises:
        VectorFileError: the format is not written, or has no such dtype; another number of rows was given.
        ModuleNotFoundError: pyarrow is not installed.
        OSError: the file cannot be written; nothing is left behind.

    Examples:
        >>> with written("opened.npy", 1000, 384, torch.float32) as take:
        ...     for _, block in vectors.blocks():
        ...         take(centering(block))
    """
    check_writable(path, dtype)
    begin = _BEGIN[format_of(Path(path))]
    given = 0

    with whole_file(path) as file:
        take, end = begin(file, rows, dim, dtype, field or "vectors")

        def counted(block: Tensor) -> None:
            nonlocal given
            given += len(block)
            take(block.detach().cpu().to(dtype).contiguous())

        yield counted
        end()
        if given != rows:
            raise VectorFileError(f"{path}: got {given:,} rows to write; it must be {rows:,}")


def check_writable(path: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """Refuses a file that vectors of this dtype cannot be written to, before any are computed.

    Raises:
        VectorFileError: the format is not written, or has no such dtype.
        ModuleNotFoundError: pyarrow is not installed.
    """
    name = format_of(Path(path))
    if name not in _BEGIN:
        raise VectorFileError(f"{path}: files of the format {name} are not written; it must be {', '.join(_BEGIN)}")
    lacks = {"npy": [torch.bfloat16], "parquet": [torch.bfloat16]}.get(name, [])
    only = [torch.float32] if name in ("fvecs", "fbin") else list(_SAFETENSORS)
    if dtype in lacks or dtype not in only:
        raise VectorFileError(f"{path}: a file of the format {name} holds no {dtype_name(dtype)}; name a .safetensors")
    if name == "parquet":
        require("pyarrow", "parquet", "a parquet file")


_Taker = tuple[Callable[[Tensor], None], Callable[[], None]]


def _npy(file: IO[bytes], rows: int, dim: int, dtype: torch.dtype, field: str) -> _Taker:
    kind = np.dtype(dtype_name(dtype))
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)
    return _raw(file), _nothing


def _safetensors(file: IO[bytes], rows: int, dim: int, dtype: torch.dtype, field: str) -> _Taker:
    about = {"dtype": _SAFETENSORS[dtype], "shape": [rows, dim], "data_offsets": [0, rows * dim * dtype.itemsize]}
    header = json.dumps({field: about}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # numbers are aligned
    file.write(struct.pack("<Q", len(header)) + header)
    return _raw(file), _nothing


def _fbin(file: IO[bytes], rows: int, dim: int, dtype: torch.dtype, field: str) -> _Taker:
    file.write(struct.pack("<II", rows, dim))
    return _raw(file), _nothing


def _fvecs(file: IO[bytes], rows: int, dim: int, dtype: torch.dtype, field: str) -> _Taker:
    def take(block: Tensor) -> None:
        widths = torch.full((len(block), 1), dim, dtype=torch.int32).view(torch.float32)
        _raw(file)(torch.cat([widths, block], 1))

    return take, _nothing


def _parquet(file: IO[bytes], rows: int, dim: int, dtype: torch.dtype, field: str) -> _Taker:
    import pyarrow as pa
    from pyarrow import parquet

    kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype_name(dtype))), dim)
    schema = pa.schema([(field, kind)])
    # Mantissas do not compress, and a dictionary of them is larger than they are.
    table = parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False)

    def take(block: Tensor) -> None:
        values = pa.array(block.numpy().reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, dim)
        table.write_table(pa.table([column], schema=schema))

    return take, table.close


def _raw(file: IO[bytes]) -> Callable[[Tensor], None]:
    def take(block: Tensor) -> None:
        file.write(block.view(torch.uint8).numpy().data)

    return take


def _nothing() -> None:
    pass


_BEGIN: dict[str, Callable[[IO[bytes], int, int, torch.dtype, str], _Taker]] = {
    "npy": _npy,
    "safetensors": _safetensors,
    "parquet": _parquet,
    "fvecs": _fvecs,
    "fbin": _fbin,
}
