"""Whether one model's axis, mean and centring move with the corpus, judged against two halves of one corpus."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.corpora_result import Corpora, MeansPair
from cone_kernels.experiments.level import Level, levels_of
from cone_kernels.runs.measurement import Measurement, shared_corpus
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import Moments


def corpora_of(
    model: str,
    moments: Sequence[Moments],
    vectors: Sequence[SentenceVectors],
    groups: Sequence[Callable[[Tensor], Tensor]],
    centered: Sequence[Sequence[Level | None]],
) -> Corpora:
    """The means of several corpora by one model, and what the mean of each does to the others.

    Args:
        model: its name.
        moments: the sums of the layer for each corpus.
        vectors, groups: its sentence vectors, and what gives their jackknife groups.
        centered: [i][j] the level of corpus i after subtracting the mean of corpus j.
    """
    from cone_kernels import metrics
    from cone_kernels.statistics.significance import student_bound
    from cone_kernels.statistics.subspaces import Space, overlap
    from cone_kernels.sums import jackknife_blocks

    blocks = [jackknife_blocks(one.count[0]) for one in moments]
    sums = [metrics.summed_by_block(m.unit_sum.cpu(), block)[0] for m, block in zip(moments, blocks, strict=True)]
    m, pairs = len(moments), math.comb(len(moments), 2)
    spaces = [Space.of_mean(one) for one in sums]
    own = [_half_overlap(one) for one in sums]
    means: list[list[MeansPair | None]] = [[None] * m for _ in range(m)]
    for i, j in combinations(range(m), 2):
        found = overlap(spaces[i], spaces[j], paired=False)
        bound = student_bound(found.stderr, found.degrees, pairs)
        means[i][j] = MeansPair(found, bound, (own[i], own[j]))
        means[j][i] = MeansPair(found, bound, (own[j], own[i]))
    halves = [_half_level(*each) for each in zip(vectors, groups, blocks, strict=True)]
    carried: list[list[Claim | None]] = [[None] * m for _ in range(m)]
    for i, j in permutations(range(m), 2):
        level, half = centered[i][j], halves[i]
        if level is not None:
            stderr = math.hypot(level.stderr, half.stderr)
            bound = student_bound(stderr, len(sums[i]) - 1, 2 * pairs)
            carried[i][j] = Claim(level.anisotropy, null=half.anisotropy, bound=bound)
    return Corpora(model, tuple(map(tuple, means)), tuple(halves), tuple(map(tuple, carried)))


def names_of_corpora(measurements: Sequence[Measurement]) -> list[str]:
    """The corpora's own names, the last part of a path alone; numbered where that does not tell them apart."""
    names = [os.path.basename(str(found.corpus["name"] or "sentences")) for found in measurements]
    return names if len(set(names)) == len(names) else [f"{name} ({at})" for at, name in enumerate(names, 1)]


def joined_corpus(measurements: Sequence[Measurement], names: Sequence[str]) -> dict[str, Any]:
    """What all corpora together hold; each one's own counts are in its measurement."""
    shared = shared_corpus(measurements)
    dropped = {reason: sum(found.corpus["dropped"][reason] for found in measurements) for reason in shared["dropped"]}
    total = sum(found.corpus["sentences"] for found in measurements)
    return {**shared, "name": ", ".join(names), "sentences": total, "dropped": dropped, "fingerprint": None}


def _half_overlap(sums: Tensor) -> float:
    """cos² of the mean directions of two halves of the blocks, sums (B, d)."""
    first, second = sums[::2].sum(0), sums[1::2].sum(0)
    return float((first @ second).square() / (first.square().sum() * second.square().sum()))


def _half_level(vectors: SentenceVectors, groups: Callable[[Tensor], Tensor], blocks: Tensor) -> Level:
    """The level of one half of the sentences after subtracting the mean of the other half."""
    import torch

    from cone_kernels.runs.sentence_vectors import used_blocks
    from cone_kernels.state.cone_state import Moments

    total, count = torch.zeros(vectors.dim, dtype=torch.float64), 0
    for ids, rows in used_blocks(vectors.blocks()):
        fitted = rows[blocks[groups(ids)] % 2 == 1]
        total, count = total + fitted.sum(0), count + len(fitted)
    moments = Moments.empty("sentence", [0], vectors.dim)
    for ids, rows in used_blocks(vectors.blocks()):
        numbers = groups(ids)
        judged = blocks[numbers] % 2 == 0
        moments.add_rows(slice(None), (rows[judged] - total / count)[None], numbers[judged], "auto")
    return levels_of(moments)[0]
