"""Readers of columns of tables, through pyarrow: `.parquet`, `.arrow` (the file and the stream) and data sets.

A row group or record batch is in memory at a time, and of it only the columns that are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from cone_kernels.corpora.reading import CorpusError, Reading, table_fields
from cone_kernels.corpora.sources import Reader, Source
from cone_kernels.corpora.streams import READ_ERRORS, seekable
from cone_kernels.extras import require

if TYPE_CHECKING:
    import pyarrow as pa

# So many rows are Python objects at a time.
_ROWS = 4096
_ARROW_FILE = b"ARROW1"


def parquet_columns(source: Source, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of the columns of a Parquet file, row group by row group.

    Raises:
        CorpusError: a field is not among the columns or is no text, or the file is damaged.
    """
    with _parquet(source) as table:
        fields = reading.use(_text_fields(reading.asked, table.schema_arrow, source))
        columns = _with_group(fields, reading.group_by, table.schema_arrow, source)
        rows, n_rows = _Rows(fields, reading), max(table.metadata.num_rows, 1)
        if source.size is not None:
            size = source.size
            reading.position = lambda: size * rows.done // n_rows
        with _named(rows.place):
            for group in range(table.num_row_groups):
                # One group a call: a call for several reads all of them ahead.
                for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    yield from rows.texts(batch)


