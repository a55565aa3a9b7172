"""The sentence vectors of one layer in a file, to be read again once the axes of the cone are known."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cone_kernels.files import sync
from cone_kernels.state.file import StateFileError

BLOCK_ROWS = 8192

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class SentenceVectors:
    """Pooled vectors in corpus order, in a file: row i is the sentence with id i.

    Where they are of some shards of a corpus alone, `spans` has the sentences that are there, and their rows follow
    each other without gaps. A sentence without a vector, or with one that is not finite, is a row of NaN. The file
    takes n·d·4 bytes (of float64 models n·d·8).

    Args:
        dim: D, the width.
        dtype: float32 or float64.
        file: where they are written, in place of what is there; None is a temporary file, which goes with the object.

    Examples:
        >>> vectors = SentenceVectors.from_rows(torch.randn(1000, 384))
        >>> total = sum(block.nansum(0) for _, block in vectors.blocks())  # (384,)
    """

    def __init__(
        self, dim: int, dtype: torch.dtype = torch.float32, file: str | os.PathLike[str] | None = None
    ) -> None:
        if dtype not in _DTYPES.values():
            raise ValueError(f"dtype: got {dtype}; it must be torch.float32 or torch.float64")
        self.dim = dim
        self.dtype = dtype
        self._spans: list[tuple[int, int]] = []
        self._sha256 = hashlib.sha256()
        self._file = tempfile.TemporaryFile() if file is None else open(file, "w+b")  # noqa: SIM115 - lives as this

    @classmethod
    def from_rows(cls, rows: Tensor) -> SentenceVectors:
        """The vectors that are the rows of a tensor (n, D), float32 or float64, in a temporary file."""
        vectors = cls(rows.shape[1], rows.dtype)
        vectors.append(rows)
        return vectors

    @classmethod
    def open(cls, file: str | os.PathLike[str], header: Any) -> SentenceVectors:
        """The vectors that `file` held when `header()` returned this header; later rows are cut off.

        Raises:
            OSError: the file cannot be read or written.
            StateFileError: it does not hold those vectors, or the header is not one of `header()`.
        """
        vectors = cls.__new__(cls)
        vectors.dim, vectors.dtype, vectors._spans, sha256 = _checked(file, header)
        vectors._sha256 = hashlib.sha256()
        try:
            vectors._file = open(file, "r+b")  # noqa: SIM115 - lives as long as the object
        except FileNotFoundError:
            raise StateFileError(f"{os.fspath(file)}: there is no such file; it must hold sentence vectors") from None
        left = size = len(vectors) * vectors._row_bytes
        while left and (content := vectors._file.read(min(left, 1 << 20))):
            vectors._sha256.update(content)
            left -= len(content)
        if left or vectors._sha256.hexdigest() != sha256:
            what = f"{left} bytes less" if left else "other content"
            raise StateFileError(f"{os.fspath(file)}: has {what} than the sentence vectors that were written")
        vectors._file.truncate(size)
        return vectors

    def append(self, rows: Tensor, first_id: int | None = None) -> None:
        """Adds the vectors (n, D) of n sentences that follow each other.

        Args:
            rows: the vectors.
            first_id: the id of the first of these sentences; None is the one after the last that is there.

        Raises:
            ValueError: the width or the dtype is not that of the file, or the sentence does not come after the last.
        """
        if rows.dim() != 2 or rows.shape[1] != self.dim or rows.dtype != self.dtype:
            got = f"shape {tuple(rows.shape)} and {rows.dtype}"
            raise ValueError(f"rows: got {got}; it must be (n, {self.dim}) and {self.dtype}")
        end = sum(self._spans[-1]) if self._spans else 0
        first = end if first_id is None else first_id
        if first < end:
            raise ValueError(f"first_id: got {first} after sentence {end - 1}; it must be {end} or more")
        if not len(rows):
            return
        host = rows.detach().cpu()
        defined = host.isfinite().all(1, keepdim=True)
        content = torch.where(defined, host, torch.nan).contiguous().numpy().data
        self._file.seek(len(self) * self._row_bytes)
        self._file.write(content)
        self._file.flush()
        self._sha256.update(content)
        if self._spans and first == end:
            self._spans[-1] = (self._spans[-1][0], self._spans[-1][1] + len(host))
        else:
            self._spans.append((first, len(host)))

    def __len__(self) -> int:
        return sum(n for _, n in self._spans)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(id of the first sentence, how many) of the sentences that are there, in order; a whole corpus has one."""
        return tuple(self._spans)

    def header(self) -> dict[str, Any]:
        """What is in the file, as JSON: width, dtype, spans and sha256; `open` checks the file against it."""
        dtype = str(self.dtype).removeprefix("torch.")
        spans = [list(span) for span in self._spans]
        return {"dim": self.dim, "dtype": dtype, "spans": spans, "sha256": self._sha256.hexdigest()}

    def sync(self) -> None:
        """Writes all of the file through to the disk, as far as the system can."""
        sync(self._file.fileno())

    def read(self, first_id: int, n: int) -> Tensor:
        """The vectors (n, D) of n sentences that follow each other.

        Raises:
            ValueError: one of them is not there.
        """
        before = 0
        for first, count in self._spans:
            if first <= first_id and first_id + n <= first + count:
                kind = np.dtype(str(self.dtype).removeprefix("torch."))
                self._file.seek((before + first_id - first) * self._row_bytes)
                content = self._file.read(n * self._row_bytes)
                return torch.from_numpy(np.frombuffer(content, kind).reshape(-1, self.dim).copy())
            before += count
        raise ValueError(f"first_id: got {first_id} and n={n}; they must lie within one of the spans {self.spans}")

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Tensor]]:
        """Gives block after block: the id of its first sentence, and its vectors (at most `rows`, D).

        Raises:
            ValueError: `rows` is below 1.
        """
        for first, n in _cut(self._spans, rows):
            yield first, self.read(first, n)

    @property
    def _row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize


