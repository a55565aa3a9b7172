"""How far the choice of sentences turns the top axes of a covariance, and with that how alike two such subspaces are.

Leaving out a group of sentences changes a covariance by δC, and its top m eigenvectors v_i, to first order, by
Σ_j v_j (v_jᵀ δC v_i)/(λ_i − λ_j) over the others j. The subspace's projector P then moves by Y Vᵀ + V Yᵀ, Y (d, m). All
errors here are of these moves: the grouped jackknife without a decomposition for each group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_DRAWS, _SEED = 400, 18


@dataclass(frozen=True, eq=False)
class Space:
    """A subspace of m dimensions, and how each of G groups of sentences moves it.

    Attributes:
        basis: (d, m) orthonormal columns V.
        moves: (G, d, m) Y, at right angles to the basis, scaled so that the squares add up to those of the error.
    """

    basis: Tensor
    moves: Tensor

    @classmethod
    def of_mean(cls, sums: Tensor) -> Space:
        """The mean direction of units.

        Args:
            sums: (G, d) Σ u of each group that has some.
        """
        total, groups = sums.sum(0), len(sums)
        length = total.norm()
        direction = total / length
        moves = (sums - (sums @ direction)[:, None] * direction) / length
        scale = math.sqrt(groups / (groups - 1)) if groups > 1 else math.nan
        return cls(direction[:, None], scale * moves[:, :, None])


@dataclass(frozen=True, eq=False)
class SampledAxes:
    """The eigenvectors of a covariance, and what groups of its sentences do to the first k of them.

    Attributes:
        values: (d,) eigenvalues, descending.
        vectors: (d, d) eigenvectors, one a column.
        products: (G, d, k) v_jᵀ δC_g v_i, for group g, eigenvector j, and i below k; the groups' sum is 0.
        halves: (2, d, d) covariances of two halves of the sentences; None where there are no sentences to halve.
    """

    values: Tensor
    vectors: Tensor
    products: Tensor
    halves: Tensor | None

    @classmethod
    def of_rows(
        cls, covariance: Tensor, mean: Tensor, k: int, blocks: Iterable[tuple[Tensor, Tensor]], groups: int
    ) -> SampledAxes:
        """Those of vectors that can be read again.

        Args:
            covariance, mean: (d, d) and (d,) float64, of all vectors.
            k: how many axes.
            blocks: (rows (n, d), their groups (n,)).
            groups: how many there are, numbered from 0.
        """
        values, vectors = _descending(covariance)
        d = len(values)
        products = torch.zeros(groups, d, k, dtype=torch.float64)
        counts = torch.zeros(groups, dtype=torch.float64)
        sums = torch.zeros(2, d, dtype=torch.float64)
        squares = torch.zeros(2, d, d, dtype=torch.float64)
        for rows, numbers in blocks:
            along = (rows.double() - mean) @ vectors  # (n, d)
            counts += torch.bincount(numbers, minlength=groups)
            for group in sorted(set(numbers.tolist())):
                own = along[numbers == group]
                products[group] += own.mT @ own[:, :k]
                sums[group % 2] += own.sum(0)
                squares[group % 2] += own.mT @ own
        n, used = counts.sum(), int((counts > 0).sum())
        products = products / n - (counts / n)[:, None, None] * (values[:, None] * torch.eye(d)[:, :k])
        of_half = torch.stack([counts[at::2].sum() for at in (0, 1)])[:, None, None]
        centered = squares - sums[:, :, None] * sums[:, None, :] / of_half
        halves = vectors @ (centered / (of_half - 1)) @ vectors.mT if bool((of_half > 1).all()) else None
        scale = math.sqrt(used / (used - 1)) if used > 1 else math.nan
        return cls(values, vectors, products * scale, halves)

    @classmethod
    def of_covariance(cls, covariance: Tensor, n: int, k: int, groups: int) -> SampledAxes:
        """Those of n independent, normally distributed vectors of which the covariance alone is left: groups as chance
        would draw them."""
        values, vectors = _descending(covariance)
        generator = torch.Generator().manual_seed(_SEED)
        drawn = torch.randn(groups, len(values), k, dtype=torch.float64, generator=generator)
        spread = (values.clamp_min(0)[:, None] * values[:k].clamp_min(0) / (n * (groups - 1))).sqrt()
        return cls(values, vectors, (drawn - drawn.mean(0)) * spread, None)

    @property
    def groups(self) -> int:
        """How many groups have sentences."""
        return int((self.products.abs().amax((1, 2)) > 0).sum())

    def gap(self, m: int) -> float:
        """How far eigenvalue m + 1 lies below eigenvalue m, as a share of that; 1 where there is no further one."""
        if not float(self.values[m - 1]) > 0:
            return 0.0
        return 1 - float(self.values[m] / self.values[m - 1]) if m < len(self.values) else 1.0

    def space(self, m: int) -> Space:
        """The space of the first m axes."""
        gaps = self.values[:m] - self.values[m:, None]  # (d − m, m)
        return Space(self.vectors[:, :m], self.vectors[:, m:] @ (self.products[:, m:, :m] / gaps))

    def half_overlap(self, m: int) -> float:
        """The overlap of the top m axes of two halves of the sentences; NaN without halves."""
        if self.halves is None:
            return math.nan
        first, second = (_descending(half)[1][:, :m] for half in self.halves)
        return float((first.mT @ second).square().sum()) / m


@dataclass(frozen=True)
class Overlap:
    """How alike the spaces of the top m axes of two samples are: the mean squared cosine of their principal angles.

    Attributes:
        axes: m.
        value: tr(P_A P_B)/m, from 0 to 1; for m = 1 the squared cosine of the axes.
        corrected: the same with the noise of the sentences taken off, which pulls two samples of one space apart.
        stderr: the standard error of both.
        noise: the mean sin² between the two that the choice of sentences alone gives.
        degrees: degrees of freedom of the error.
    """

    axes: int
    value: float
    corrected: float
    stderr: float
    noise: float
    degrees: int


def compared_axes(a: SampledAxes, b: SampledAxes, k: int) -> int:
    """How many axes, from 1 to k, span spaces that are well apart from the rest: those of the largest eigengap.

    Args:
        a, b: of one width.
        k: at most so many; and no more than a quarter of the groups, for few vectors vary in few directions.
    """
    groups = min(one.groups for one in (a, b))
    most = max(1, min(k, groups // 4, len(a.values) - 1))
    return max(range(1, most + 1), key=lambda m: min(a.gap(m), b.gap(m)))


def overlap(a: Space, b: Space, paired: bool) -> Overlap:
    """The overlap of two spaces of one dimension m, with its error.

    Two noisy spaces have the overlap (1 − e_A)(1 − e_B)·O + 2c − c² on average, O being that of the spaces themselves,
    e the mean sin² that sampling turns each by, and c the part of it that turns both alike, 0 for other sentences.

    Args:
        a, b: of one width.
        paired: whether group g of the one has the same sentences as group g of the other.

    Examples:
        >>> overlap(SampledAxes.of_rows(...).space(2), SampledAxes.of_rows(...).space(2), paired=True).corrected
    """
    m, va, vb, ya, yb = a.basis.shape[1], a.basis, b.basis, a.moves, b.moves
    between = va.mT @ vb  # (m, m)
    value = float(between.square().sum()) / m
    slopes = 2 / m * (vb.mT @ ya * between.mT).sum((1, 2)), 2 / m * (va.mT @ yb * between).sum((1, 2))
    own = [torch.einsum("gdi,hdi->gh", y, y) / m for y in (ya, yb)]
    both = torch.einsum("gdi,hdi->gh", ya @ between, yb)
    both = (both + torch.einsum("gij,hji->gh", ya.mT @ vb, yb.mT @ va)) / m
    if paired:
        slope, kernel = slopes[0] + slopes[1], own[0] + own[1] - both - both.mT
        alike = float(both.trace())
    else:
        rows = torch.cat([own[0], -both], 1), torch.cat([-both.mT, own[1]], 1)
        slope, kernel, alike = torch.cat(slopes), torch.cat(rows), 0.0
    turns = [float(one.trace()) for one in own]
    alone = math.prod(1 - turn for turn in turns)
    corrected = (value - 2 * alike + alike**2) / alone if max(turns) < 1 else math.nan
    # The slopes at spaces that are off by noise themselves hold the squares of the noise twice; it counts once.
    squared = float(2 * (kernel.square().sum() - kernel.diagonal().square().sum()))
    stderr = math.sqrt(max(float(slope.square().sum()) - squared, squared))
    groups = min(int((one.moves.abs().amax((1, 2)) > 0).sum()) for one in (a, b))
    return Overlap(m, value, corrected, stderr, float(kernel.trace()), groups - 1)


@dataclass(frozen=True, eq=False)
class TopAxes:
    """The first eigenvectors of a covariance of n vectors; errors are those of independent, normal ones.

    Attributes:
        covariance: (d, d).
        values, vectors: (K,) and (K, d), one a row, descending.
        count: n.
    """

    covariance: Tensor
    values: Tensor
    vectors: Tensor
    count: int

    def gap(self, m: int) -> float:
        """As that of `SampledAxes`; 0 where the next eigenvalue is not among the first ones."""
        return 1 - float(self.values[m] / self.values[m - 1]) if m < len(self.values) else 0.0

    def turns(self, m: int) -> tuple[float, float]:
        """The mean sin² that sampling turns the first m axes by, at most, and the sum of squares of its parts.

        Axis i moves towards axis j by λ_i λ_j/(n (λ_i − λ_j)²) in sin² (Anderson 1963); the axes that are not known are
        taken to be as near as the last one that is.
        """
        first, others, rest = self.values[:m, None], self.values[None, m:], float(self.covariance.trace())
        near = first * others / (self.count * (first - others).square())
        slope = self.values[:m] / (self.count * (self.values[:m] - self.values[-1]).square())
        beyond = slope * max(rest - float(self.values.sum()), 0.0)
        squares = near.square().sum() + (beyond * slope * float(self.values[-1])).sum()
        return float(near.sum() + beyond.sum()) / m, float(squares) / m**2

    def slope(self, towards: Tensor, m: int) -> float:
        """The variance that sampling gives the overlap of the first m axes with a space (d, m), at most."""
        own = self.vectors[:m].mT  # (d, m)
        moved = towards @ (towards.mT @ own)
        moved = moved - own @ (own.mT @ moved)
        spread = (moved * (self.covariance @ moved)).sum(0)
        gaps = self.values[:m] - self.values[m]
        return float((4 / m**2 * self.values[:m] * spread / (self.count * gaps.square())).sum())


def top_axes_overlap(a: TopAxes, b: TopAxes, k: int) -> Overlap:
    """The overlap of as many top axes, at most k, as stand furthest apart from the rest, of two independent samples.

    Of the same sentences the error is no larger than that, for what turns both alike does not turn them apart.

    Args:
        a, b: of one width, each with more than k axes unless the width is k.
        k: at most so many.
    """
    most = max(1, min(k, len(a.values) - 1, len(b.values) - 1))
    m = max(range(1, most + 1), key=lambda m: min(a.gap(m), b.gap(m)))
    if min(len(one.values) for one in (a, b)) <= m or min(a.gap(m), b.gap(m)) <= 0:
        return Overlap(m, float((a.vectors[:m] @ b.vectors[:m].mT).square().sum()) / m, math.nan, math.nan, math.inf, 1)
    value = float((a.vectors[:m] @ b.vectors[:m].mT).square().sum()) / m
    turns, squares = zip(*(one.turns(m) for one in (a, b)), strict=True)
    slope = a.slope(b.vectors[:m].mT, m) + b.slope(a.vectors[:m].mT, m)
    # (τ_A + τ_B)² ≤ 2 (τ_A² + τ_B²), and the variance of a sum of squares is twice that.
    squared = 4 * sum(squares)
    corrected = value / math.prod(1 - turn for turn in turns) if max(turns) < 1 else math.nan
    stderr = math.sqrt(max(slope - squared, squared))
    return Overlap(m, value, corrected, stderr, sum(turns), min(a.count, b.count) - 1)


def drawn_overlaps(a: SampledAxes, b: SampledAxes, m: int) -> Tensor:
    """(draws,) overlaps of spaces of m directions drawn from the two covariances, independently: what chance gives to
    directions in which the vectors vary, closer than directions of the whole space."""
    generator = torch.Generator().manual_seed(_SEED)
    bases = []
    for one in (a, b):
        drawn = torch.randn(_DRAWS, len(one.values), m, dtype=torch.float64, generator=generator)
        bases.append(torch.linalg.qr(one.vectors @ (one.values.clamp_min(0).sqrt()[:, None] * drawn)).Q)
    found: Tensor = (bases[0].mT @ bases[1]).square().sum((1, 2)) / m
    return found


def _descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)