def arrow_columns(source: Source, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of the columns of an Arrow IPC file or stream, record batch by record batch.

    Raises:
        CorpusError: a field is not among the columns or is no text, or the file is damaged.
    """
    with seekable(source) as file:
        batches, fields = _arrow_batches(file, reading.asked, source, reading.group_by)
        rows = _Rows(reading.use(fields), reading)
        if source.size is not None:
            size, start = source.size, file.tell()
            length = max(file.seek(0, os.SEEK_END), 1)
            file.seek(start)
            reading.position = lambda: size * file.tell() // length
        with _named(rows.place):
            for batch in batches:
                yield from rows.texts(batch)


def dataset_columns(source: Source, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of the columns of a Hugging Face data set, streamed.

    Raises:
        CorpusError: a field is not among the columns or is no text, or the data set cannot be read.
    """
    rows = _Rows((), reading)
    with _named(rows.place):
        for table in source.open().with_format("arrow").iter(_ROWS):
            rows.fields = rows.fields or reading.use(_text_fields(reading.asked, table.schema, source))
            for batch in table.to_batches():
                yield from rows.texts(batch)


def check_table(source: Source, settings: Reading) -> None:
    """Checks the footer and the schema before a run; not of a compressed file, which would have to be unpacked.

    Raises:
        CorpusError: the file is damaged, or a field is not among the columns or is no text.
        ModuleNotFoundError: pyarrow is not installed.
    """
    require("pyarrow", "parquet", source.name)
    if source.compression is not None:
        return
    if source.format == "parquet":
        with _parquet(source) as table:
            _text_fields(settings.asked, table.schema_arrow, source)
    else:
        with seekable(source) as file:
            _arrow_batches(file, settings.asked, source)


def check_dataset(source: Source, settings: Reading) -> None:
    """Checks before a run that a data set can be loaded, and that it has the fields where it says what columns it has.

    Raises:
        CorpusError: it cannot, or a field is not among its columns.
    """
    with _named(lambda: f"corpus: {source.name} cannot be loaded"):
        features = source.open().features
    if features is not None:
        _text_fields(settings.asked, features.arrow_schema, source)


class _Rows:
    """The texts of record batches, one after the other."""

    def __init__(self, fields: Sequence[str], reading: Reading) -> None:
        self.fields = fields
        self.reading = reading
        self.done = 0

    def place(self) -> str:
        """What a message says where reading fails: the place of the next row."""
        return f"{self.reading.where(self.done + 1)}: cannot be read"

    def texts(self, batch: pa.RecordBatch) -> Iterator[tuple[int, str]]:
        """(row, text), rows counted from 1 over all batches."""
        columns = [_bytes_of(batch.column(name)) for name in self.fields]
        group_by = self.reading.group_by
        groups = None if group_by is None else batch.column(group_by).to_pylist()
        for first in range(0, batch.num_rows, _ROWS):
            parts = zip(*(_values(column.slice(first, _ROWS)) for column in columns), strict=True)
            for at, values in enumerate(parts, start=first):
                self.done += 1
                if groups is not None and not self.reading.begin_record(groups[at], self.done):
                    continue
                for name, raw in zip(self.fields, values, strict=True):
                    if raw is None:
                        self.reading.refuse_no_string(name, None, self.done)
                        continue
                    text = self.reading.decoded(raw, self.done)
                    if text is not None:
                        yield self.done, text


def _bytes_of(column: pa.Array) -> pa.Array:
    """A column of text as bytes, since pyarrow gives no text that is not UTF-8; a dictionary column stays one.

    Raises:
        pyarrow.ArrowInvalid: offsets or indices point outside of the data.
    """
    import pyarrow as pa

    if isinstance(column, pa.DictionaryArray):
        column = pa.DictionaryArray.from_arrays(column.indices, _bytes_of(column.dictionary))
    else:
        column = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
    column.validate(full=True)
    return column


def _values(column: pa.Array) -> list[bytes | None]:
    import pyarrow as pa

    plain = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
    values: list[bytes | None] = plain.to_pylist()
    return values


def _with_group(fields: tuple[str, ...], group_by: str | None, schema: pa.Schema, source: Source) -> list[str]:
    """The columns to read: those of the text, and that of the groups."""
    if group_by is None:
        return list(fields)
    table_fields((group_by,), schema.names, f"corpus: {source.name}")
    return list(dict.fromkeys((*fields, group_by)))


def _text_fields(asked: tuple[str, ...] | None, schema: pa.Schema, source: Source) -> tuple[str, ...]:
    import pyarrow as pa

    fields = table_fields(asked, schema.names, f"corpus: {source.name}")
    for name in fields:
        kind = schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        types = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
        # A column of nulls alone is taken for text that is missing in every row.
        if plain not in (*types, pa.null()):
            raise CorpusError(f"corpus: {source.name}: column {name!r} is of {kind}; it must be of strings")
    return fields


@contextmanager
def _parquet(source: Source) -> Iterator[Any]:
    from pyarrow import parquet

    with seekable(source) as file:
        with _named(lambda: f"corpus: {source.name} is not a Parquet file, or a damaged one"):
            table = parquet.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
        yield table


def _arrow_batches(
    file: BinaryIO, asked: tuple[str, ...] | None, source: Source, group_by: str | None = None
) -> tuple[Iterator[pa.RecordBatch], tuple[str, ...]]:
    """The record batches of a file or stream, with the fields' columns alone, and the fields."""
    import pyarrow as pa

    with _named(lambda: f"corpus: {source.name} is not an Arrow file or stream, or a damaged one"):
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(0)
        schema = (pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)).schema
        fields = _text_fields(asked, schema, source)
        columns = _with_group(fields, group_by, schema, source)
        options = pa.ipc.IpcReadOptions(included_fields=sorted(map(schema.get_field_index, columns)), use_threads=False)
        file.seek(0)
        if not is_file:
            return iter(pa.ipc.open_stream(file, options=options)), fields
        opened = pa.ipc.open_file(file, options=options)
        return map(opened.get_batch, range(opened.num_record_batches)), fields


@contextmanager
def _named(what: Callable[[], str]) -> Iterator[None]:
    """Turns an error of pyarrow, datasets or the file system into a CorpusError that says what failed, and where."""
    import pyarrow as pa

    try:
        yield
    except CorpusError:
        raise
    # ValueError: datasets cannot decode a text, or a web server does not give parts of a file.
    except (*READ_ERRORS, ValueError, RuntimeError, pa.ArrowException) as error:
        raise CorpusError(f"{what()}: {error}") from error


READERS = {
    "parquet": Reader(parquet_columns, check_table),
    "arrow": Reader(arrow_columns, check_table),
    "dataset": Reader(dataset_columns, check_dataset),
}