def united(
    headers: Sequence[Mapping[str, Any]], sentences: int, read: Callable[[int, int, int], Tensor]
) -> SentenceVectors:
    """The vectors of a whole corpus from those that several processes hold, one block in memory at a time.

    Args:
        headers: for each process the `SentenceVectors.header()` of what it holds.
        sentences: how many the corpus has.
        read: gives vectors (n, D): called with the position of the process in `headers`, the id of the first sentence
            and n.

    Raises:
        ValueError: processes differ in width or dtype, or a sentence is not held by exactly one of them.

    Examples:
        >>> united([part.header() for part in parts], 1000, lambda which, first, n: parts[which].read(first, n))
    """
    kinds = {(header["dim"], header["dtype"]) for header in headers}
    if len(kinds) != 1:
        raise ValueError(f"vectors: got the widths and dtypes {sorted(kinds)}; all must have the same")
    dim, dtype = kinds.pop()
    whole = SentenceVectors(dim, _DTYPES[dtype])
    spans = sorted((*span, which) for which, header in enumerate(headers) for span in header["spans"])
    for first, n, which in spans:
        if first != len(whole):
            raise ValueError(
                f"vectors: got sentence {first} after the first {len(whole)}; each sentence must be there once"
            )
        for start, count in _cut([(first, n)], BLOCK_ROWS):
            whole.append(read(which, start, count))
    if len(whole) != sentences:
        raise ValueError(f"vectors: got those of {len(whole)} sentences; it must be all {sentences} of the corpus")
    return whole


def _cut(spans: Sequence[tuple[int, int]], rows: int) -> Iterator[tuple[int, int]]:
    """The same sentences in spans of at most so many rows."""
    if rows < 1:
        raise ValueError(f"rows: got {rows}; it must be at least 1")
    for first, n in spans:
        for start in range(first, first + n, rows):
            yield start, min(rows, first + n - start)


def _checked(file: str | os.PathLike[str], header: Any) -> tuple[int, torch.dtype, list[tuple[int, int]], str]:
    """Width, dtype, spans and sha256 of a header, which may be damaged and so is checked."""
    wanted = {"dim": int, "dtype": str, "spans": list, "sha256": str}
    if not isinstance(header, dict) or any(type(header.get(name)) is not kind for name, kind in wanted.items()):
        raise StateFileError(f"{os.fspath(file)}: got the header {header!r:.80}; it must have {sorted(wanted)}")
    end, spans = 0, []
    for span in header["spans"]:
        first, n = span if isinstance(span, list) and [type(value) for value in span] == [int, int] else (-1, 0)
        if first < end or n < 1:
            raise StateFileError(
                f"{os.fspath(file)}: got the spans {header['spans']!r:.80}; each must begin after the one before"
            )
        end = first + n
        spans.append((first, n))
    if header["dim"] < 1 or header["dtype"] not in _DTYPES:
        kind = f"dim {header['dim']} and dtype {header['dtype']!r}"
        raise StateFileError(f"{os.fspath(file)}: got {kind}; dim must be 1 or more, and dtype {' or '.join(_DTYPES)}")
    return header["dim"], _DTYPES[header["dtype"]], spans, header["sha256"]


def used_rows(rows: Tensor) -> Tensor:
    """Which of the rows (n, D), float64, are in the sums of a state: (n,) bool, False for zero and not finite rows."""
    squares = rows.square().sum(1)
    return squares.isfinite() & (squares >= torch.finfo(torch.float64).tiny)


def used_blocks(blocks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of every block the vectors that are in the sums of a state: their indices (m,), and they, (m, D) float64.

    Args:
        blocks: (index of the first vector, vectors (n, D)), as `SentenceVectors.blocks` gives them.

    Examples:
        >>> total = sum(rows.sum(0) for _, rows in used_blocks(vectors.blocks()))  # (384,)
    """
    for first, block in blocks:
        rows = block.double()
        used = used_rows(rows)
        yield used.nonzero()[:, 0] + first, rows[used]
