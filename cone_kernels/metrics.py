"""The geometry of the cone: pure functions of a state's sums, one value per layer.

Every function takes `Moments` and returns float64 of shape (L,) unless it says otherwise. A value that the data does
not define (a mean over no pair, say) is NaN, never 0, and nothing is clamped. `undefined_reason` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cone_kernels.names import GEOMETRY
from cone_kernels.ops.top_eigenvectors import top_eigenvectors
from cone_kernels.state.cone_state import ConeState, Moments
from cone_kernels.statistics.population import Population, population
from cone_kernels.sums import FOURTH_ORDER_FIELDS, jackknife_stderr, symmetric

_RANKME_EPSILON = 1e-7  # Garrido et al. 2023, equation 1
# The largest eigenvalue that rounding makes of zeros is of the size of the lowest, with its sign turned.
_ROUNDING_SPREAD = 3.0
# Of Σ‖x‖², what rounding leaves of the variance of rows that are alike.
_ROUNDING_OF_SUMS = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Totals:
    """Sums over groups; leading dimensions (L,), or (L, G) where each group in turn is left out."""

    count: Tensor
    unit_sum: Tensor  # (..., d)
    unit_sq: Tensor
    sentence_sq: Tensor | None
    sentence_size_sq: Tensor | None
    n_sentences: Tensor | None
    sentence_unit_sum: Tensor | None  # (..., d)
    n_cancelled: Tensor | None


def totals(moments: Moments) -> Totals:
    """The first-order sums over all groups."""
    return _totals(moments, lambda field, dim: field.sum(dim))


def leave_one_out(moments: Moments) -> Totals:
    """The first-order sums over all groups but one, for each group: (L, G, ...)."""
    return _totals(moments, lambda field, dim: field.sum(dim, keepdim=True) - field)


def leave_blocks_out(blocks: Tensor) -> Callable[[Moments], Totals]:
    """As `leave_one_out`, of blocks of groups.

    Args:
        blocks: (G,) int64 the block of each group, from 0; see `cone_kernels.sums.jackknife_blocks`.

    Examples:
        >>> anisotropy(state.sentence, leave_blocks_out(jackknife_blocks(state.sentence.count[0])))  # (L, B)
    """

    def combine(field: Tensor, dim: int) -> Tensor:
        return field.sum(dim, keepdim=True) - summed_by_block(field, blocks, dim)

    return lambda moments: _totals(moments, combine)


def summed_by_block(field: Tensor, blocks: Tensor, dim: int = 1) -> Tensor:
    """A sum by group, (L, G, ...) where `dim` is 1, by block: (L, B, ...)."""
    shape = list(field.shape)
    shape[dim] = int(blocks.max()) + 1
    return field.new_zeros(shape).index_add_(dim, blocks.to(field.device), field)


def anisotropy(moments: Moments, sums: Callable[[Moments], Totals] = totals) -> Tensor:
    """Mean cosine over distinct pairs of rows, A = (‖s‖² − q)/(n(n−1)); NaN for n < 2.

    Args:
        moments: the sums of L layers.
        sums: `totals`, or `leave_one_out`: the same with each group in turn left out, (L, G).

    Examples:
        >>> anisotropy(state.sentence)
        tensor([0.4929, 0.6958, ...], dtype=torch.float64)
    """
    return _anisotropy(sums(moments))


def anisotropy_stderr(moments: Moments) -> Tensor:
    """Grouped-jackknife standard error of `anisotropy`; NaN with fewer than two groups that are not empty."""
    return jackknife_stderr(_anisotropy(leave_one_out(moments)), moments.count > 0)


def within_sentence_cosine(moments: Moments) -> Tensor:
    """W: mean cosine over pairs of distinct tokens of one sentence. Token level only."""
    return _within(_token_totals(totals(moments)))


def between_sentence_cosine(moments: Moments) -> Tensor:
    """B: mean cosine over pairs of tokens of different sentences. Token level only."""
    return _between(_token_totals(totals(moments)))


def predicted_anisotropy(moments: Moments) -> Tensor:
    """What averaging alone does to the cone: the mean cosine of two sentences that are g = Σu of their tokens, exactly.

    A_avg = (‖Σ g/‖g‖‖² − n)/(n(n−1)) over the n sentences whose g has a direction. It differs from the anisotropy of
    means of tokens by what those owe to tokens of unlike length, since g takes each at length 1. NaN where no sentence
    has two tokens: then nothing is averaged. Token level only.
    """
    return _predicted(_token_totals(totals(moments)))


def within_stderr(moments: Moments) -> Tensor:
    """Grouped-jackknife standard error of `within_sentence_cosine`."""
    return jackknife_stderr(_within(_token_totals(leave_one_out(moments))), moments.count > 0)


def between_stderr(moments: Moments) -> Tensor:
    """Grouped-jackknife standard error of `between_sentence_cosine`."""
    return jackknife_stderr(_between(_token_totals(leave_one_out(moments))), moments.count > 0)


def predicted_anisotropy_stderr(moments: Moments) -> Tensor:
    """Grouped-jackknife standard error of `predicted_anisotropy`."""
    return jackknife_stderr(_predicted(_token_totals(leave_one_out(moments))), moments.count > 0)


def pooling_gap(state: ConeState) -> Tensor:
    """Sentence-level less token-level anisotropy."""
    return anisotropy(state.sentence) - anisotropy(state.token)


def pooling_gap_stderr(state: ConeState) -> Tensor:
    """Grouped-jackknife standard error of `pooling_gap`; a group is left out of both levels at once."""
    gap = _anisotropy(leave_one_out(state.sentence)) - _anisotropy(leave_one_out(state.token))
    return jackknife_stderr(gap, state.sentence.count > 0)


def first_order(state: ConeState, sums: Callable[[Moments], Totals] = totals) -> dict[str, Tensor]:
    """Every first-order statistic of a state, by name: the anisotropy at both levels (`sentence`, `token`), the pooling
    `gap`, and `within`, `between` and `predicted` of the token level.

    Args:
        state: the sums of L layers in G groups.
        sums: `totals`, or `leave_one_out`: the same with each group in turn left out.

    Returns:
        (L,) float64 each; (L, G) of `leave_one_out`.

    Examples:
        >>> first_order(state)["gap"]
        tensor([0.4079, 0.5381, ...], dtype=torch.float64)
    """
    tokens = sums(state.token)
    sentence, token = _anisotropy(sums(state.sentence)), _anisotropy(tokens)
    of_tokens = {"within": _within(tokens), "between": _between(tokens), "predicted": _predicted(tokens)}
    return {"sentence": sentence, "token": token, "gap": sentence - token, **of_tokens}


def contributions(moments: Moments) -> Tensor:
    """Each dimension's share of the anisotropy, c_j = (s_j² − Σu_j²)/(n(n−1)); (L, d), summing to A."""
    n = moments.count.sum(-1).double()
    own = moments.unit_sum.sum(1).square() - moments.unit_sq_sum  # (L, d)
    return own / _or_nan(n * (n - 1), n >= 2)[:, None]


