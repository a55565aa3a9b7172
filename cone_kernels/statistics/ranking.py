"""How well scores order what is labelled, and what each item adds to the error: AUC, Spearman, MRR and recall@k.

Each statistic comes with the influence of every item: what it adds to the statistic's deviation from its true value, to
first order. Influences of items that belong together add up, and the squares of such sums make the error (for the AUC
Obuchowski 1997, which is DeLong's where every item stands alone; for Spearman's correlation Croux and Dehon 2010).
"""

from __future__ import annotations

import torch
from torch import Tensor


def auc(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """The probability that a positive item scores above a negative one, ties counted half.

    Args:
        scores: (m, n) float64: m scores of n items.
        positive: (n,) bool.

    Returns:
        (m,) and the influences (m, n); NaN and zeros where all items are of one kind.

    Examples:
        >>> auc(torch.tensor([[0.1, 0.4, 0.35, 0.8]]), torch.tensor([False, False, True, True]))[0]
        tensor([0.7500], dtype=torch.float64)
    """
    kind = positive.double()
    n_positive, n_negative = float(kind.sum()), float((1 - kind).sum())
    if not n_positive or not n_negative:
        return _undefined(scores)
    below = 1 - above(scores, (1 - kind).expand(scores.shape)) / n_negative  # of a positive item: the negative ones
    beyond = above(scores, kind.expand(scores.shape)) / n_positive  # of a negative item: the positive ones
    value = (below * kind).sum(1) / n_positive
    own = torch.where(positive, (below - value[:, None]) / n_positive, (beyond - value[:, None]) / n_negative)
    return value, own


def spearman(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Spearman's rank correlation, ties at their middle rank.

    Args:
        scores: (m, n) float64.
        labels: (n,) float64.

    Returns:
        (m,) and the influences (m, n); NaN and zeros where the labels, or some scores, are all alike.
    """
    x, y = scores.double(), labels.double()[None]
    u, v = (0.5 - above(one, torch.ones_like(one)) / x.shape[1] for one in (x, y))
    above_x, above_y = above(x, u), above(y, v)
    y, v, above_y = (one.repeat(len(x), 1) for one in (y, v, above_y))  # the labels are ranked once for all scores
    covariance, of_covariance = _rank_covariance(u * v, above(x, v) + above(y, u))
    (of_x, own_x), (of_y, own_y) = _rank_covariance(u * u, 2 * above_x), _rank_covariance(v * v, 2 * above_y)
    scale = (of_x * of_y).sqrt()
    value = torch.where(scale > 0, covariance / scale, torch.nan)
    own = of_covariance / scale - value / 2 * (own_x / of_x + own_y / of_y)
    return value[:, 0], torch.where(scale > 0, own / scores.shape[1], 0.0)


def mean(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of scores (m, n) and the influences (m, n)."""
    value = scores.double().mean(1)
    return value, (scores - value[:, None]) / scores.shape[1]


def above(scores: Tensor, weights: Tensor) -> Tensor:
    """For each item the weights of those that score above it, and half of those that score as it does.

    Args:
        scores: (m, n).
        weights: (m, n) float64.

    Returns:
        (m, n) float64.

    Examples:
        >>> above(torch.tensor([[0.1, 0.5, 0.5]]), torch.ones(1, 3, dtype=torch.float64))
        tensor([[2.5000, 1.0000, 1.0000]], dtype=torch.float64)
    """
    found = torch.empty(scores.shape, dtype=torch.float64)
    for at, (row, own) in enumerate(zip(scores, weights, strict=True)):
        values, place = torch.unique(row, return_inverse=True)
        at_value = torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, own.double())
        beyond = at_value.flip(0).cumsum(0).flip(0) - at_value / 2
        found[at] = beyond[place]
    return found


def reciprocal_ranks(ranks: Tensor, query: Tensor, queries: int) -> Tensor:
    """(queries,) one over the rank of the relevant text that comes first.

    Args:
        ranks: (r,) the rank of each relevant text among all candidates of its query, from 1.
        query: (r,) int64, whose it is.
        queries: how many there are; each has one relevant text at least.
    """
    first = torch.full((queries,), torch.inf, dtype=torch.float64)
    found: Tensor = 1 / first.scatter_reduce(0, query, ranks.double(), "amin")
    return found


def recall(ranks: Tensor, query: Tensor, queries: int, k: int) -> Tensor:
    """(queries,) the share of a query's relevant texts that are among its first k; arguments as `reciprocal_ranks`."""
    hits = torch.zeros(queries, dtype=torch.float64).index_add_(0, query, (ranks <= k).double())
    return hits / torch.bincount(query, minlength=queries)


def of_queries(measure: str, ranks: Tensor, query: Tensor, queries: int) -> Tensor:
    """(queries,) by "mrr" or "recall@K"; other arguments as `reciprocal_ranks`."""
    if measure == "mrr":
        return reciprocal_ranks(ranks, query, queries)
    return recall(ranks, query, queries, int(measure.removeprefix("recall@")))


def ranks_of(similarities: Tensor, relevant: Tensor) -> Tensor:
    """The rank (b,), from 1, of one candidate of each query among all; those as similar as it count half.

    Args:
        similarities: (b, c) of each query to each candidate; -inf for one that is none.
        relevant: (b,) int64 the candidate.
    """
    own = similarities.gather(1, relevant[:, None])
    higher = (similarities > own).sum(1, dtype=torch.float64)
    return 1 + higher + ((similarities == own).sum(1, dtype=torch.float64) - 1) / 2


def _rank_covariance(products: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance (m, 1) of the relative ranks of two variables, and n times its influences (m, n).

    An item adds its own product, and it shifts the ranks of all that are above it.

    Args:
        products: (m, n) of both ranks of each item.
        beyond: (m, n) for each item the sum of either's ranks over all items that the other one has above it.
    """
    shifts = beyond / products.shape[1]
    value = products.mean(1, keepdim=True)
    return value, products - value + shifts - shifts.mean(1, keepdim=True)


def _undefined(scores: Tensor) -> tuple[Tensor, Tensor]:
    return scores.new_full((len(scores),), torch.nan, dtype=torch.float64), torch.zeros_like(
        scores, dtype=torch.float64
    )
