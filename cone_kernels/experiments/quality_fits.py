"""The methods that quality is judged of, fitted on some folds of the texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from cone_kernels import metrics
from cone_kernels.centering import Centering
from cone_kernels.experiments.held_out import FOLDS
from cone_kernels.experiments.quality_scores import LayerScores, PairItems
from cone_kernels.names import QUALITY_METHODS, CenteringMethod
from cone_kernels.state.cone_state import Moments

# How many directions all-but-the-top may project out; cross-validation chooses among these.
COMPONENTS = (1, 2, 3, 5, 8, 12, 20)
_PART = 0.5  # of the mean that partial mean removal takes away

Fits = dict[str, "Centering | str"]
"""For each method of `QUALITY_METHODS` its fit; or why there is none, in words."""


@dataclass(frozen=True)
class Settings:
    """What was asked for of the methods; None finds it.

    Attributes:
        components: of all-but-the-top; else found by cross-validation.
        shrinkage: of whitening; else the oracle approximating shrinkage.
        chosen: the components for each fold, where they have been found before.
    """

    components: int | None = None
    shrinkage: float | None = None
    chosen: tuple[int | None, ...] | None = None


class LayerFits:
    """Fits on the folds of one layer's vectors.

    Args:
        items: say which text is in which fold.
        rows: (n, d) the vectors of all texts.
        layer: scores them.
        settings: of the methods.
    """

    def __init__(self, items: PairItems, rows: Tensor, layer: LayerScores, settings: Settings) -> None:
        self._items, self._rows, self._layer, self._settings = items, rows, layer, settings
        self._sums = [moments_of(rows[items.text_fold == number]) for number in range(FOLDS)]

    def of_others(self) -> list[Fits]:
        """For each fold the methods fitted on the texts of all other folds."""
        return [fits_of(self._without(fold), k, self._settings.shrinkage) for fold, k in enumerate(self.components)]

    def of_some(self, size: int) -> list[Fits] | None:
        """As `of_others`, on so many texts of the other folds, drawn by chance; None where there are not so many."""
        found = []
        for fold, k in enumerate(self.components):
            others = self._others(fold).nonzero()[:, 0]
            if size > len(others):
                return None
            generator = torch.Generator().manual_seed(fold)
            some = others[torch.randperm(len(others), generator=generator)[:size]]
            found.append(fits_of(moments_of(self._rows[some]), k and min(k, size - 1), self._settings.shrinkage))
        return found

    @property
    def fitted_on(self) -> int:
        """Texts that the smallest fit of `of_others` is of."""
        return min(int(self._others(fold).sum()) for fold in range(FOLDS))

    @cached_property
    def components(self) -> tuple[int | None, ...]:
        """For each fold how many directions all-but-the-top projects out: what was asked for, or what serves best on
        the other folds, each tested after a fit on the rest; None where nothing can be fitted."""
        if self._settings.chosen is not None:
            return self._settings.chosen
        if self._settings.components is not None:
            return (self._settings.components,) * FOLDS
        worth = torch.zeros(FOLDS, len(COMPONENTS), dtype=torch.float64)
        for pair in combinations(range(FOLDS), 2):
            top = _top(self._without(*pair), None)
            if isinstance(top, str):
                return (None,) * FOLDS
            choices = [k for k in COMPONENTS if k <= (top.components or 0)]
            for tested, other in (pair, pair[::-1]):
                scores = self._layer.by_components(tested, top, choices)
                worth[other, : len(choices)] += self._items.values(scores, tested)
                worth[other, len(choices) :] = torch.nan
        return tuple(COMPONENTS[at] for at in worth.nan_to_num(-torch.inf).argmax(1).tolist())

    def _others(self, fold: int) -> Tensor:
        return (self._items.text_fold >= 0) & (self._items.text_fold != fold)

    def _without(self, *folds: int) -> Moments:
        """The sums of all other folds."""
        first, *others = (part for number, part in enumerate(self._sums) if number not in folds)
        for part in others:
            first = first.merge(part)
        return first


def fits_of(moments: Moments, components: int | None, shrinkage: float | None) -> Fits:
    """Every method of `QUALITY_METHODS`, fitted on the sums of one layer.

    Args:
        moments: with second moments; without them the means alone can be fitted.
        components: of all-but-the-top; None takes the default of `Centering.fit`.
        shrinkage: of whitening; None is the oracle approximating shrinkage.

    Examples:
        >>> fits_of(measurement.moments(6), components=3, shrinkage=None)["whitening"]
        Centering(whitening with shrinkage 0.0195, 384 wide, layer 6, from 1,000 sentences)
    """
    mean = _fitted(moments, "mean")
    top = _top(moments, components)
    first: Centering | str = top
    gap: Centering | str = top
    if isinstance(top, Centering):
        first = first_of(top, components or max(1, moments.dim // 100))
        gap = first_of(top, _by_gap(top, moments))
    found: Fits = {
        "mean": mean,
        "partial-mean": mean if isinstance(mean, str) else replace(mean, mean=_PART * mean.mean),
        "all-but-the-top": first,
        "all-but-the-top-eigengap": gap,
        "whitening": _fitted(moments, "whitening", shrinkage=shrinkage),
    }
    return {method: found[method] for method in QUALITY_METHODS}


def moments_of(rows: Tensor) -> Moments:
    """The sums of vectors (n, d), with second moments; those that are zero or not finite are left out."""
    moments = Moments.empty("sentence", [0], rows.shape[1], second_moment=True)
    moments.update(rows)
    return moments


def first_of(top: Centering, k: int) -> Centering:
    """All-but-the-top that projects out the first k of the directions of another."""
    assert top.directions is not None
    return replace(top, directions=top.directions[:k])


def _fitted(moments: Moments, method: CenteringMethod, **options: Any) -> Centering | str:
    try:
        return Centering.fit(moments, method=method, **options)
    except ValueError as error:
        return str(error)


def _top(moments: Moments, components: int | None) -> Centering | str:
    """All-but-the-top of as many directions as anything here asks for."""
    # Of n rows no more than n - 1 directions vary.
    most = min(COMPONENTS[-1], moments.dim // 2, int(moments.count.sum()) - 1)
    return _fitted(moments, "all-but-the-top", components=max(most, components or 1))


def _by_gap(top: Centering, moments: Moments) -> int:
    """After how many directions the variance falls by the largest factor."""
    directions = top.directions
    assert directions is not None
    variances = ((directions @ metrics.covariance(moments)[0]) * directions).sum(1)
    return 1 if len(variances) < 2 else 1 + int((variances[:-1] / variances[1:]).nan_to_num(0.0, 0.0).argmax())