def cosine_variance(moments: Moments) -> Tensor:
    """Variance of the cosine over distinct pairs, (‖U‖_F² − n)/(n(n−1)) − A². Needs `unit_second_moment`."""
    n = moments.count.sum(-1).double()
    squares = symmetric(moments.unit_second_moment).square().sum((-2, -1))
    return (squares - n) / _or_nan(n * (n - 1), n >= 2) - anisotropy(moments).square()


def mean_norm(moments: Moments) -> Tensor:
    """Mean length of the rows."""
    n = moments.count.sum(-1).double()
    return moments.norm_sum / _or_nan(n, n >= 1)


def norm_deviation(moments: Moments) -> Tensor:
    """Standard deviation of the lengths of the rows; NaN for n < 2."""
    n = moments.count.sum(-1).double()
    return _deviation(moments.norm_sum, moments.norm_sq_sum, n)


def deviations(moments: Moments) -> Tensor:
    """Standard deviation of each dimension over the rows, (L, d); NaN for n < 2.

    Examples:
        >>> deviations(state.sentence).mean(-1)  # falls towards 0 where vectors collapse onto one
        tensor([0.0411, 0.0384, ...], dtype=torch.float64)
    """
    n = moments.count.sum(-1).double()[:, None]
    return _deviation(moments.sum, moments.sq_sum, n)


def _deviation(total: Tensor, squares: Tensor, n: Tensor) -> Tensor:
    # Rounding can leave a sum of squares about the mean below zero.
    about_mean = (squares - total.square() / n).clamp_min(0)
    return (about_mean / _or_nan(n - 1, n >= 2)).sqrt()


def mean_vector(moments: Moments) -> Tensor:
    """Mean of the rows, (L, d)."""
    n = moments.count.sum(-1).double()
    return moments.sum / _or_nan(n, n >= 1)[:, None]


