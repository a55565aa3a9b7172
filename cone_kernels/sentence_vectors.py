"""The sentence vectors of one layer, kept for a second look at them once the axes are known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


class SentenceVectors:
    """Pooled vectors in corpus order, in a temporary file: row i is the sentence with id i.

    A sentence without a vector, and one whose vector is not finite, is a row of NaN. The file is gone with the object;
    it takes n·d·4 bytes of the folder for temporary files (float64 models: 8).

    Example:
        >>> vectors = SentenceVectors.from_rows(torch.randn(1000, 384))
        >>> total = sum(block.nansum(0) for _, block in vectors.blocks())  # (384,)
    """

    def __init__(self, dim: int, dtype: torch.dtype = torch.float32) -> None:
        if dtype not in {torch.float32, torch.float64}:
            raise ValueError(f"dtype: got {dtype}; it must be torch.float32 or torch.float64")
        self.dim = dim
        self.dtype = dtype
        self._n = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object

    @classmethod
    def from_rows(cls, rows: Tensor) -> SentenceVectors:
        """Of a tensor (n, D) float32 or float64."""
        vectors = cls(rows.shape[1], rows.dtype)
        vectors.append(rows)
        return vectors

    def append(self, rows: Tensor) -> None:
        """Adds the vectors (n, D) of the next n sentences.

        Raises:
            ValueError: the width or the dtype is another one.
        """
        if rows.dim() != 2 or rows.shape[1] != self.dim or rows.dtype != self.dtype:
            got = f"shape {tuple(rows.shape)} and {rows.dtype}"
            raise ValueError(f"rows: got {got}; it must be (n, {self.dim}) and {self.dtype}")
        host = rows.detach().cpu()
        defined = host.isfinite().all(1, keepdim=True)
        self._file.seek(0, 2)
        self._file.write(torch.where(defined, host, torch.nan).contiguous().numpy().data)
        self._n += len(host)

    def __len__(self) -> int:
        return self._n

    def blocks(self, rows: int = 8192) -> Iterator[tuple[int, Tensor]]:
        """(id of the first sentence, vectors (≤ rows, D)) of one block after the other.

        Raises:
            ValueError: `rows` is below 1.
        """
        if rows < 1:
            raise ValueError(f"rows: got {rows}; it must be at least 1")
        kind = np.dtype(str(self.dtype).removeprefix("torch."))
        row_bytes = self.dim * kind.itemsize
        for first in range(0, self._n, rows):
            self._file.seek(first * row_bytes)
            content = self._file.read(min(rows, self._n - first) * row_bytes)
            yield first, torch.from_numpy(np.frombuffer(content, kind).reshape(-1, self.dim).copy())


def used_rows(rows: Tensor) -> Tensor:
    """Which rows (n, D) of float64 are in the sums of a state: (n,) bool, False for zero and not finite ones."""
    squares = rows.square().sum(1)
    return squares.isfinite() & (squares >= torch.finfo(torch.float64).tiny)


class VectorKeeper:
    """Gathers the vectors of some layers while a model runs, window by window, batches in any order.

    Args:
        layers: their numbers; -1 is the last one.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.vectors: dict[int, SentenceVectors] = {}
        self._layers = tuple(layers)
        self._numbers: frozenset[int] | None = None
        self._window: dict[int, Tensor] = {}
        self._first, self._n = 0, 0

    def begin_window(self, first_id: int, n: int) -> None:
        """The next n sentences, or the same again where their window is run again."""
        self._first, self._n = first_id, n
        self._window.clear()

    def take(self, layer: int, n_layers: int, sentence_ids: Tensor, pooled: Tensor) -> None:
        """One layer of one batch: ids (B,), vectors (B, D).

        Raises:
            ValueError: a layer to be kept is none of the model's.
        """
        if self._numbers is None:
            self._numbers = frozenset(layer_number(wanted, n_layers) for wanted in self._layers)
        if layer not in self._numbers:
            return
        if layer not in self._window:
            self._window[layer] = torch.full((self._n, pooled.shape[1]), torch.nan, dtype=pooled.dtype)
        self._window[layer][(sentence_ids - self._first).cpu()] = pooled.cpu()

    def end_window(self) -> None:
        """Keeps what the window gave."""
        for layer, rows in sorted(self._window.items()):
            if layer not in self.vectors:
                self.vectors[layer] = SentenceVectors(rows.shape[1], rows.dtype)
            self.vectors[layer].append(rows)
        self._window.clear()


def layer_number(layer: int, n_layers: int) -> int:
    """The number of a layer that may be counted from the end: -1 is the last of `n_layers`.

    Raises:
        ValueError: there is none such.
    """
    if not -n_layers <= layer < n_layers:
        raise ValueError(f"layer: got {layer}; it must be from 0 to {n_layers - 1}, or from {-n_layers} to -1")
    return layer % n_layers
