"""The top axes of some vectors, from their sums, and the rows that lie furthest along them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.axes import Axes
    from cone_kernels.state.cone_state import Moments
    from cone_kernels.statistics.extremes import Extremes

# A variance below this share of the squared mean is what rounding leaves of equal vectors, and one below this share of
# the largest is what it leaves where there is none: the products of float32 vectors are summed in float32 blocks.
_ROUNDING, _UNRESOLVED = 1e-13, 1e-7


@dataclass(frozen=True, eq=False)
class SolvedAxes:
    """The k top eigenvectors of a covariance, width d; all float64.

    Attributes:
        found: as `cone_kernels.axes.axes` gives them.
        mean: (d,) of the vectors.
        eigenvalues, explained_variance_ratios, residuals, eigengaps: one for each axis; the last gap is NaN where there
            is no further axis.
        flat: whether nothing varies along an axis that the sums resolve.
    """

    found: Axes
    mean: Tensor
    eigenvalues: list[float]
    explained_variance_ratios: list[float]
    residuals: list[float]
    eigengaps: list[float]
    flat: list[bool]

    @property
    def directions(self) -> Tensor:
        """(k, d) one axis a row, at length 1."""
        directions: Tensor = self.found.centered.vectors[0]
        return directions

    def numbers(self, at: int) -> dict[str, float]:
        """Those of one axis, by the names that a component has for them."""
        return {
            "eigenvalue": self.eigenvalues[at],
            "explained_variance_ratio": self.explained_variance_ratios[at],
            "residual": self.residuals[at],
            "eigengap": self.eigengaps[at],
        }

    def reasons(self, vectors: str) -> list[str]:
        """A sentence for each number that is not defined.

        Args:
            vectors: what they are called, such as "the sentence vectors".
        """
        reasons = []
        for number in [at for at, is_flat in enumerate(self.flat, start=1) if is_flat]:
            reasons.append(f"nothing varies along axis {number} that the sums resolve: its direction is arbitrary")
        if math.isnan(self.eigengaps[-1]):
            reasons.append(f"the eigengap of axis {len(self.eigengaps)} is not defined: there is no further axis")
        if math.isnan(float(self.found.centered_mean_cosine)):
            reasons.append(f"the angles to the mean direction are not defined: the mean of {vectors} is zero")
        if not bool(self.found.centered.converged):
            reasons.append("the axes are not determined to 1e-8 of the largest eigenvalue; see the residuals")
        return reasons


def solved_axes(moments: Moments, k: int, source: str, vectors: str, where: str = "") -> SolvedAxes:
    """The top k axes of the one layer of these sums, which have second moments.

    Args:
        moments: the sums.
        k: how many.
        source: what messages name, such as "corpus".
        vectors: what the vectors are called there, such as "sentence vectors".
        where: of a model they are, such as " at layer 6".

    Raises:
        ValueError: there are too few vectors for k axes, or they are all the same.

    Examples:
        >>> solved_axes(state.output, 2, "vectors", "vectors").explained_variance_ratios
    """
    from cone_kernels import metrics
    from cone_kernels.axes import axes

    n = int(moments.count.sum())
    most = min(n - 1, moments.dim)
    if most < 1:
        raise ValueError(f"{source}: got {n} {vectors}{where}; it must give at least two to have an axis")
    if k > most:
        raise ValueError(f"k: got {k}; it must be at most {most} for {n} {vectors} of width {moments.dim}")
    found, mean = axes(moments, k), metrics.mean_vector(moments)[0]  # (d,)
    values = found.centered.values[0]
    if float(values[0]) <= _ROUNDING * float(mean.square().sum()):
        raise ValueError(f"{source}: got equal {vectors}{where}; they must vary to have an axis")
    ratios = metrics.explained_variance_ratio(metrics.covariance(moments), found.centered.values)[0]
    return SolvedAxes(
        found=found,
        mean=mean,
        eigenvalues=values.tolist(),
        explained_variance_ratios=ratios.tolist(),
        residuals=found.centered.residuals[0].tolist(),
        eigengaps=[*(values[:-1] - values[1:]).tolist(), float(found.centered.eigengap)],
        flat=(values <= _UNRESOLVED * values[0]).tolist(),
    )


def window(dim: int) -> int:
    """How many rows of this width are projected at once."""
    from cone_kernels.statistics.extremes import block_rows

    return min(8192, block_rows(dim))


def extremes_of(blocks: Iterable[tuple[int, Tensor]], solved: SolvedAxes, count: int) -> Extremes:
    """The rows furthest along each axis, of those that the sums are of.

    Args:
        blocks: (number of the first row, rows (n, d)) in order.
        solved: the axes.
        count: how many at each end.
    """
    from cone_kernels.runs.sentence_vectors import used_blocks
    from cone_kernels.statistics.extremes import Extremes, project

    extremes = Extremes(count, len(solved.directions))
    for indices, rows in used_blocks(blocks):
        extremes.add(indices, project(rows, solved.directions, solved.mean))
    return extremes