def covariance(moments: Moments, second_moment: Tensor | None = None) -> Tensor:
    """C = (Σxxᵀ − ttᵀ/n)/(n−1), (L, d, d); NaN for n < 2, 0 where all rows are alike. Needs `second_moment`.

    Args:
        moments: the sums of L layers.
        second_moment: their Σxxᵀ as a whole, (L, d, d), for a caller that has it at hand.
    """
    n = moments.count.sum(-1).double()[:, None, None]
    t = moments.sum
    whole = symmetric(moments.second_moment) if second_moment is None else second_moment
    centered: Tensor = whole - t[:, :, None] * t[:, None, :] / n
    # What is left of the difference of equal numbers has no shape.
    trace, of_whole = (matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] for matrix in (centered, whole))
    centered = torch.where(trace <= _ROUNDING_OF_SUMS * of_whole, 0.0, centered)
    return centered / _or_nan(n - 1, n >= 2)


def participation_ratio(covariances: Tensor) -> Tensor:
    """PR = (tr C)²/‖C‖_F², between 1 and d, of covariances (..., d, d)."""
    trace = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
    squares = covariances.square().sum((-2, -1))
    ratio: Tensor = trace.square() / _or_nan(squares, squares > 0)
    return ratio


def iso_score(covariances: Tensor) -> Tensor:
    """IsoScore (Rudman et al. 2022) of covariances (..., d, d): (PR − 1)/(d − 1), an identity; NaN for d = 1."""
    d = covariances.shape[-1]
    return (participation_ratio(covariances) - 1) / (d - 1 if d > 1 else math.nan)


def explained_variance_ratio(covariances: Tensor, values: Tensor) -> Tensor:
    """λ/tr C of eigenvalues (..., k) of covariances (..., d, d): (..., k)."""
    trace = covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
    ratio: Tensor = values / _or_nan(trace, trace > 0)[..., None]
    return ratio


def effective_rank(covariances: Tensor) -> Tensor:
    """exp(entropy of λ/Σλ) (Roy & Vetterli 2007) of covariances (..., d, d), by a full eigendecomposition.

    NaN for a covariance that is not defined, as that of one row.
    """
    defined = covariances.isfinite().flatten(-2).all(-1)
    return _or_nan(_effective_rank(_variances(covariances)), defined)


def _variances(covariances: Tensor) -> Tensor:
    # Rounding can leave an eigenvalue of a semidefinite matrix below zero; entropy takes 0 there.
    values: Tensor = torch.linalg.eigvalsh(covariances.nan_to_num(0.0)).clamp_min(0)
    return values


def _effective_rank(values: Tensor) -> Tensor:
    total = values.sum(-1, keepdim=True)
    p = values / _or_nan(total, total > 0)
    rank: Tensor = torch.special.entr(p).sum(-1).exp()
    return rank


def rank_me(moments: Moments) -> Tensor:
    """RankMe (Garrido et al. 2023, equation 1), from the min(n, d) uncentred singular values. Needs `second_moment`.

    What rounding leaves of a σ² that is 0 is as often below 0 as above it: values no larger than a few times the
    lowest, where that is negative, are taken for 0, for under the root they would add up.
    """
    return _rank_me(torch.linalg.eigvalsh(symmetric(moments.second_moment)), moments)


def _rank_me(squares: Tensor, moments: Moments) -> Tensor:
    """Of σ² (L, d), ascending."""
    rounding = _ROUNDING_SPREAD * -squares[..., :1].clamp_max(0)
    sigma = torch.where(squares > rounding, squares, 0.0).clamp_min(0).sqrt()
    total = sigma.sum(-1, keepdim=True)
    p = sigma / _or_nan(total, total > 0) + _RANKME_EPSILON
    d = squares.shape[-1]
    n = moments.count.sum(-1, keepdim=True)
    there = torch.arange(d, 0, -1, device=p.device) <= n  # the min(n, d) largest
    rank: Tensor = (-torch.where(there, p * p.log(), 0.0).sum(-1)).exp()
    return rank


