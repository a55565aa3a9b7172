"""How early queries find their relevant texts, after maps of the vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cone_kernels.centering import Centering
from cone_kernels.experiments.quality_fits import first_of
from cone_kernels.experiments.quality_scores import Map, PairItems
from cone_kernels.statistics import ranking

# Entries of the block of similarities that is in memory at a time.
_BLOCK = 1 << 24


class QueryRanks:
    """Queries at one layer: each is compared with all texts of the file that are relevant to some query, or are given
    as not relevant, but not with itself.

    These texts go through the map of the query's fold, which may have been fitted on those of other folds, and never on
    the query or on its relevant texts.

    Args:
        items: queries.
        rows: (n, d) the vectors of all texts.

    Examples:
        >>> QueryRanks(items, rows).scores(0, centering)  # (measures, queries of fold 0)
    """

    def __init__(self, items: PairItems, rows: Tensor) -> None:
        self._items, self._rows = items, rows

    def scores(self, fold: int, through: Map | None = None) -> Tensor:
        """As `LayerScores` says."""
        return self._scores(fold, self._items.candidates, through)

    def by_components(self, fold: int, top: Centering, choices: list[int]) -> Tensor:
        """As `LayerScores` says; queries find their texts among those of their fold alone."""
        candidates = self._items.candidates
        own = candidates[self._items.text_fold[candidates] == fold]
        return torch.stack([self._scores(fold, own, first_of(top, k))[0] for k in choices])

    def _scores(self, fold: int, candidates: Tensor, through: Map | None) -> Tensor:
        """(measures, queries of the fold), a block of queries at a time."""
        items = self._items
        mine = (items.fold == fold).nonzero()[:, 0]
        place = torch.full((len(items),), -1)
        place[mine] = torch.arange(len(mine))
        of_fold = place[items.query] >= 0
        query, order = place[items.query[of_fold]].sort(stable=True)
        relevant = torch.searchsorted(candidates, items.pairs[of_fold, 1][order])
        texts = items.queries[mine]
        asked, found = _units(self._rows[texts], through), _units(self._rows[candidates], through)
        itself = torch.searchsorted(candidates, texts).clamp_max(len(candidates) - 1)
        is_candidate = candidates[itself] == texts
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
        return torch.stack([ranking.of_queries(name, ranks, query, len(texts)) for name in items.measures])


def _units(rows: Tensor, through: Map | None) -> Tensor:
    """The directions of mapped vectors; one that is mapped to zero has none, and a cosine of 0 to all others."""
    return normalize(rows if through is None else through(rows), dim=1)
