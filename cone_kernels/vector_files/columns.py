"""Columns of tables, through pyarrow: `.parquet`, Arrow files and streams, and folders of Hugging Face's datasets.

A vector is a list of numbers: a list, a list of fixed size, or a tensor of fixed shape. A row group or record batch is
in memory at a time, and of it only the column that is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cone_kernels.extras import require
from cone_kernels.vector_files.cursor import Cursor
from cone_kernels.vector_files.reading import KINDS, Format, Reader, VectorFileError, check_kind, chosen

if TYPE_CHECKING:
    import pyarrow as pa

# So many rows are decoded at a time.
_ROWS = 8192
_ARROW_FILE = b"ARROW1"
_KINDS = {"halffloat": "float16", "float": "float32", "double": "float64"}


class _Table(ABC):
    """A table whose columns can be read from some rows on.

    Attributes:
        schema: its columns.
        rows: how many rows it has.
        starts: the rows at which its parts begin.
        files: what it is read from.
    """

    schema: pa.Schema
    rows: int
    starts: Sequence[int]
    files: Sequence[Path]

    @abstractmethod
    def column(self, name: str, part: int) -> Iterator[pa.Array]:
        """A column from a part on, piece by piece."""

    def part_of(self, row: int) -> int:
        """The part that a row is in."""
        return max(0, bisect_right(self.starts, row) - 1)


class _Parquet(_Table):
    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        about = self._file.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self.schema, self.rows, self.starts, self.files = (
            self._file.schema_arrow,
            about.num_rows,
            _starts(sizes),
            (path,),
        )

    def column(self, name: str, part: int) -> Iterator[pa.Array]:
        for group in range(part, len(self.starts)):
            # One group a call: a call for several reads all of them ahead.
            for batch in self._file.iter_batches(_ROWS, row_groups=[group], columns=[name], use_threads=False):
                yield batch.column(name)


class _ArrowFile(_Table):
    """Batches are found through a memory map, which reads none that is not compressed; they are read without one."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with pa.memory_map(str(path)) as memory, pa.ipc.open_file(memory) as file:
            self.schema = file.schema
            sizes = [file.get_batch(batch).num_rows for batch in range(file.num_record_batches)]
        self.rows, self.starts, self.files = sum(sizes), _starts(sizes), (path,)

    def column(self, name: str, part: int) -> Iterator[pa.Array]:
        import pyarrow as pa

        with pa.OSFile(str(self.files[0])) as raw, pa.ipc.open_file(raw, options=_only(self.schema, name)) as file:
            for batch in range(part, file.num_record_batches):
                yield file.get_batch(batch).column(0)


class _ArrowStream(_Table):
    """A stream has no list of its batches: it is read from its first on."""

    starts = (0,)

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with pa.memory_map(str(path)) as memory, pa.ipc.open_stream(memory) as stream:
            self.schema, self.rows, self.files = stream.schema, sum(batch.num_rows for batch in stream), (path,)

    def column(self, name: str, part: int) -> Iterator[pa.Array]:
        import pyarrow as pa

        with pa.OSFile(str(self.files[0])) as raw, pa.ipc.open_stream(raw, options=_only(self.schema, name)) as stream:
            for batch in stream:
                yield batch.column(0)


class _Dataset(_Table):
    def __init__(self, folder: Path) -> None:
        from datasets import load_from_disk

        if (folder / "dataset_dict.json").is_file():
            splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
            raise VectorFileError(f"{folder} holds several splits; name the folder of one of them: {splits}")
        self._rows = load_from_disk(str(folder)).with_format("arrow")
        self.schema, self.rows = self._rows.features.arrow_schema, len(self._rows)
        self.starts = range(0, self.rows, _ROWS)
        self.files = sorted(folder.glob("*.arrow"))

    def column(self, name: str, part: int) -> Iterator[pa.Array]:
        column = self._rows.select_columns([name])
        for start in range(part * _ROWS, self.rows, _ROWS):
            yield from column[start : start + _ROWS].column(name).chunks


