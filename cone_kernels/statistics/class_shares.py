"""What each class of rows makes of a cone: its share of Σ cos over all pairs, and the cone without it.

For units u with S = Σu, q = Σ‖u‖² and those of a class c, S_c and q_c: ‖S‖² − q is the sum of the cosines of all
ordered pairs, of which ⟨S_c, S⟩ − q_c has a row of c first. The shares of the classes add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cone_kernels.statistics.estimates import Estimates
from cone_kernels.sums import cosine_of_sums

# A class of fewer groups has no error that is worth one: the few that have it tell little of how it varies.
LEAST_GROUPS = 8


@dataclass(frozen=True, eq=False)
class ClassShares:
    """Statistics of C classes, each (C,).

    Attributes:
        rows: int64, of each class.
        rows_share: of all rows.
        share: of the cosines of all pairs; without a cone to share this is noise.
        excess: share less rows_share: 0 on average where the rows of the class are like any others.
        within: mean cosine of two rows of the class.
        across: of one row of the class and one of another class.
        without: mean cosine of all other rows.
        opens: the mean cosine of all rows less that of all others.
    """

    rows: Tensor
    rows_share: Tensor
    share: Estimates
    excess: Estimates
    within: Estimates
    across: Estimates
    without: Estimates
    opens: Estimates


def class_shares(unit_sum: Tensor, unit_sq_total: Tensor, count: Tensor) -> ClassShares:
    """The statistics, with their errors by the grouped jackknife.

    Args:
        unit_sum: (C, G, d) float64, Σu of each class and group.
        unit_sq_total: (C, G) float64, Σ‖u‖².
        count: (C, G) int64, rows. An error of a class in fewer groups than `LEAST_GROUPS` is not known.

    Examples:
        >>> class_shares(*sums).share.values.sum()
        tensor(1., dtype=torch.float64)
    """
    whole = _statistics(unit_sum.sum(1), unit_sq_total.sum(1), count.sum(1))
    left_out = _statistics(*(_left_out(one) for one in (unit_sum, unit_sq_total, count)))
    rows = count.sum(0, keepdim=True).expand(len(count), -1)
    n = count.double()
    groups = n.sum(1).square() / n.square().sum(1)  # as many of one size have the same spread
    several = (groups >= LEAST_GROUPS) & ((count > 0).sum(1) >= LEAST_GROUPS)
    degrees = torch.where(several, groups - 1, 0.0)

    def estimates(name: str) -> Estimates:
        found = Estimates.of_jackknife(whole[name], left_out[name], rows)
        return replace(found, degrees=found.degrees.minimum(degrees))

    named = {field.name: estimates(field.name) for field in fields(ClassShares) if not field.name.startswith("rows")}
    total = count.sum(1)
    return ClassShares(total, total.double() / total.sum(), **named)


def _left_out(sums: Tensor) -> Tensor:
    return sums.sum(1, keepdim=True) - sums


def _statistics(s: Tensor, q: Tensor, n: Tensor) -> dict[str, Tensor]:
    """Of Σu (C, ..., d), Σ‖u‖² (C, ...) and rows (C, ...); each (C, ...)."""
    every, every_q, every_n = s.sum(0), q.sum(0), n.sum(0)
    pairs = every.square().sum(-1) - every_q
    with_all = (s * every).sum(-1)
    share = (with_all - q) / torch.where(pairs == 0, torch.nan, pairs)
    crossing = (n * (every_n - n)).double()
    across = (with_all - s.square().sum(-1)) / torch.where(crossing > 0, crossing, torch.nan)
    without = cosine_of_sums(every - s, every_q - q, every_n - n)
    return {
        "share": share,
        "excess": share - n.double() / every_n,
        "within": cosine_of_sums(s, q, n),
        "across": across,
        "without": without,
        "opens": cosine_of_sums(every, every_q, every_n) - without,
    }
