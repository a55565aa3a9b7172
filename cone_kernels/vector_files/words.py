"""Vectors of words in the binary file of word2vec, with the words as ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cone_kernels.vector_files.mapped import mapped_bytes, state_of
from cone_kernels.vector_files.reading import Format, Reader, VectorFileError
from cone_kernels.word2vec import Word2VecError, Word2VecFile, is_word2vec


class Word2Vec(Reader):
    """The rows of a file, in its order, a word that comes twice among them; its words are the ids `word`.

    Raises:
        VectorFileError: it is not one of word2vec's, or is damaged.
    """

    kind = "float32"
    fields = ("word",)

    def __init__(self, path: Path, field: str | None) -> None:
        self.name, self.files, self._path = str(path), (path,), path
        self._state = state_of(path)
        try:
            self._file = Word2VecFile.open(path)
        except Word2VecError as error:
            other = "" if is_word2vec(path) else "; name the format where it is another one"
            raise VectorFileError(f"{error}{other}") from None
        self.rows, self.dim = self._file.rows, self._file.dim

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        stop = min(stop, self._file.rows)
        if start >= stop:
            return []
        first = int(self._file.starts[start])
        length = int(self._file.starts[stop - 1]) + 4 * self.dim - first
        content = mapped_bytes(self._path, self._state, first, length)
        found = torch.empty(stop - start, self.dim)
        self._file.copy_vectors(content.numpy(), range(start, stop), found.numpy(), first)
        return [found]

    def ids(self, field: str, rows: Sequence[int]) -> list[str | None]:
        found: list[str | None] = []
        with self._path.open("rb") as file:
            for row in rows:
                begin, end = self._file.word_bytes(row)
                file.seek(begin)
                try:
                    found.append(self._file.word(file.read(end - begin), row))
                except Word2VecError as error:
                    raise VectorFileError(str(error)) from None
        return found


FORMATS = {"word2vec": Format(Word2Vec)}
