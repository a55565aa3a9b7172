"""Estimates with their errors, judged together: bounds that hold for all of them, and p values.

One rate of false alarms holds for the whole family, by the distribution of the largest |t| of estimates that go
together as these do: layers of one model rise and fall together, and bounds for any family (Bonferroni's, Holm's) are
too wide for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cone_kernels.statistics.claims import ALPHA, Claim

# Draws that the distribution of the largest |t| is taken from, always the same ones: a quantile is right to 1 %.
_DRAWS, _TURNS, _SEED = 8192, 4096, 18

# Three groups of one size have two; of fewer, and of documents of which one is most of the corpus, no error is known.
_LEAST_DEGREES = 2 - 1e-9


@dataclass(frozen=True, eq=False)
class Estimates:
    """m estimates that are judged together; made by `of_jackknife`, and by differences of such.

    Attributes:
        values: (m,) float64.
        deviations: (m, B) float64: what each of B independent parts of the data adds to each; the squares of a row add
            up to the square of its standard error.
        degrees: (m,) float64: degrees of freedom of that error.
    """

    values: Tensor
    deviations: Tensor
    degrees: Tensor

    @classmethod
    def of_jackknife(cls, values: Tensor, left_out: Tensor, rows: Tensor) -> Estimates:
        """Those of a grouped jackknife.

        Args:
            values: (m,) the statistics.
            left_out: (m, G) each with group g left out.
            rows: (m, G) rows of each group. A group of many weighs more in the error than one of few, so the degrees
                of freedom are (Σn)²/Σn² − 1.

        Examples:
            >>> Estimates.of_jackknife(metrics.anisotropy(m), metrics.anisotropy(m, metrics.leave_one_out), m.count)
        """
        there = rows > 0
        groups = there.sum(1, keepdim=True).double()
        mean = torch.where(there, left_out, 0.0).sum(1, keepdim=True) / groups
        scale = torch.where(groups >= 2, ((groups - 1) / groups).clamp_min(0).sqrt(), torch.nan)
        n = rows.double()
        degrees = n.sum(1).square() / n.square().sum(1) - 1
        return cls(values, torch.where(there, (left_out - mean) * scale, 0.0 * scale), degrees)

    @classmethod
    def of_errors(cls, values: Tensor, stderrs: Tensor) -> Estimates:
        """Independent ones (m,) whose standard errors (m,) are known exactly."""
        return cls(values.double(), stderrs.double().diag(), torch.full_like(values, math.inf, dtype=torch.float64))

    @classmethod
    def of_influences(cls, values: Tensor, influences: Tensor, group: Tensor) -> Estimates:
        """Those of items that come in groups, each item with what it adds to the deviation of each statistic.

        Args:
            values: (m,) the statistics; one that is NaN has no error.
            influences: (m, n) float64, as `statistics.ranking` gives them.
            group: (n,) int64, from 0, of each item; the degrees of freedom are as in `of_jackknife`.

        Examples:
            >>> Estimates.of_influences(*ranking.auc(cosines, positive), premise).stderr
        """
        rows = torch.bincount(group).double()
        rows = rows[rows > 0]
        place = torch.unique(group, return_inverse=True)[1]
        sums = influences.new_zeros(len(values), len(rows)).index_add_(1, place, influences)
        sums = torch.where(values.isfinite()[:, None], sums - sums.mean(1, keepdim=True), 0.0)
        deviations = sums * math.sqrt(len(rows) / max(len(rows) - 1, 1))
        degrees = float(rows.sum().square() / rows.square().sum() - 1)
        return cls(values, deviations, torch.full_like(values, degrees))

    @property
    def stderr(self) -> Tensor:
        """(m,) the standard errors."""
        error: Tensor = self.deviations.norm(dim=1)
        return error

    def less(self, others: Estimates) -> Estimates:
        """The differences to other statistics of the same data: what both owe to it cancels."""
        degrees = self.degrees.minimum(others.degrees)
        return Estimates(self.values - others.values, self.deviations - others.deviations, degrees)

    def less_apart(self, others: Estimates) -> Estimates:
        """The differences to the same statistics of other data; degrees of freedom by Welch (1947)."""
        deviations = torch.cat([self.deviations, -others.deviations], 1)
        squares = [one.stderr.square() for one in (self, others)]
        total = squares[0] + squares[1]
        spread = squares[0].square() / self.degrees + squares[1].square() / others.degrees
        least = self.degrees.minimum(others.degrees)
        degrees = torch.where(spread > 0, total.square() / spread, least)
        return Estimates(self.values - others.values, deviations, degrees)

    def condensed(self) -> Estimates:
        """The same with m parts where there are more: of the same errors and correlations, and quicker to judge.

        Only all that are judged together, or whose differences are taken, may be condensed: the parts are their own.
        """
        if self.deviations.shape[1] <= len(self.values):
            return self
        return Estimates(self.values, torch.linalg.qr(self.deviations.mT, mode="r").R.mT, self.degrees)

    def at(self, which: Tensor) -> Estimates:
        """Those at these positions (k,)."""
        return Estimates(self.values[which], self.deviations[which], self.degrees[which])

    def sizes(self) -> Estimates:
        """Their absolute values."""
        signs = torch.where(self.values < 0, -1.0, 1.0)
        return Estimates(self.values * signs, self.deviations * signs[:, None], self.degrees)

    def pairs(self) -> Estimates:
        """Every one less every other that comes before it: (1, 0), (2, 0), (2, 1), ..."""
        m = len(self.values)
        later, earlier = torch.tril_indices(m, m, -1)
        return self.at(later).less(self.at(earlier))

    def bounds(self, alpha: float = ALPHA) -> Tensor:
        """(m,) half-widths of intervals that hold for all together at the rate 1 − alpha; NaN where no error is known.

        Args:
            alpha: how often one of them may be wrong.
        """
        largest = self._largest_t()
        factor = 1.0 if largest is None else float(largest.quantile(1 - alpha))
        return (factor * self.stderr).where(self._known, torch.nan)

    def claims(self, null: float = 0.0, margin: float = 0.0, alpha: float = ALPHA) -> list[Claim]:
        """A claim for each, all judged together.

        Args:
            null, margin: as those of a `Claim`.
            alpha: how often one of them may be wrong.
        """
        both = zip(self.values.tolist(), self.bounds(alpha).tolist(), strict=True)
        return [Claim(value, null, bound, margin) for value, bound in both]

    def p_values(self) -> Tensor:
        """(m,) two-sided, each of its own estimate being 0, by the t distribution; NaN where no error is known."""
        from scipy.special import stdtr

        t = self._t()
        p = torch.from_numpy(2 * stdtr(self.degrees.clamp(1, 1e9).numpy(), -t.abs().numpy()))
        return torch.where(self.values == 0, 1.0, p).where(self._known, torch.nan)

    def adjusted_p_values(self) -> Tensor:
        """(m,) the same for all together: how often the largest |t| would be as large. NaN where no error is known."""
        alone, t = self.p_values(), self._t().abs()
        several = int(alone.isfinite().sum())
        largest = self._largest_t()
        if largest is None:
            return alone
        beyond = (largest[:, None] >= t).sum(0)
        adjusted = (1 + beyond).double() / (1 + len(largest))  # of integers torch's default dtype would be taken
        # No draw goes as far as a t of 20; there Bonferroni's bound is the better one.
        adjusted = adjusted.clamp(alone, (several * alone).clamp_max(1))
        return torch.where(self.values == 0, 1.0, adjusted).where(self._known, torch.nan)

    @property
    def _known(self) -> Tensor:
        """(m,) bool: which have a value, and an error of some degrees of freedom: of fewer it says nothing."""
        return self.values.isfinite() & self.stderr.isfinite() & (self.degrees >= _LEAST_DEGREES)

    def _t(self) -> Tensor:
        return torch.where(self.values == 0, 0.0, self.values / self.stderr)

    def _largest_t(self) -> Tensor | None:
        """Draws of the largest |t| of all that have an error; None where none has."""
        error = self.stderr
        known = self._known & (error > 0)
        if not bool(known.any()):
            return None
        units = self.deviations[known] / error[known, None]  # (k, B)
        largest = (_normal(units.shape[1]) @ units.mT).abs().amax(1)
        degrees = float(self.degrees[known].min())
        return largest / _chi(max(int(degrees), 1)) if math.isfinite(degrees) else largest


def joined(several: Sequence[Estimates]) -> Estimates:
    """Estimates of the same parts of the data, as one family."""
    parts = zip(*((one.values, one.deviations, one.degrees) for one in several), strict=True)
    return Estimates(*(torch.cat(part) for part in parts))


@lru_cache(maxsize=8)
def _normal(columns: int) -> Tensor:
    """(draws, columns)"""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(_DRAWS, columns, dtype=torch.float64, generator=generator)


@lru_cache(maxsize=128)
def _chi(degrees: int) -> Tensor:
    """(draws,) of √(χ²/ν): its quantiles, spread evenly and in an order of their own."""
    from scipy.special import chdtri

    order = torch.randperm(_DRAWS, generator=torch.Generator().manual_seed(_SEED)).double()
    return (torch.from_numpy(chdtri(degrees, ((order + 0.5) / _DRAWS).numpy())) / degrees).sqrt()


def common_direction(sums: Tensor, rows: Tensor, alpha: float = ALPHA) -> list[Claim]:
    """Whether units point the same way on average, m families judged together: each claim is on their mean cosine.

    It is the mean cosine of rows of different groups, and its null is what turning whole groups around by chance would
    give: without a common direction that changes nothing (Chen & Qin 2010 standardise the same sum). The jackknife is
    no error here, for around 0 the mean cosine is no smooth function of the mean.

    Args:
        sums: (m, G, d) Σ u of each group.
        rows: (m, G) rows of each group.
        alpha: how often one of the claims may be "greater" by chance.

    Returns:
        m claims against 0; those of fewer than six groups, which have too few turns for this rate, are undecided.

    Examples:
        >>> [claim.verdict for claim in common_direction(state.sentence.unit_sum, state.sentence.count)]
    """
    there = (rows > 0).any(0)
    sums, rows = sums[:, there], rows[:, there]
    products = sums @ sums.mT  # (m, G, G)
    products = products - products.diagonal(dim1=1, dim2=2).diag_embed()
    n = rows.double()
    pairs = n.sum(1).square() - n.square().sum(1)
    signs = turns(rows.shape[1])
    spread = (2 * products.square().sum((1, 2))).sqrt()  # of the sum over all turns
    turned = torch.stack([((signs @ one) * signs).sum(1) for one in products], 1)  # (turns, m)
    scaled = torch.where(spread > 0, turned / spread, -torch.inf).amax(1)
    bounds = torch.full_like(pairs, math.nan)
    if len(signs) * alpha >= 1:
        bounds = float(scaled.quantile(1 - alpha, interpolation="higher")) * spread / pairs
    values = products.sum((1, 2)) / pairs
    return [Claim(value, 0.0, bound) for value, bound in zip(values.tolist(), bounds.tolist(), strict=True)]


@lru_cache(maxsize=8)
def turns(groups: int) -> Tensor:
    """(turns, groups) of ±1 that turn groups around by chance: all that differ, or as many as are drawn.

    The first one turns nothing around.
    """
    if groups <= 12:
        numbers = torch.arange(2 ** max(groups - 1, 0))
        return 1.0 - 2.0 * (numbers[:, None] >> torch.arange(groups) & 1).double()
    generator = torch.Generator().manual_seed(_SEED)
    signs = 1.0 - 2.0 * torch.randint(0, 2, (_TURNS, groups), generator=generator).double()
    signs[0] = 1.0
    return signs