class ColumnReader(Reader):
    """The vectors of a column of lists.

    Args:
        path: the file or folder.
        field: the column; None for the only one of lists of numbers that are taken.

    Raises:
        ModuleNotFoundError: pyarrow or datasets is not installed.
        VectorFileError: the file is damaged, has no such column or several, or one of something else.
    """

    def __init__(self, path: Path, field: str | None) -> None:
        self.name = str(path)
        require("pyarrow", "parquet", self.name)
        if path.is_dir():
            require("datasets", "datasets", self.name)
        with _named(f"{path} cannot be read, or is damaged"):
            self._table = table = _opened(path)
        found = {column.name: str(column.type) for column in table.schema}
        usable = [column.name for column in table.schema if _kind(column.type) in KINDS]
        self._field = chosen(field, found, usable, self.name, "columns")
        if table.schema.names.count(self._field) > 1:
            raise VectorFileError(f"{path}: several columns are called {self._field!r}; it must be one")
        self._where = f"{path}: column {self._field!r}"
        kind = table.schema.field(self._field).type
        self.kind = check_kind(_kind(kind), self._where)
        self.rows, self.files = table.rows, table.files
        self.fields = [name for name in table.schema.names if name != self._field]
        self._cursor = Cursor(
            lambda row: table.column(self._field, table.part_of(row)),
            nearest=lambda row: table.starts[table.part_of(row)] if table.starts else 0,
        )
        self.dim = getattr(_plain(kind), "list_size", 0) or self._first_width()

    def pieces(self, start: int, stop: int) -> Iterator[Tensor]:
        ranges = self._cursor.between(start, stop)
        while True:
            with _named(f"{self._where} cannot be read at row {self._cursor.row}"):
                first, column = next(ranges, (0, None))
            if column is None:
                return
            yield self._tensor(column, first)

    def ids(self, field: str, rows: Sequence[int]) -> list[str | None]:
        import pyarrow as pa

        kind = self._table.schema.field(field).type
        if not (_is_text(kind) or pa.types.is_integer(kind)):
            raise VectorFileError(f"{self.name}: column {field!r} is of {kind}; ids must be strings or integers")
        table, found = self._table, {}
        cursor = Cursor(
            lambda row: table.column(field, table.part_of(row)), nearest=lambda row: table.starts[table.part_of(row)]
        )
        with _named(f"{self.name}: column {field!r} cannot be read"):
            for row in sorted(set(rows)):
                for _, column in cursor.between(row, row + 1):
                    (value,) = column.to_pylist()
                    found[row] = None if value is None else str(value)
        return [found[row] for row in rows]

    def _first_width(self) -> int:
        """The width of the first row, where the type does not say it."""
        with _named(f"{self._where} cannot be read"):
            column = next((column for _, column in self._cursor.between(0, 1)), None)
        if column is None:
            raise VectorFileError(f"{self._where} is empty; it must have a vector")
        if not column[0].is_valid or not len(column[0]):
            raise VectorFileError(f"{self._where}: row 0 is {column[0]}; it must be a list of numbers")
        return len(column[0])

    def _tensor(self, column: pa.Array, first: int) -> Tensor:
        """A column's lists as (n, d); rows are counted from `first` in messages."""
        with _named(f"{self._where} is damaged at row {first}"):
            column = getattr(column, "storage", column)
            column.validate(full=True)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise VectorFileError(f"{self._where}: row {first + row} is null; it must be a list of numbers")
        if not hasattr(column.type, "list_size"):
            widths = np.diff(column.offsets.to_numpy())
            if (widths != self.dim).any():
                row = int(np.flatnonzero(widths != self.dim)[0])
                raise VectorFileError(
                    f"{self._where}: row {first + row} has width {widths[row]}; it must be {self.dim}, as row 0"
                )
        values = column.flatten()
        if values.null_count:
            at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            row, position = divmod(at, self.dim)
            raise VectorFileError(
                f"{self._where}: row {first + row} has null at position {position}; it must be a number"
            )
        rows = torch.utils.dlpack.from_dlpack(values).view(len(column), self.dim)
        # A data set is mapped read-only: whoever wrote into such rows would end the process.
        return rows.clone() if isinstance(self._table, _Dataset) else rows


def _opened(path: Path) -> _Table:
    if path.is_dir():
        return _Dataset(path)
    with path.open("rb") as file:
        start = file.read(len(_ARROW_FILE))
    if start[:4] == b"PAR1":
        return _Parquet(path)
    return _ArrowFile(path) if start == _ARROW_FILE else _ArrowStream(path)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [int(end) - size for size, end in zip(sizes, np.cumsum(sizes, dtype=np.int64), strict=True)]


def _only(schema: pa.Schema, name: str) -> Any:
    """Options to read one column alone."""
    import pyarrow as pa

    return pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name)], use_threads=False)


def _plain(kind: pa.DataType) -> pa.DataType:
    """What an extension type, such as a tensor of fixed shape, is stored as."""
    return getattr(kind, "storage_type", kind)


def _kind(kind: pa.DataType) -> str:
    """The dtype of a list's numbers; of anything else its type in words."""
    import pyarrow as pa

    plain = _plain(kind)
    if pa.types.is_list(plain) or pa.types.is_large_list(plain) or pa.types.is_fixed_size_list(plain):
        value = str(plain.value_type)
        return _KINDS.get(value, value if value in KINDS else f"lists of {value}")
    return str(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return kind in (pa.string(), pa.large_string(), pa.string_view())


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turns an error of pyarrow, datasets or the file system into one that says what failed."""
    import pyarrow as pa

    try:
        yield
    except VectorFileError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise VectorFileError(f"{what}: {error}") from error


_TABLE = Format(ColumnReader, has_fields=True)
FORMATS = {"parquet": _TABLE, "arrow": _TABLE, "dataset": _TABLE}
