"""What the geometry of n rows says of all rows of their kind: estimates corrected for n, and what an entropy lacks.

The covariance of n rows has fewer directions than that of all: its participation ratio, IsoScore, effective rank and
RankMe grow with n. The first two are ratios of (tr C)² and ‖C‖²_F, which have unbiased estimates whatever the rows'
distribution. The entropies have none; their first-order bias says how much is missing at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cone_kernels.statistics.claims import Claim
from cone_kernels.statistics.estimates import Estimates

SMALL = 0.05
"""A part of a rank that may be missing where the rank is still called that of the model."""

# What is missing is 1.0 to 1.4 times the first-order bias where that is below SMALL: on the seven layers of
# all-MiniLM-L6-v2, n = 1000 to 4000 of 12,982 sentences (docs/how_many_sentences.md).
_HIGHER_ORDERS = 0.4

# Of fewer rows an error says nothing: on those layers half of the 95% intervals of n = 5 held the truth, of 20 and more
# 0.78 to 1.
_LEAST_ROWS = 20

# Of Σ‖x‖⁴, what must be left after the mean is taken off: less is mostly the rounding of a mean far from zero.
_LEFT_OF_QUARTIC = 1e-9
# Eigenvalues closer than this, of their sum, are taken for equal in a divided difference.
_EQUAL = 1e-6
_ZERO = 1e-13


@dataclass(frozen=True)
class Population:
    """What n rows say of all rows of their kind, where rows are independent.

    Attributes:
        count: n.
        participation_ratio, participation_ratio_stderr: unbiased estimates of (tr C)² over ‖C‖²_F (Himeno & Yamada
            2014) and the standard error of their ratio; NaN of fewer than 20 rows, and where the error is as large.
        iso_score, iso_score_stderr: the same of IsoScore, (PR − 1)/(d − 1).
        effective_rank_lack, rank_me_lack: the logarithm of how many times the rank of all rows is that of these, to the
            first order in 1/n, which is less than the truth.
    """

    count: int
    participation_ratio: float = math.nan
    participation_ratio_stderr: float = math.nan
    iso_score: float = math.nan
    iso_score_stderr: float = math.nan
    effective_rank_lack: float = math.nan
    rank_me_lack: float = math.nan

    def lack(self, rank: str) -> Claim:
        """Whether more than 5% is missing of `effective_rank` or `rank_me`: greater, equal (less) or undecided.

        Of fewer than 20 rows it is undecided, for their own spectrum says little of what it lacks.
        """
        lack = float(getattr(self, f"{rank}_lack"))
        bound = _HIGHER_ORDERS * lack if self.count >= _LEAST_ROWS else math.inf
        return Claim(lack, null=0.0, bound=bound, margin=SMALL)

    def needed(self, rank: str) -> int | None:
        """As many rows, at least, as would be enough for that rank; None where it has none, or these are enough."""
        claim = self.lack(rank)
        if not math.isfinite(claim.estimate) or claim.verdict == "equal":
            return None
        if self.count < _LEAST_ROWS:
            return _LEAST_ROWS
        return math.ceil(self.count * claim.estimate * (1 + _HIGHER_ORDERS) / SMALL)

    def to_dict(self) -> dict[str, Any]:
        """The estimates as JSON data; of a rank, what it `lacks` at least and whether it is of `enough` rows."""
        ranks = {name: self.lack(name) for name in ("effective_rank", "rank_me")}
        return {
            "count": self.count,
            "participation_ratio": _estimate(self.participation_ratio, self.participation_ratio_stderr),
            "iso_score": _estimate(self.iso_score, self.iso_score_stderr),
            **{
                name: {
                    "lacks": 1 - math.exp(-claim.estimate) if math.isfinite(claim.estimate) else None,
                    "enough": {"equal": "yes", "greater": "no"}.get(claim.verdict, "undecided"),
                }
                for name, claim in ranks.items()
            },
        }


def population(
    covariance: Tensor, second_moment: Tensor, values: Tensor, squares: Tensor, sums: dict[str, Tensor], count: int
) -> Population:
    """What one layer's rows say of all of their kind.

    Args:
        covariance: (d, d) C of the rows.
        second_moment: (d, d) Σ x xᵀ, whole.
        values, squares: (d,) the eigenvalues of both.
        sums: `sum`, `cubic_sum` (d,) and `quartic_sum` () of the rows.
        count: n, two or more.

    Examples:
        >>> metrics.geometry(state.sentence.select(6)).population.participation_ratio
        65.3...
    """
    ratio, stderr = _participation_ratio(covariance, values, _fourth_power(second_moment, sums, count), count)
    d = len(covariance)
    return Population(
        count,
        ratio,
        stderr,
        (ratio - 1) / (d - 1) if d > 1 else math.nan,
        stderr / (d - 1) if d > 1 else math.nan,
        _lack_of_effective_rank(values, count),
        _lack_of_rank_me(squares, count),
    )


def _fourth_power(second_moment: Tensor, sums: dict[str, Tensor], count: int) -> float:
    """Σ‖x − m‖⁴; NaN where rounding is much of it."""
    mean = sums["sum"] / count
    length = float(mean.square().sum())
    total = float(sums["quartic_sum"]) - 4 * float(mean @ sums["cubic_sum"])
    total += 2 * length * float(second_moment.trace()) + 4 * float(mean @ second_moment @ mean)
    total -= 3 * count * length**2
    return total if total > _LEFT_OF_QUARTIC * float(sums["quartic_sum"]) else math.nan


def _participation_ratio(covariance: Tensor, values: Tensor, fourth: float, n: int) -> tuple[float, float]:
    """The ratio of unbiased estimates and its standard error; NaN both where they do not tell it from 0."""
    if n < _LEAST_ROWS or not math.isfinite(fourth):
        return math.nan, math.nan
    trace, squares = float(covariance.trace()), float(covariance.square().sum())
    mean = fourth / (n - 1)
    scale = (n - 1) / (n * (n - 2) * (n - 3))
    unbiased_squares = scale * ((n - 1) * (n - 2) * squares + trace**2 - n * mean)
    unbiased_trace = scale * (2 * squares + (n * n - 3 * n + 1) * trace**2 - n * mean)
    if not (unbiased_squares > 0 and unbiased_trace > 0):
        return math.nan, math.nan
    ratio = unbiased_trace / unbiased_squares
    # Of elliptical rows: kurtosis is E‖y‖⁴ over what it is of normal ones.
    kurtosis = mean * n / (n - 1) / (unbiased_trace + 2 * unbiased_squares)
    cubes, fourths = float(values.pow(3).sum()), float(values.pow(4).sum())
    first = squares / trace**2 + fourths / squares**2 - 2 * cubes / (trace * squares)
    variance = 8 * kurtosis / n * max(first, 0.0) + 2 * max(3 * kurtosis**2 - 1, 0.0) / (n - 1) ** 2
    stderr = ratio * math.sqrt(variance)
    (claim,) = Estimates.of_errors(torch.tensor([ratio]), torch.tensor([stderr])).claims()
    return (ratio, stderr) if claim.verdict == "greater" else (math.nan, math.nan)


def _lack_of_effective_rank(values: Tensor, n: int) -> float:
    """First-order bias of the entropy of λ/Σλ, its sign turned; rows are taken for normal ones."""
    total = values.sum()
    if not bool(total > 0):
        return math.nan
    p = values / total
    p = p[p > _ZERO]
    entropy = torch.special.entr(p).sum()
    # Of log Σλ − Σλ log λ/Σλ, that of the sum, and that of its quotient by a total that differs from sample to sample.
    of_sum = _first_order(p, -p.log(), lambda middle: -1 / middle)
    of_total = 2 * (p.square() * (1 + 2 * entropy + 2 * p.log())).sum()
    return float(-(of_sum + of_total) / (2 * n))


def _lack_of_rank_me(squares: Tensor, n: int) -> float:
    """The same of σ/Σσ, of σ² whose own noise is that of λ."""
    sigma = squares.clamp_min(0).sqrt()
    total = sigma.sum()
    if not bool(total > 0):
        return math.nan
    p = sigma / total
    p = p[p > math.sqrt(_ZERO)]
    entropy = torch.special.entr(p).sum()

    # By σ², where Σσ is 1: the derivative of (1 − H)σ − σ log σ is (−H − log σ)/2σ; this is the derivative of that.
    def slope(of: Tensor) -> Tensor:
        root = of.sqrt()
        second: Tensor = (entropy + root.log() - 1) / (4 * root**3)
        return second

    of_sum = _first_order(p.square(), (-entropy - p.log()) / (2 * p), slope)
    of_total = (p.square() * (0.5 + entropy + p.log())).sum()
    return float(-(of_sum + of_total) / (2 * n))


def _first_order(values: Tensor, derivative: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
    """2n times what Σf of a sample covariance is above that of all rows, from f' and f'' of the eigenvalues.

    Σ λᵢλⱼ (f'ᵢ − f'ⱼ)/(λᵢ − λⱼ) + Σ λᵢ² f''ᵢ, for an entry of the sample covariance has the variance λᵢλⱼ/n, twice
    that on the diagonal.
    """
    apart, sums = values[:, None] - values, values[:, None] + values
    equal = apart.abs() < _EQUAL * sums
    quotient = (derivative[:, None] - derivative) / apart.where(~equal, 1.0)
    quotient = torch.where(equal, slope(sums / 2), quotient)
    return (values[:, None] * values * quotient).sum() + (values.square() * slope(values)).sum()


def _estimate(value: float, stderr: float) -> dict[str, float | None]:
    known = math.isfinite(value)
    return {"value": value if known else None, "stderr": stderr if known else None}
