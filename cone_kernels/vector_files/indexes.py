"""The vectors that a faiss index holds."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cone_kernels.vector_files.reading import Format, Reader, VectorFileError


class FaissIndex(Reader):
    """Vectors as the index gives them back, in the order in which they were added: one that quantizes gives what it
    kept of them. Memory is what faiss takes: what it can map it maps, and other indexes it loads whole.

    The ids of an index with an id map are its field `id`.

    Raises:
        ModuleNotFoundError: faiss is not installed.
        VectorFileError: it is no index of floats, or one that cannot give its vectors back.
    """

    kind = "float32"

    def __init__(self, path: Path, field: str | None) -> None:
        if importlib.util.find_spec("faiss") is None:
            raise ModuleNotFoundError(f"faiss is not installed; {path} needs it: pip install faiss-cpu", name="faiss")
        import faiss

        self.name, self.files = str(path), (path,)
        try:
            # Kept beside what it wraps, which lives no longer than it.
            self._outer = self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise VectorFileError(f"{path} is not a faiss index of floats, or a damaged one: {error}") from error
        self._ids: Any = None
        if isinstance(self._index, faiss.IndexIDMap):
            self._ids, self.fields = faiss.vector_to_array(self._index.id_map), ["id"]
            self._index = faiss.downcast_index(self._index.index)
        self.rows, self.dim = int(self._index.ntotal), int(self._index.d)
        try:
            if isinstance(self._index, faiss.IndexIVF):
                self._index.make_direct_map()
            # Asked for alone first: an index that cannot do it ends the process when it is asked for several.
            if self.rows:
                self._index.reconstruct(0)
        except RuntimeError as error:
            raise VectorFileError(
                f"{path}: an {type(self._index).__name__} like this cannot give its vectors back: {error}"
            ) from error

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        n = min(stop, self.rows or 0) - start
        return [torch.from_numpy(self._index.reconstruct_n(start, n))] if n > 0 else []

    def ids(self, field: str, rows: Sequence[int]) -> list[str | None]:
        return [str(self._ids[row]) for row in rows]


FORMATS = {"faiss": Format(FaissIndex)}
