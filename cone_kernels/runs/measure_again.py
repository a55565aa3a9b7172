"""Other sentences through the model of a measurement, for their vectors at some layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.names import OUTPUT, Layer
from cone_kernels.runs.measure import measure

if TYPE_CHECKING:
    from cone_kernels.runs.measurement import Measurement
    from cone_kernels.runs.sentence_vectors import SentenceVectors

# What of a measurement's options holds for its model with other sentences too; all else is of its corpus.
_SAME_RUN = ("backend", "token_budget", "packed", "threads", "shard_size", "progress")


def vectors_of(
    measurement: Measurement,
    corpus: Corpus | Iterable[str],
    layers: Sequence[Layer],
    *,
    pooling: str,
    options: Mapping[str, Any],
) -> dict[Layer, SentenceVectors]:
    """The sentence vectors of another corpus, by layer, in temporary files.

    Args:
        measurement: of a model.
        corpus: its vectors lie in the order of its sentences.
        layers: their numbers, and "output".
        pooling: of the layers. The output is pooled by the model itself, in a pass of its own where that is needed.
        options: of the measurement; those of its corpus are not used.

    Examples:
        >>> vectors_of(measurement, ["A man sleeps."], [6], pooling="mean", options={})[6].read(0, 1)
    """
    loaded = measurement.loaded
    assert loaded is not None
    chosen: dict[str, Any] = {name: options[name] for name in _SAME_RUN if name in options}
    passes = [(list(layers), pooling)]
    if OUTPUT in layers and pooling != "mean":
        passes = [([layer for layer in layers if layer != OUTPUT], pooling), ([OUTPUT], "mean")]
    found: dict[Layer, SentenceVectors] = {}
    for kept, own in passes:
        if kept:
            found |= measure(loaded, corpus, pooling=own, keep_vectors=kept, **chosen).vectors
    return found
