"""Vectors judged by labelled pairs: the folds of the pairs, the scores of a fold, and what the scores are worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
# Entries of the block of similarities that is in memory at a time.
_BLOCK = 1 << 24


class PairScores:
    """The items that vectors are judged by: pairs, or queries with their relevant texts.

    Items that share a text, or are joined by a chain of such, are one group; a group is in one fold. Scores of a fold
    are those of its own items, so that a map can be fitted on the other folds.

    Args:
        pairs: what was read.
        usable: (n,) bool, which texts have a vector; items with others are left out.

    Attributes:
        measures: what is computed of the items; the first one is judged by.
        fold, group: (items,) int64.
        text_fold: (n,) int64, the fold of each text; -1 of one that is in no item.
        left_out: pairs with a text that has no vector.

    Raises:
        CorpusError: there are too few groups, a group holds more than half of the items, or a fold has labels of one
            kind alone.

    Example:
        >>> scores = PairScores(read_pairs("snli_dev.jsonl"), torch.ones(12982, dtype=torch.bool))
        >>> scores.estimates(torch.stack([torch.cat_fold...]))
    """

    def __init__(self, pairs: LabelledPairs, usable: Tensor) -> None:
        self._kind = measure_kind(pairs.measure)
        extra = ("mrr", "recall@1", "recall@10") if self._kind == "retrieval" else ()
        self.measures = (pairs.measure, *(name for name in extra if name != pairs.measure))
        both = torch.tensor(pairs.pairs)
        there = usable[both].all(1)
        self.left_out = int((~there).sum())
        self._pairs = both[there]  # (P, 2)
        self._labels = torch.tensor(pairs.labels, dtype=torch.float64)
        self._labels = self._labels[there] if len(self._labels) else self._labels
        clusters = torch.tensor(pairs.groups())
        if self._kind == "retrieval":
            queries, self._query = self._pairs[:, 0].unique(return_inverse=True)
            self._queries = queries
            negatives = torch.tensor(pairs.negatives, dtype=torch.int64).reshape(-1, 2)[:, 1]
            self._candidates = torch.cat([self._pairs[:, 1], negatives[usable[negatives]]]).unique()
        else:
            queries = self._pairs[:, 0]
        self.group = clusters[queries].unique(return_inverse=True)[1]
        self.fold = _folds(self.group, pairs.name)[self.group]
        self.text_fold = torch.full((len(usable),), -1)
        fold_of_cluster = torch.full((int(clusters.max()) + 1,), -1)
        fold_of_cluster[clusters[queries]] = self.fold
        self.text_fold = torch.where(usable, fold_of_cluster[clusters], -1)
        if self._kind == "auc":
            for number in range(FOLDS):
                if len(self._labels[self.fold == number].unique()) < 2:
                    raise CorpusError(
                        f"pairs: {pairs.name} has {len(self._pairs):,} pairs, and a quarter of them has labels of one "
                        "kind alone; give more pairs of both kinds"
                    )

    def __len__(self) -> int:
        return len(self.fold)

    def scores(self, rows: Tensor, fold: int, through: Map | None = None, *, own_candidates: bool = False) -> Tensor:
        """The scores of the items of a fold.

        Args:
            rows: (n, d) the vectors of all texts.
            fold: its number.
            through: what the vectors go through; None leaves them as they are.
            own_candidates: a query is to find its texts among those of its fold alone.

        Returns:
            (measures, items of the fold) float64: cosines of pairs, or what `measures` says of each query.
        """
        mine = self.fold == fold
        if self._kind != "retrieval":
            texts, place = self._pairs[mine].unique(return_inverse=True)
            units = _units(rows[texts].double(), through)
            return (units[place[:, 0]] * units[place[:, 1]]).sum(1)[None]
        candidates = self._candidates
        if own_candidates:
            candidates = candidates[self.text_fold[candidates] == fold]
        return self._ranked(rows, mine, candidates, through)

    def estimates(self, scores: Tensor) -> Estimates:
        """What several sets of scores are worth by the first measure, with the errors that go with the groups.

        Args:
            scores: (m, items) of all folds together, in the order of the items. Scores are compared within a fold
                only: those of different fits need not be on one scale. The value is the mean over the folds, each
                weighted by its items.
        """
        values, influences = scores.new_zeros(len(scores)), torch.zeros_like(scores)
        for number in range(FOLDS):
            mine = self.fold == number
            share = float(mine.double().mean())
            value, own = self._statistic(scores[:, mine], mine)
            values = values + share * value
            influences[:, mine] = share * own
        return Estimates.of_influences(values, influences, self.group)

    def value(self, scores: Tensor, fold: int) -> float:
        """What the scores (items of the fold,) of one fold are worth by the first measure."""
        return float(self._statistic(scores[None], self.fold == fold)[0])

    def _statistic(self, scores: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        if self._kind == "auc":
            return ranking.auc(scores, self._labels[mine] > 0)
        if self._kind == "spearman":
            return ranking.spearman(scores, self._labels[mine])
        return ranking.mean(scores)

    def _ranked(self, rows: Tensor, mine: Tensor, candidates: Tensor, through: Map | None) -> Tensor:
        """(measures, queries) of the queries of a fold, found among the candidates, a block of queries at a time."""
        numbers = mine.nonzero()[:, 0]
        place = torch.full((len(mine),), -1)
        place[numbers] = torch.arange(len(numbers))
        pairs = self._pairs[place[self._query] >= 0]
        query = place[self._query][place[self._query] >= 0]
        relevant = torch.searchsorted(candidates, pairs[:, 1])
        texts = self._queries[numbers]
        found, asked = _units(rows[candidates], through), _units(rows[texts], through)
        itself = torch.searchsorted(candidates, texts).clamp_max(len(candidates) - 1)
        is_candidate = candidates[itself] == texts
        order = query.argsort(stable=True)
        query, relevant = query[order], relevant[order]
        ranks = torch.empty(len(query), dtype=torch.float64)
        step = max(1, _BLOCK // len(candidates))
        for start in range(0, len(texts), step):
            similar = asked[start : start + step] @ found.mT
            at = is_candidate[start : start + step].nonzero()[:, 0]
            similar[at, itself[start + at]] = -torch.inf
            first, last = torch.searchsorted(query, torch.tensor([start, start + len(similar)])).tolist()
            for low in range(first, last, step):
                some = slice(low, min(low + step, last))
                ranks[some] = ranking.ranks_of(similar[query[some] - start], relevant[some])
        of_each = (ranks, query, len(texts))
        return torch.stack(
            [
                ranking.reciprocal_ranks(*of_each) if name == "mrr" else ranking.recall(*of_each, int(name[7:]))
                for name in self.measures
            ]
        )


def _units(rows: Tensor, through: Map | None) -> Tensor:
    """The directions of mapped rows; a row that is mapped to zero has none, and a cosine of 0 to all others."""
    return normalize(rows if through is None else through(rows), dim=1)


def _folds(group: Tensor, name: str) -> Tensor:
    """(groups,) the fold of each group: large groups first, in an order drawn by chance, where the fewest items are."""
    sizes: Sequence[int] = torch.bincount(group).tolist()
    total, largest = sum(sizes), max(sizes)
    what = f"pairs: {name} has {total:,} pairs or queries in {len(sizes):,} groups that share a text"
    if len(sizes) < _LEAST_GROUPS * FOLDS:
        raise CorpusError(f"{what}; there must be {_LEAST_GROUPS * FOLDS} groups or more, to fit on some and test others")
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
