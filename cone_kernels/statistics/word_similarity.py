"""Ethayarajh's measures (2019) of how far the vectors of a word depend on its sentence."""

from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels.statistics.estimates import Estimates

# How often drawn tokens are cut into parts of as many as a word has.
_CUTS, _SEED = 4, 18


def explained_variance(rows: Tensor) -> Tensor:
    """(...,) the share σ₁²/Σσ² of the first of the singular values of rows (..., m, d), which are not centred.

    Examples:
        >>> explained_variance(torch.ones(5, 3, dtype=torch.float64))
        tensor(1., dtype=torch.float64)
    """
    squares = torch.linalg.eigvalsh(rows @ rows.mT)  # (..., m)
    share: Tensor = squares[..., -1] / squares.sum(-1)
    return share


def explained_variance_of_drawn(pool: Tensor, m: int) -> tuple[float, float]:
    """The same of m rows drawn from a pool (n, d) of m or more, on average, and the standard error of that.

    The pool is cut into parts of m several times. Parts of one cut have no row in common, so their spread tells the
    error of a cut; that of the mean over the cuts is no larger.
    """
    n = len(pool) // m
    parts = torch.stack([_permutation(len(pool), seed)[: n * m].reshape(n, m) for seed in range(_CUTS)])
    found = explained_variance(pool[parts])  # (cuts, n)
    return float(found.mean()), float(found.var(1).mean().sqrt()) / n**0.5


def intra_sentence_similarity_of_drawn(pool: Tensor, sizes: Tensor) -> Tensor:
    """(s,) mean cosine of tokens with their mean, of sentences of s sizes whose tokens are drawn from a pool (n, d).

    A sentence of more tokens than the pool has takes all of them.
    """
    order = torch.stack([_permutation(len(pool), seed) for seed in range(len(sizes))])  # (s, n)
    chosen = (order < sizes[:, None]).double()
    total, units = chosen @ pool, chosen @ torch.nn.functional.normalize(pool, dim=1)
    similarity: Tensor = torch.nn.functional.normalize(total, dim=1).mul(units).sum(1) / chosen.sum(1)
    return similarity


def over_words(values: Tensor) -> Estimates:
    """The means of statistics (L, W) over W words, which were drawn: the error is that of the draw.

    One word's vectors at all layers go together, so all layers have the same parts. A word with NaN at a layer is left
    out of it.
    """
    there = values.isfinite()
    means = torch.where(there, values, 0.0).sum(1) / there.sum(1)
    words = there.sum(1, keepdim=True)
    deviations = torch.where(there, values - means[:, None], 0.0) / (words * (words - 1)).double().sqrt()
    return Estimates(means, deviations, (words[:, 0] - 1).double())


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(_SEED + seed))