@dataclass(frozen=True)
class Geometry:
    """How the vectors of a layer spread around their mean, from the second moment.

    The fields but the last are the names of `cone_kernels.names.GEOMETRY`.

    Attributes:
        participation_ratio: (tr C)²/‖C‖_F², between 1 and d.
        iso_score: IsoScore (Rudman et al. 2022), between 0 and 1.
        explained_variance_ratio: λ₁/tr C.
        effective_rank: exp of the entropy of λ/Σλ (Roy & Vetterli 2007).
        rank_me: RankMe (Garrido et al. 2023), from the uncentred singular values.
        population: what these rows say of all of their kind; the values above are of these rows, and grow with n.
    """

    participation_ratio: float
    iso_score: float
    explained_variance_ratio: float
    effective_rank: float
    rank_me: float
    population: Population = field(repr=False)

    @property
    def values(self) -> dict[str, float]:
        """The metrics by name."""
        return {name: getattr(self, name) for name in GEOMETRY}


def geometry(moments: Moments) -> Geometry | None:
    """The geometry of the one layer of `moments`; None for fewer than two rows. Needs `second_moment`.

    Examples:
        >>> geometry(state.sentence.select(6)).participation_ratio
        30.1...
    """
    moments = moments.on_cpu()
    n = int(moments.count.sum())
    if n < 2:
        return None
    second_moment = symmetric(moments.second_moment)
    matrix = covariance(moments, second_moment)  # (1, d, d)
    variances, squares = _variances(matrix), torch.linalg.eigvalsh(second_moment)
    sums = {name: getattr(moments, name)[0] for name in ("sum", *FOURTH_ORDER_FIELDS)}
    top = top_eigenvectors(covariance=matrix, k=1)
    return Geometry(
        participation_ratio=float(participation_ratio(matrix)),
        iso_score=float(iso_score(matrix)),
        explained_variance_ratio=float(explained_variance_ratio(matrix, top.values)),
        effective_rank=float(_effective_rank(variances)),
        rank_me=float(_rank_me(squares, moments)),
        population=population(matrix[0], second_moment[0], variances[0], squares[0], sums, n),
    )


def undefined_reason(moments: Moments, layer: int, rows: str | None = None) -> str | None:
    """Why the anisotropy of the layer at this position is NaN, or None where it is defined.

    Args:
        moments: of one level.
        layer: the position.
        rows: what they are called; None is "sentences" or "tokens", as the level is.
    """
    n = int(moments.count[layer].sum())
    left_out = int((moments.n_zero + moments.n_nonfinite)[layer].sum())
    if n >= 2:
        return None
    rows = rows or {"sentence": "sentences", "token": "tokens"}[moments.level]
    return f"{n} {rows} used ({left_out} left out as zero or not finite); a pair needs two"


def _totals(moments: Moments, combine: Callable[[Tensor, int], Tensor]) -> Totals:
    def of(name: str) -> Tensor | None:
        return combine(getattr(moments, name).double(), 1) if name in moments.fields else None

    return Totals(
        combine(moments.count.double(), 1),
        combine(moments.unit_sum, 1),
        combine(moments.unit_sq_total, 1),
        of("sentence_sq_sum"),
        of("sentence_size_sq_sum"),
        of("n_sentences"),
        of("sentence_unit_sum"),
        of("n_cancelled"),
    )


def _token_totals(sums: Totals) -> Totals:
    if sums.sentence_sq is None:
        raise ValueError(
            "moments: got the sentence level; it must be the token level, as cosines within sentences are of tokens"
        )
    return sums


def _or_nan(value: Tensor, defined: Tensor) -> Tensor:
    return torch.where(defined, value, torch.nan)


def _anisotropy(t: Totals) -> Tensor:
    pairs = t.count * (t.count - 1)
    return (t.unit_sum.square().sum(-1) - t.unit_sq) / _or_nan(pairs, t.count >= 2)


def _within(t: Totals) -> Tensor:
    assert t.sentence_sq is not None
    assert t.sentence_size_sq is not None
    pairs = t.sentence_size_sq - t.count
    return (t.sentence_sq - t.unit_sq) / _or_nan(pairs, pairs > 0)


def _between(t: Totals) -> Tensor:
    assert t.sentence_sq is not None
    assert t.sentence_size_sq is not None
    pairs = t.count.square() - t.sentence_size_sq
    return (t.unit_sum.square().sum(-1) - t.sentence_sq) / _or_nan(pairs, pairs > 0)


def _predicted(t: Totals) -> Tensor:
    assert t.sentence_size_sq is not None
    assert t.n_sentences is not None
    assert t.sentence_unit_sum is not None
    assert t.n_cancelled is not None
    n = t.n_sentences - t.n_cancelled
    defined = (n >= 2) & (t.sentence_size_sq > t.count)  # else no sentence has two tokens
    return (t.sentence_unit_sum.square().sum(-1) - n) / _or_nan(n * (n - 1), defined)
