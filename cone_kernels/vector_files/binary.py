"""Plain binary files of the benchmarks of nearest neighbours.

`.fvecs` and `.bvecs` (the TEXMEX corpora): before each row its width, as int32. `.fbin`, `.u8bin` and `.i8bin`
(big-ann-benchmarks): the number of rows and their width, as uint32, and then the rows. All are little-endian.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

from cone_kernels.vector_files.mapped import Layout, MappedRows
from cone_kernels.vector_files.reading import Format, Reader, VectorFileError


def open_vecs(path: Path, field: str | None, *, kind: str) -> Reader:
    """The rows of a file that has a width before each of them; all widths are checked as the rows are read.

    Raises:
        VectorFileError: it is empty, its first width is not positive, or its size is no whole number of rows.
    """
    (dim,) = _leading(path, "<i", "the width of its first row")
    if dim < 1:
        raise VectorFileError(f"{path}: row 0 has width {dim}; it must be at least 1")
    layout = Layout(0, dim, kind, 0, has_width=True)
    size = path.stat().st_size
    rows, rest = divmod(size, layout.row_bytes)
    if rest:
        raise VectorFileError(
            f"{path} is cut short in row {rows}, or a row before it is not as wide as row 0: it has {size:,} bytes, "
            f"which is no multiple of the {layout.row_bytes:,} bytes of a row of width {dim}"
        )
    return MappedRows(path, Layout(rows, dim, kind, 0, has_width=True))


def open_bin(path: Path, field: str | None, *, kind: str) -> Reader:
    """The rows of a file that has their number and width at its start.

    Raises:
        VectorFileError: it is empty, or its size is not what its header says.
    """
    rows, dim = _leading(path, "<II", "the number of rows and their width")
    if dim < 1:
        raise VectorFileError(f"{path}: the header has {rows} rows of width {dim}; the width must be at least 1")
    layout = Layout(rows, dim, kind, 8)
    reader, size = MappedRows(path, layout), path.stat().st_size
    if size > layout.end:
        raise VectorFileError(
            f"{path} has {size:,} bytes; its header says {rows:,} rows of width {dim}: {layout.end:,}"
        )
    return reader


def _leading(path: Path, form: str, what: str) -> tuple[int, ...]:
    with path.open("rb") as file:
        content = file.read(struct.calcsize(form))
    if len(content) < struct.calcsize(form):
        raise VectorFileError(f"{path} has {len(content)} bytes; it must begin with {what}")
    return struct.unpack(form, content)


FORMATS = {
    "fvecs": Format(partial(open_vecs, kind="float32")),
    "bvecs": Format(partial(open_vecs, kind="uint8")),
    "fbin": Format(partial(open_bin, kind="float32")),
    "u8bin": Format(partial(open_bin, kind="uint8")),
    "i8bin": Format(partial(open_bin, kind="int8")),
}
