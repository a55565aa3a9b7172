"""The mean cosine without the dimensions that carry most of it, vector by vector, over a draw of the sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.level import level_after
from cone_kernels.experiments.rogue_dimensions import WithoutRogue
from cone_kernels.names import Layer
from cone_kernels.runs.measure_again import vectors_of
from cone_kernels.vector_files.fingerprint import sampled

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.runs.measurement import Measurement
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.vector_files import Vectors

SENTENCES = 256
"""How many are drawn and run once more: a mean cosine of so many has an error of 0.01 or so."""

AMONG = 100_000
"""The draw is from so many sentences at the corpus's start, so that a long one is not read to its end again."""

# Rows of one stretch of a file of vectors; 64 stretches are read.
_STRETCH = 256


def of_sentences(
    measurement: Measurement, dimensions: Mapping[Layer, Sequence[int]], options: Mapping[str, Any]
) -> dict[Layer, WithoutRogue]:
    """What is left without some dimensions at some layers, over sentences that the model runs once more.

    Which dimensions are massive shows only when the pass is over, and no sum tells the rest then: each vector is made
    of length 1 again without them. Sentences are drawn by their content, so that a corpus in file order does no harm.

    Args:
        measurement: of a model.
        dimensions: those to leave out, by layer.
        options: of the measurement.

    Returns:
        By layer; {} for a saved state and a corpus that can be read only once.
    """
    corpus = measurement.sentences
    if not dimensions or corpus is None or corpus.read_once or measurement.load is None:
        return {}
    drawn = corpus.drawn(SENTENCES, among=AMONG)
    again = corpus.made_of([text for text, _ in drawn])
    # The run's own progress is told to its end; so few sentences more have none.
    chosen = {name: value for name, value in options.items() if name != "progress"}
    found = vectors_of(measurement, again, list(dimensions), pooling=measurement.state.pooling, options=chosen)
    groups = _groups([group for _, group in drawn])
    return {layer: of_rows(found[layer], out, groups) for layer, out in dimensions.items()}


def of_vectors(source: Vectors, rows: int, dimensions: Sequence[int]) -> WithoutRogue:
    """What is left of vectors without some dimensions, over 64 stretches of 256 rows each, or all rows where fewer.

    Args:
        source: vectors that can be read again.
        rows: how many of them count.
        dimensions: those to leave out.
    """
    import torch

    from cone_kernels.runs.sentence_vectors import SentenceVectors

    stretches = [
        block.double()
        for start, stop in sampled(rows, _STRETCH)
        for _, block in source.blocks(start, stop, stop - start)
    ]
    return of_rows(SentenceVectors.from_rows(torch.cat(stretches)), dimensions)


def of_rows(
    vectors: SentenceVectors, dimensions: Sequence[int], groups: Callable[[Tensor], Tensor] | None = None
) -> WithoutRogue:
    """The mean cosine of vectors without some dimensions, with its jackknife error.

    Args:
        vectors: those that have nothing in other dimensions are left out.
        dimensions: those to leave out.
        groups: as in `level_after`.

    Examples:
        >>> of_rows(SentenceVectors.from_rows(torch.randn(1000, 384) + 1), [0, 1])
    """

    def without(rows: Tensor) -> Tensor:
        kept = rows.clone()
        kept[:, list(dimensions)] = 0
        return kept

    level = level_after(vectors, without, groups)
    return WithoutRogue(level.anisotropy, level.stderr, level.count)


def _groups(given: Sequence[int | None]) -> Callable[[Tensor], Tensor] | None:
    """The jackknife groups of drawn sentences, by their index in the draw; None where the index decides."""
    import torch

    known = [group for group in given if group is not None]
    if len(known) < len(given):
        return None
    by_index = torch.tensor(known)
    return lambda ids: by_index[ids]
