"""The cosines of labelled pairs, after maps of their vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cone_kernels.centering import Centering
from cone_kernels.experiments.held_out import FOLDS
from cone_kernels.experiments.quality_scores import Map, PairItems


class _Fold(NamedTuple):
    """The pairs of a fold: their texts' vectors, which of these each has, and the products ab, aa and bb of the two."""

    rows: Tensor  # (n, d) float64
    first: Tensor  # (p,) int64
    second: Tensor
    products: Tensor  # (3, p) float64


class PairCosines:
    """The cosines of pairs at one layer.

    A centring without a matrix takes little from the products of two vectors, and the cosines after it come from these
    and from what it takes, without a mapped copy of all vectors.

    Args:
        items: pairs.
        rows: (n, d) the vectors of all texts.

    Examples:
        >>> PairCosines(items, rows).scores(0, centering)  # (1, items of fold 0)
    """

    def __init__(self, items: PairItems, rows: Tensor) -> None:
        self._folds = []
        for number in range(FOLDS):
            texts, place = torch.unique(items.pairs[items.fold == number], return_inverse=True)
            own = rows[texts].double()
            first, second = place.unbind(1)
            self._folds.append(_Fold(own, first, second, _products(own, first, second)))

    def scores(self, fold: int, through: Map | None = None) -> Tensor:
        """As `LayerScores` says: (1, p)."""
        found = self._folds[fold]
        if through is None:
            return _cosines(found.products)[None]
        if isinstance(through, Centering) and through.matrix is None:
            return self._after(found, through)[-1:]
        return _cosines(_products(through(found.rows), found.first, found.second))[None]

    def by_components(self, fold: int, top: Centering, choices: list[int]) -> Tensor:
        """As `LayerScores` says."""
        return self._after(self._folds[fold], top)[choices]

    def _after(self, fold: _Fold, centering: Centering) -> Tensor:
        """(k + 1, p) the cosines after its mean is taken away, and then direction by direction."""
        taken = (
            centering.mean if centering.directions is None else torch.cat([centering.mean[None], centering.directions])
        )
        taken = taken.reshape(-1, len(centering.mean))
        along = fold.rows @ taken.mT  # (n, 1 + k)
        on_mean, squared = along[:, 0], centering.mean.square().sum()
        a, b = on_mean[fold.first], on_mean[fold.second]
        centred = fold.products - torch.stack([a + b, 2 * a, 2 * b]) + squared
        parts = along[:, 1:] - taken[1:] @ centering.mean  # of the centred vectors, along each direction
        a, b = parts[fold.first].mT, parts[fold.second].mT  # (k, p)
        taken_away = torch.stack([a * b, a * a, b * b], 1).cumsum(0)  # (k, 3, p)
        return _cosines(torch.cat([centred[None], centred - taken_away]), fold.products)


def _products(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    squares = rows.square().sum(1)
    return torch.stack([torch.linalg.vecdot(rows[first], rows[second]), squares[first], squares[second]])


# What rounding leaves of a square that a map takes away whole.
_ROUNDING = 1e-14


def _cosines(products: Tensor, before: Tensor | None = None) -> Tensor:
    """(..., p) of products (..., 3, p); 0 where a vector is mapped to zero, which has no direction."""
    ab, aa, bb = products.unbind(-2)
    least = 0.0 if before is None else _ROUNDING * before[1:]
    there = (products[..., 1:, :] > least).all(-2)
    return torch.where(there, ab / (aa * bb).clamp_min(torch.finfo(torch.float64).tiny).sqrt(), 0.0)
