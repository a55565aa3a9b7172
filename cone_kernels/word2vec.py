"""The binary file of word2vec: where the words and their vectors are in it.

The C tool of Mikolov et al. (2013) writes a line "V D"; then of each of V words its bytes, a space and D float32,
little-endian, with a line feed after them. gensim leaves that line feed out; it is no part of a word.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WORD2VEC_ENDING = ".bin"

_HEADER_BYTES, _WORD_BYTES = 64, 4096  # that a header, and a word, have at most
_FASTTEXT = (793_712_314).to_bytes(4, "little")


class Word2VecError(ValueError):
    """A file is not one of word2vec's, or is damaged; the message names it, and the word where there is one."""


@dataclass(frozen=True, eq=False)
class Word2VecFile:
    """A file whose words have all been found; none of its vectors is in memory.

    Attributes:
        path: the file.
        rows, dim: V and D.
        starts: (V,) int64, the byte at which each vector begins.
        header_bytes: of the first line.
    """

    path: Path
    rows: int
    dim: int
    starts: NDArray[np.int64] = field(repr=False)
    header_bytes: int = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Word2VecFile:
        """Finds the words of a file.

        Raises:
            OSError: it cannot be read.
            Word2VecError: its first line is not two whole numbers; it has fewer or more bytes than that line says; a
                word is empty, or no space follows it.

        Examples:
            >>> Word2VecFile.open(Path("GoogleNews-vectors-negative300.bin")).rows
            3000000
        """
        rows, dim, begin = _header(path)
        size = os.path.getsize(path)
        width = 4 * dim
        # Before an array for so many words is made: each takes a letter, a space and its vector at least.
        if rows * (width + 2) > size - begin:
            raise Word2VecError(
                f"{path} is cut short, or its first line is wrong: it has {size:,} bytes, which is too few for "
                f"{rows:,} words of {dim:,} float32"
            )
        starts = np.empty(rows, np.int64)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = begin
            for row in range(rows):
                space = content.find(b" ", at, at + _WORD_BYTES)
                if space < 0 and size - at > _WORD_BYTES:
                    raise Word2VecError(
                        f"{path}: no space follows word {row:,} within {_WORD_BYTES:,} bytes; the file is damaged, or "
                        "of another format"
                    )
                if space < 0 or space + 1 + width > size:
                    raise Word2VecError(f"{path} is cut short in word {row:,} of {rows:,}: it has {size:,} bytes")
                if not content[at:space].lstrip(b"\n"):
                    raise Word2VecError(f"{path}: word {row:,} is empty; it must have a letter")
                starts[row] = space + 1
                at = space + 1 + width
            if content[at : at + 2] not in (b"", b"\n"):
                raise Word2VecError(f"{path} has {size - at:,} bytes after the last of its {rows:,} words")
        return cls(path, rows, dim, starts, begin)

    def word_bytes(self, row: int) -> tuple[int, int]:
        """Where a word begins, a line feed before it with it, and where it ends."""
        begin = self.header_bytes if row == 0 else int(self.starts[row - 1]) + 4 * self.dim
        return begin, int(self.starts[row]) - 1

    def word(self, raw: bytes, row: int) -> str:
        """A word by its bytes, without the line feed before it.

        Raises:
            Word2VecError: it is not UTF-8.
        """
        try:
            return raw.lstrip(b"\n").decode("utf-8")
        except UnicodeDecodeError as error:
            raise Word2VecError(f"{self.path}: word {row:,} is not UTF-8: {error}") from None

    def copy_vectors(
        self, content: mmap.mmap | NDArray[np.uint8], rows: Iterable[int], into: NDArray[np.float32], offset: int = 0
    ) -> None:
        """Copies the vectors of some words.

        Args:
            content: bytes of the file.
            rows: n numbers of words.
            into: (n, D), whose rows become the vectors.
            offset: the byte of the file at which `content` begins.
        """
        numbers = np.frombuffer(content, np.uint8)
        for at, row in enumerate(rows):
            begin = int(self.starts[row]) - offset
            into[at] = numbers[begin : begin + 4 * self.dim].view("<f4")


def is_word2vec(path: Path) -> bool:
    """Whether a file begins as one of word2vec: with a line of two whole numbers. So does its text form.

    Examples:
        >>> is_word2vec(Path("pytorch_model.bin"))
        False
    """
    try:
        _header(path)
    except Word2VecError:
        return False
    return True


def _header(path: Path) -> tuple[int, int, int]:
    """V, D, and the bytes of the line that says them."""
    with path.open("rb") as file:
        beginning = file.read(_HEADER_BYTES)
    if beginning.startswith(_FASTTEXT):
        raise Word2VecError(f"{path} is a model of fastText, not a file of vectors; save these as text, in a .vec file")
    line, ended, _ = beginning.partition(b"\n")
    found = re.fullmatch(rb" *(\d{1,18}) +(\d{1,9})[ \r]*", line)
    if not ended or found is None:
        raise Word2VecError(
            f"{path} begins with {line[:24]!r}; a binary file of word2vec begins with a line of two whole numbers, "
            "how many words there are and the width of their vectors"
        )
    rows, dim = int(found[1]), int(found[2])
    if rows < 1 or dim < 1:
        raise Word2VecError(f"{path}: its first line has {rows:,} words of width {dim:,}; both must be at least 1")
    return rows, dim, len(line) + 1
