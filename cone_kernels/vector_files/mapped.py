"""Rows of equal size in a file, mapped into memory block by block and handed on as tensors without a copy."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from cone_kernels.vector_files.reading import Reader, VectorFileError

# Before each row of .fvecs and .bvecs stands its width, as int32.
WIDTH_BYTES = 4

# A file is looked for in memory by one byte of each so many; the kernel reads some hundred thousand at a time itself.
_PROBED = 2**20

FileState: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where the rows of a file are.

    Attributes:
        rows: n.
        dim: d.
        kind: the dtype of its numbers.
        offset: bytes before the first row.
        has_width: whether each row begins with its width.
        swapped: whether the bytes of a number are in the other order than this machine's.
    """

    rows: int
    dim: int
    kind: str
    offset: int
    has_width: bool = False
    swapped: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its numbers."""
        dtype: torch.dtype = getattr(torch, self.kind)
        return dtype

    @property
    def row_bytes(self) -> int:
        """From the start of a row to that of the next."""
        return WIDTH_BYTES * self.has_width + self.dim * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Bytes up to the end of the last row."""
        return self.offset + self.rows * self.row_bytes


class MappedRows(Reader):
    """Rows that are read as a private map of the file: nobody writes to the file through a block.

    A map lives as long as its block, so that no more than the blocks in use are in memory.

    Args:
        path: the file.
        layout: where its rows are.

    Raises:
        VectorFileError: the file is shorter than its layout says.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.name, self.dim, self.kind, self.rows = str(path), layout.dim, layout.kind, layout.rows
        self.files = (path,)
        self._path = path
        self._layout = layout
        self._state = state_of(path)
        size = os.stat(path).st_size
        if size < layout.end:
            row = max(0, size - layout.offset) // layout.row_bytes
            raise VectorFileError(
                f"{path} is cut short in row {row}: it has {size:,} bytes, and {layout.rows:,} rows of "
                f"{layout.row_bytes:,} bytes end at {layout.end:,}"
            )

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        """The rows as one tensor (n, d), strided where a width stands before each row."""
        layout, stop = self._layout, min(stop, self._layout.rows)
        if start >= stop:
            return []
        n, item = stop - start, layout.dtype.itemsize
        first = layout.offset + start * layout.row_bytes
        content = mapped_bytes(self._path, self._state, first, n * layout.row_bytes)
        # NumPy's zip files and some safetensors do not align their numbers, and kernels need them aligned.
        rows = (content.clone() if first % item else content).view(n, layout.row_bytes)
        if layout.has_width:
            self._check_widths(rows[:, :WIDTH_BYTES].flatten().clone().view(torch.int32), start)
            rows = rows[:, WIDTH_BYTES:]
        if layout.swapped:
            rows = rows.view(n, layout.dim, item).flip(-1).view(n, layout.dim * item)
        return [rows.view(layout.dtype)]

    def _check_widths(self, widths: Tensor, start: int) -> None:
        wrong = (widths != self.dim).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise VectorFileError(
                f"{self.name}: row {start + at} has width {int(widths[at])}; it must be {self.dim}, as row 0"
            )


def mapped_bytes(path: Path, state: FileState, first: int, length: int) -> Tensor:
    """Bytes of a file as a private map, (length,) uint8.

    What a disk must give of them, and of as many after them, is asked for as a whole before they are mapped: page by
    page it would come at half of the disk's speed.

    Args:
        path: the file.
        state: of the file when it was opened.
        first, length: where the bytes are; at least one.

    Raises:
        VectorFileError: the file has changed meanwhile.
    """
    window = first - first % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:
        if _state(os.fstat(file.fileno())) != state:
            raise VectorFileError(f"{path} has changed since it was opened; it must stay as it is")
        for start in (first, first + length):
            if not _in_memory(file.fileno(), start, length):
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
        memory = mmap.mmap(file.fileno(), first - window + length, access=mmap.ACCESS_COPY, offset=window)
    return torch.frombuffer(memory, dtype=torch.uint8, count=length, offset=first - window)


def _in_memory(file: int, first: int, length: int) -> bool:
    """Whether a stretch of a file is in the page cache; to ask for one that is takes as long as to read it."""
    try:
        for place in range(first, first + length, _PROBED):
            os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
    except OSError:  # EAGAIN: it would have to be waited for; EOPNOTSUPP: this file system does not tell
        return False
    return True


def state_of(path: Path) -> FileState:
    """What changes when a file is written or replaced."""
    return _state(os.stat(path))


def _state(file: os.stat_result) -> FileState:
    return file.st_ino, file.st_size, file.st_mtime_ns
