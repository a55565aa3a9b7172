"""The items that vectors are judged by, their folds, and what scores of them are worth."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from cone_kernels.centering import Centering
from cone_kernels.corpora.reading import CorpusError
from cone_kernels.experiments.held_out import FOLDS
from cone_kernels.names import measure_kind
from cone_kernels.statistics import ranking
from cone_kernels.statistics.estimates import Estimates

if TYPE_CHECKING:
    from cone_kernels.corpora.pairs import LabelledPairs

Map: TypeAlias = Callable[[Tensor], Tensor]
"""What vectors (n, d) go through before they are compared, such as a `Centering`."""

# Groups of each fold at least: of fewer no error is known.
_LEAST_GROUPS = 2
_SEED = 19


class LayerScores(Protocol):
    """The scores of one layer's vectors."""

    def scores(self, fold: int, through: Map | None = None) -> Tensor:
        """(measures, items of the fold) float64: of the items of a fold, whose vectors go through a map first."""

    def by_components(self, fold: int, top: Centering, choices: list[int]) -> Tensor:
        """(choices, items of the fold) by the first measure, after the first k directions of `top` are taken away."""


class PairItems:
    """The items that vectors are judged by: pairs, or queries with their relevant texts.

    Items that share a text, or are joined by a chain of such, are one group, and a group is in one fold: what is fitted
    on the other folds has seen no text of it.

    Args:
        pairs: what was read.
        usable: (n,) bool, which texts have a vector; pairs with others are left out.

    Attributes:
        measures: what is computed of the items; they are judged by the first.
        pairs: (P, 2) int64, the texts of the pairs that are used.
        queries: (Q,) int64, the texts that are queries, and `query` (P,) which of them each pair is of; where items
            are pairs, the first texts, and the pairs themselves.
        candidates: (c,) int64, the texts among which a query is to find its own.
        fold, group: (items,) int64.
        text_fold: (n,) int64, the fold of each text; -1 of one that is in no item.
        left_out: pairs with a text that has no vector.

    Raises:
        CorpusError: there are too few groups, a group holds more than half of the items, or in a fold all labels are
            alike.

    Examples:
        >>> items = PairItems(read_pairs("snli_dev.jsonl"), torch.ones(12982, dtype=torch.bool))
        >>> items.measures, len(items)
        (('auc',), 9842)
    """

    def __init__(self, pairs: LabelledPairs, usable: Tensor) -> None:
        self.kind = measure_kind(pairs.measure)
        extra = ("mrr", "recall@1", "recall@10") if self.kind == "retrieval" else ()
        self.measures = (pairs.measure, *(name for name in extra if name != pairs.measure))
        every = torch.tensor(pairs.pairs)
        there = usable[every].all(1)
        self.left_out = int((~there).sum())
        self.pairs = every[there]
        labels = torch.tensor(pairs.labels, dtype=torch.float64)
        self._labels = labels[there] if len(labels) else labels
        self.queries, self.query = self.pairs[:, 0], torch.arange(len(self.pairs))
        if self.kind == "retrieval":
            self.queries, self.query = torch.unique(self.queries, return_inverse=True)
        others = torch.tensor(pairs.negatives, dtype=torch.int64).reshape(-1, 2)[:, 1]
        self.candidates = torch.unique(torch.cat([self.pairs[:, 1], others[usable[others]]]))
        clusters = torch.tensor(pairs.groups())
        self.group = torch.unique(clusters[self.queries], return_inverse=True)[1]
        self.fold = _folds(self.group, pairs.name)[self.group]
        fold_of_cluster = torch.full((len(usable),), -1)
        fold_of_cluster[clusters[self.queries]] = self.fold
        self.text_fold = torch.where(usable, fold_of_cluster[clusters], -1)
        for number in range(FOLDS) if len(self._labels) else ():
            if len(torch.unique(self._labels[self.fold == number])) < 2:
                raise CorpusError(
                    f"pairs: {pairs.name} has {len(self.pairs):,} pairs to use, and in a quarter of them all labels "
                    "are alike; give more pairs"
                )

    def __len__(self) -> int:
        return len(self.fold)

    def estimates(self, scores: Tensor) -> Estimates:
        """What scores are worth by the first measure, with the errors that go with the groups.

        Args:
            scores: (m, items) of all folds together, in the order of the items. They are compared within a fold alone:
                those of different fits need not be on one scale. The value is the mean over the folds, each weighted
                by its items.
        """
        values, influences = scores.new_zeros(len(scores)), torch.zeros_like(scores)
        for number in range(FOLDS):
            mine = self.fold == number
            share = float(mine.double().mean())
            value, own = self._statistic(scores[:, mine], mine)
            values = values + share * value
            influences[:, mine] = share * own
        return Estimates.of_influences(values, influences, self.group)

    def values(self, scores: Tensor, fold: int) -> Tensor:
        """(m,) what scores (m, items of the fold) of one fold are worth by the first measure."""
        return self._statistic(scores, self.fold == fold)[0]

    def _statistic(self, scores: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        value, own = self._of_known(scores, mine)
        return torch.where(scores.isnan().any(1), torch.nan, value), own

    def _of_known(self, scores: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "auc":
            return ranking.auc(scores, self._labels[mine] > 0)
        if self.kind == "spearman":
            return ranking.spearman(scores, self._labels[mine])
        return ranking.mean(scores)


def of_all_folds(items: PairItems, layer: LayerScores, maps: list[Map] | None = None) -> Tensor:
    """(measures, items) the scores of every fold, through the map of that fold.

    Args:
        items: that are scored.
        layer: scores them.
        maps: one for each fold; None leaves the vectors as they are.
    """
    found = torch.empty(len(items.measures), len(items), dtype=torch.float64)
    for fold in range(FOLDS):
        found[:, items.fold == fold] = layer.scores(fold, None if maps is None else maps[fold])
    return found


def _folds(group: Tensor, name: str) -> Tensor:
    """(groups,) the fold of each group: large groups first, in an order drawn by chance, where the fewest items are."""
    sizes: list[int] = torch.bincount(group).tolist()
    total, largest = sum(sizes), max(sizes, default=0)
    what = f"pairs: {name} has {total:,} pairs or queries to use, in {len(sizes):,} groups that share texts"
    if len(sizes) < _LEAST_GROUPS * FOLDS:
        least = _LEAST_GROUPS * FOLDS
        raise CorpusError(f"{what}; there must be {least} groups or more, to fit on some of them and test on others")
    if 2 * largest > total:
        raise CorpusError(
            f"{what}, and one of them has {largest:,}; none may have more than half, for what is tested must not be "
            "fitted on: leave out texts that are in very many pairs"
        )
    order = list(range(len(sizes)))
    random.Random(_SEED).shuffle(order)
    order.sort(key=lambda one: -sizes[one])
    held, fold = [0] * FOLDS, [0] * len(sizes)
    for one in order:
        fold[one] = held.index(min(held))
        held[fold[one]] += sizes[one]
    return torch.tensor(fold)
