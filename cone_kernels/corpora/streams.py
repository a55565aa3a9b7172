"""The bytes of a source, decompressed as they are read; errors name the source that is damaged."""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO, cast

from cone_kernels.corpora.reading import CorpusError
from cone_kernels.corpora.sources import Compression, Source
from cone_kernels.extras import require

# What a damaged or truncated file makes the readers of the standard library and pyarrow raise.
READ_ERRORS = (OSError, EOFError, zlib.error)

# How a compressed file starts; zstd with a frame of data, or one to be skipped, which parallel compressors put first.
_MAGIC: dict[Compression, tuple[bytes, ...]] = {
    "gz": (b"\x1f\x8b",),
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))),
}
_NAMES: dict[Compression, str] = {"gz": "gzip", "zst": "zstd"}
_BLOCK = 1 << 16
_FIRST = 1 << 10  # bytes that tell what a file is


@contextmanager
def opened(source: Source) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The decompressed bytes of a source, and how many of the compressed ones are read.

    Raises:
        ModuleNotFoundError: pyarrow, which decompresses zstd, is not installed.
        OSError: the source cannot be opened.
    """
    raw = source.open()
    # Standard input belongs to the process and is not closed here.
    with nullcontext(raw) if source.once else raw:
        if source.compression is None:
            yield raw, raw.tell
        else:
            yield io.BufferedReader(_decompressed(raw, source), _BLOCK), raw.tell


@contextmanager
def seekable(source: Source) -> Iterator[BinaryIO]:
    """The decompressed bytes of a source, to be read in any order: what is compressed is unpacked to a temporary file.

    Raises:
        CorpusError: it is damaged.
    """
    with opened(source) as (stream, _):
        if source.compression is None:
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            try:
                shutil.copyfileobj(stream, unpacked, _BLOCK)
            except READ_ERRORS as error:
                raise CorpusError(f"corpus: {source.name} cannot be unpacked: {error}") from error
            unpacked.seek(0)
            yield cast(BinaryIO, unpacked)


def check_stream(source: Source) -> None:
    """Checks before a run, by the first bytes, that a source is compressed as its suffix says, and not UTF-16.

    Raises:
        CorpusError: it is otherwise, or cannot be read.
    """
    if source.compression is not None:
        with source.open() as raw:
            start = raw.read(4)
        if not start.startswith(_MAGIC[source.compression]):
            what = "is empty" if not start else f"is not a {_NAMES[source.compression]} file"
            raise CorpusError(f"corpus: {source.name} {what}; its suffix is .{source.compression}")
    with opened(source) as (stream, _):
        try:
            start = stream.read(_FIRST)
        except READ_ERRORS as error:
            raise CorpusError(f"corpus: {source.name} cannot be read: {error}") from error
    if start[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise CorpusError(f"corpus: {source.name} is UTF-16; it must be UTF-8")
    # Without its mark, UTF-16 of European languages has a zero byte in each second place.
    if any(start[at::2].count(0) > len(start) / 8 and not start[1 - at :: 2].count(0) for at in (0, 1)):
        raise CorpusError(f"corpus: {source.name} looks like UTF-16 without its mark; it must be UTF-8")
    for compression, magic in _MAGIC.items():
        if start.startswith(magic):
            around = f"{_NAMES[compression]} file"
            raise CorpusError(f"corpus: {source.name} is a {around}; its name must end in .{compression}")


def _decompressed(raw: BinaryIO, source: Source) -> Any:
    if source.compression == "gz":
        return gzip.GzipFile(fileobj=raw)
    require("pyarrow", "parquet", source.name)
    import pyarrow

    return pyarrow.CompressedInputStream(raw, "zstd")
