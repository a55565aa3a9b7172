"""Sentence vectors taken out of a model while it runs, and the files that hold them beside a part of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cone_kernels.runs.sentence_vectors import SentenceVectors
from cone_kernels.state.file import StateFileError


class VectorKeeper:
    """Gathers the vectors of some layers while a model runs, window by window, batches in any order.

    Args:
        layers: their numbers; -1 is the last one.
        beside: the vectors are written to files beside this one, of layer 3 to FILE.layer-3; None takes temporary ones.
    """

    def __init__(self, layers: Sequence[int], beside: str | os.PathLike[str] | None = None) -> None:
        self.vectors: dict[int, SentenceVectors] = {}
        self._layers = tuple(layers)
        self._beside = beside
        self._numbers: frozenset[int] | None = None
        self._window: dict[int, Tensor] = {}
        self._first, self._n = 0, 0

    def facts(self) -> dict[str, Any]:
        """What was kept so far, as JSON, for the facts of a `PartialRun`; nothing where no layer is to be kept."""
        headers = {str(layer): vectors.header() for layer, vectors in self.vectors.items()}
        return {"vectors": headers} if self._layers else {}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Goes on from what was kept when `facts()` was this.

        Raises:
            OSError: a file cannot be read or written.
            StateFileError: it does not hold that.
        """
        if self._layers and self._beside is not None:
            self.vectors = opened(self._beside, facts)

    def sync(self) -> None:
        """Has the disk hold what was kept so far, where it is not in temporary files."""
        for vectors in self.vectors.values() if self._beside is not None else ():
            vectors.sync()

    @property
    def sentence_bytes(self) -> int:
        """What the files grow by with every sentence; 0 before the first window."""
        return sum(vectors.dim * vectors.dtype.itemsize for vectors in self.vectors.values())

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
                file = None if self._beside is None else layer_file(self._beside, layer)
                self.vectors[layer] = SentenceVectors(rows.shape[1], rows.dtype, file)
            self.vectors[layer].append(rows, self._first)
        self._window.clear()


def layer_file(beside: str | os.PathLike[str], layer: int) -> Path:
    """Where the vectors of a layer are written: FILE.layer-3 beside FILE."""
    return Path(f"{os.fspath(beside)}.layer-{layer}")


def opened(beside: str | os.PathLike[str], facts: Mapping[str, Any]) -> dict[int, SentenceVectors]:
    """The vectors that a `VectorKeeper` wrote beside a file, by layer number.

    Args:
        beside: the file.
        facts: what the keeper's `facts()` were.

    Raises:
        OSError: a file cannot be read or written.
        StateFileError: it does not hold that.
    """
    headers = facts.get("vectors")
    if not isinstance(headers, dict) or not all(layer.isdecimal() for layer in headers):
        raise StateFileError(f"{os.fspath(beside)}: got vectors {headers!r:.80}; it must be headers by layer number")
    return {int(layer): SentenceVectors.open(layer_file(beside, int(layer)), headers[layer]) for layer in headers}


def layer_number(layer: int, n_layers: int) -> int:
    """The number of a layer that may be counted from the end: -1 is the last of `n_layers`.

    Raises:
        ValueError: there is none such.
    """
    if not -n_layers <= layer < n_layers:
        raise ValueError(f"layer: got {layer}; it must be from 0 to {n_layers - 1}, or from {-n_layers} to -1")
    return layer % n_layers
