"""Sentence vectors taken out of a model while it runs, and the files next to a part of a run that hold them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cone_kernels.names import OUTPUT, Layer
from cone_kernels.runs.sentence_vectors import SentenceVectors
from cone_kernels.state.file import StateFileError


class VectorKeeper:
    """Gathers the vectors of some layers while a model runs, shard by shard; the batches of a shard come in any order.

    Args:
        layers: their numbers, -1 is the last one; or "output", the vectors that the model itself gives.
        prefix: the vectors of layer 3 are written to the file PREFIX.layer-3; None takes temporary files.
    """

    def __init__(self, layers: Sequence[Layer], prefix: str | os.PathLike[str] | None = None) -> None:
        self.vectors: dict[Layer, SentenceVectors] = {}
        self._layers = tuple(layers)
        self._prefix = prefix
        self._numbers: frozenset[Layer] | None = None
        self._shard: dict[Layer, Tensor] = {}
        self._first, self._n = 0, 0

    def facts(self) -> dict[str, Any]:
        """What was kept so far, as JSON, for the facts of a `RunPart`; empty where no layer is kept."""
        headers = {str(layer): vectors.header() for layer, vectors in self.vectors.items()}
        return {"vectors": headers} if self._layers else {}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Goes on from the vectors that were kept when `facts()` returned these; later ones are cut off.

        Raises:
            OSError: a file cannot be read or written.
            StateFileError: a file does not hold the vectors that the facts describe.
        """
        if self._layers and self._prefix is not None:
            self.vectors = opened(self._prefix, facts)

    def sync(self) -> None:
        """Writes what was kept so far through to the disk, where it is not in temporary files."""
        for vectors in self.vectors.values() if self._prefix is not None else ():
            vectors.sync()

    @property
    def sentence_bytes(self) -> int:
        """Bytes that the files grow by with every sentence; 0 before the first shard."""
        return sum(vectors.dim * vectors.dtype.itemsize for vectors in self.vectors.values())

    def begin_shard(self, first_id: int, n: int) -> None:
        """The next n sentences are those from `first_id` on; a shard that begins again is forgotten."""
        self._first, self._n = first_id, n
        self._shard.clear()

    def take(self, layer: Layer, n_layers: int, sentence_ids: Tensor, pooled: Tensor) -> None:
        """Takes one layer of one batch: ids (B,), vectors (B, D).

        Raises:
            ValueError: the model has no such layer as one of those to be kept.
        """
        if self._numbers is None:
            self._numbers = frozenset(
                wanted if isinstance(wanted, str) else layer_number(wanted, n_layers) for wanted in self._layers
            )
        if layer not in self._numbers:
            return
        if layer not in self._shard:
            self._shard[layer] = torch.full((self._n, pooled.shape[1]), torch.nan, dtype=pooled.dtype)
        self._shard[layer][(sentence_ids - self._first).cpu()] = pooled.cpu()

    def end_shard(self) -> None:
        """Keeps the vectors of the shard."""
        for layer, rows in self._shard.items():
            if layer not in self.vectors:
                file = None if self._prefix is None else layer_file(self._prefix, layer)
                self.vectors[layer] = SentenceVectors(rows.shape[1], rows.dtype, file)
            self.vectors[layer].append(rows, self._first)
        self._shard.clear()


def layer_file(prefix: str | os.PathLike[str], layer: Layer) -> Path:
    """Where the vectors of a layer are written: PREFIX.layer-3, or PREFIX.layer-output."""
    return Path(f"{os.fspath(prefix)}.layer-{layer}")


def opened(prefix: str | os.PathLike[str], facts: Mapping[str, Any]) -> dict[Layer, SentenceVectors]:
    """The vectors that a `VectorKeeper` wrote, by layer.

    Args:
        prefix: that of the keeper.
        facts: what `facts()` of the keeper returned.

    Raises:
        OSError: a file cannot be read or written.
        StateFileError: a file does not hold the vectors that the facts describe.
    """
    headers = facts.get("vectors")
    if not isinstance(headers, dict) or not all(layer.isdecimal() or layer == OUTPUT for layer in headers):
        raise StateFileError(f"{os.fspath(prefix)}: got vectors {headers!r:.80}; it must be headers by layer")
    layers: dict[Layer, Any] = {OUTPUT if layer == OUTPUT else int(layer): headers[layer] for layer in headers}
    return {layer: SentenceVectors.open(layer_file(prefix, layer), header) for layer, header in layers.items()}


def layer_number(layer: int, n_layers: int) -> int:
    """The number of a layer that may be counted from the end: -1 is the last of `n_layers`.

    Raises:
        ValueError: there is no such layer.
    """
    if not -n_layers <= layer < n_layers:
        raise ValueError(f"layer: got {layer}; it must be from 0 to {n_layers - 1}, or from {-n_layers} to -1")
    return layer % n_layers
