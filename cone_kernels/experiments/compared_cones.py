"""What `rotation` compares: the cone of each model at one layer, and two of them with each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cone_kernels.experiments.axes_pair import AxesPair, Chance, Matrix
from cone_kernels.experiments.level import Level, level_after, levels_of, seen_by_group
from cone_kernels.experiments.rotation_result import ComparedModel
from cone_kernels.names import Layer, place

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.centering import Centering
    from cone_kernels.runs.measurement import Measurement
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import Moments
    from cone_kernels.statistics.subspaces import SampledAxes

# Gives the jackknife groups of sentences by their indices.
_Groups: TypeAlias = "Callable[[Tensor], Tensor]"

# Angles between axes are off by their residuals over their eigengaps, so the axes are taken to more digits than usual.
_TOLERANCE = 1e-12

# The top k axes span no subspace of their own where the last eigenvalue is to the first what rounding is.
_LEAST_EIGENVALUE = 1e-8


@dataclass(frozen=True, eq=False)
class ComparedCone:
    """What is compared of one model at one layer.

    Attributes:
        compared: what the result says of it.
        axes: (k, d) float64, the top centred eigenvectors.
        sampled: all of them, and what the choice of sentences does to the first k.
        spanned: whether the sentences vary in all k of these directions.
        centering: mean removal.
        vectors: of its sentences; None of a saved state.
        groups: gives their jackknife groups by their indices.
    """

    compared: ComparedModel
    axes: Tensor
    sampled: SampledAxes
    spanned: bool
    centering: Centering
    vectors: SentenceVectors | None
    groups: _Groups

    @property
    def name(self) -> str:
        return self.compared.name

    @property
    def dim(self) -> int:
        return self.compared.hidden_size

    @classmethod
    def of(cls, measurement: Measurement, layer: Layer, label: str, k: int) -> ComparedCone:
        """The cone of a measurement with second moments.

        Args:
            measurement: its vectors are read where it has them.
            layer: as `Measurement.layer` gives it.
            label: what it is called.
            k: how many axes.

        Raises:
            ValueError: it has no second moments, fewer than two vectors, or vectors that are all the same.
        """
        from cone_kernels import metrics
        from cone_kernels.centering import Centering
        from cone_kernels.ops.top_eigenvectors import top_eigenvectors

        moments = measurement.moments(layer)
        if "second_moment" not in moments.fields:
            raise ValueError(
                f"state: got {label} without second moments; it must hold them, for its axis is computed from them"
            )
        count = int(moments.count.sum())
        if count < 2:
            raise ValueError(
                f"corpus: got {count} sentence vectors of {label} at {place(layer)}; it must be at least two"
            )
        covariance = metrics.covariance(moments)[0].cpu()
        groups = measurement.groups()
        vectors = measurement.kept_vectors(layer) if "fingerprint" in measurement.corpus else None
        found = top_eigenvectors(covariance=covariance, k=k, tolerance=_TOLERANCE)
        if not float(found.values[0]) > 0:
            raise ValueError(f"corpus: got equal sentence vectors of {label} at {place(layer)}; they must vary")
        compared = ComparedModel(
            name=label,
            source=str(measurement.model["name"]),
            architecture=measurement.model.get("architecture"),
            weights_sha256=measurement.model.get("weights_sha256"),
            hidden_size=moments.dim,
            layer=layer,
            layer_name=measurement.layer_name(layer),
            level=levels_of(moments)[0],
            explained_variance_ratio=float(metrics.explained_variance_ratio(covariance, found.values)[0]),
            corpus_fingerprint=measurement.corpus.get("fingerprint"),
        )
        return cls(
            compared,
            axes=found.vectors,
            spanned=count > k and float(found.values[-1]) >= _LEAST_EIGENVALUE * float(found.values[0]),
            centering=Centering.fit(moments),
            vectors=vectors,
            groups=groups,
            sampled=_sampled(moments, vectors, covariance, k, groups),
        )


def _sampled(
    moments: Moments, vectors: SentenceVectors | None, covariance: Tensor, k: int, groups: _Groups
) -> SampledAxes:
    """By jackknife over blocks of sentences; without vectors, as if sentences were independent and normal."""
    from cone_kernels import metrics
    from cone_kernels.runs.sentence_vectors import used_blocks
    from cone_kernels.statistics.subspaces import SampledAxes
    from cone_kernels.sums import GROUPS, jackknife_blocks

    if vectors is None:
        return SampledAxes.of_covariance(covariance, int(moments.count.sum()), k, GROUPS)
    # The same blocks for every model, whichever sentences it has no vector for: their errors are paired.
    blocks = jackknife_blocks(seen_by_group(moments))

    def grouped() -> Iterator[tuple[Tensor, Tensor]]:
        for ids, rows in used_blocks(vectors.blocks()):
            yield rows, blocks[groups(ids)]

    return SampledAxes.of_rows(covariance, metrics.mean_vector(moments)[0].cpu(), k, grouped(), int(blocks.max()) + 1)


def pair_of(a: ComparedCone, b: ComparedCone, k: int, pairs: int) -> AxesPair | None:
    """What may be said of the axes of two models, of `pairs` that are compared; None where they have no angle."""
    from cone_kernels.statistics.significance import student_bound
    from cone_kernels.statistics.subspaces import compared_axes, drawn_overlaps, overlap

    if a.dim != b.dim:
        return None
    paired = a.vectors is not None and b.vectors is not None
    paired = paired and a.compared.corpus_fingerprint == b.compared.corpus_fingerprint
    m = compared_axes(a.sampled, b.sampled, k)
    found, first = (overlap(a.sampled.space(axes), b.sampled.space(axes), paired) for axes in (m, 1))
    drawn = drawn_overlaps(a.sampled, b.sampled, found.axes)
    cosine = math.sqrt(first.value)
    return AxesPair(
        overlap=found,
        bound=student_bound(found.stderr, found.degrees, pairs),
        # d√O = dO / (2√O)
        axis_stderr=first.stderr / (2 * cosine) if cosine > 0 else math.nan,
        halves=(a.sampled.half_overlap(found.axes), b.sampled.half_overlap(found.axes)),
        drawn=Chance(float(drawn.mean()), float(drawn.quantile(0.95))),
        sentences=min(a.compared.level.count, b.compared.level.count),
    )


def symmetric(cones: Sequence[ComparedCone], compare: Callable[[ComparedCone, ComparedCone], float]) -> Matrix:
    """Each with each; [i][j] is [j][i]."""
    found = {(i, j): compare(cones[i], cones[j]) for i in range(len(cones)) for j in range(i, len(cones))}
    return tuple(tuple(found[min(i, j), max(i, j)] for j in range(len(cones))) for i in range(len(cones)))


def axis_cosine_of(a: ComparedCone, b: ComparedCone) -> float:
    """|cos| of the first axes; NaN of different widths."""
    from cone_kernels.statistics.directions import axis_cosine

    return axis_cosine(a.axes[0], b.axes[0]) if a.dim == b.dim else math.nan


def mean_cosine_of(a: ComparedCone, b: ComparedCone) -> float:
    """|cos| of the means; NaN of different widths, and where a mean is zero."""
    from cone_kernels.statistics.directions import axis_cosine

    defined = a.dim == b.dim and bool(a.centering.mean.any()) and bool(b.centering.mean.any())
    return axis_cosine(a.centering.mean, b.centering.mean) if defined else math.nan


def angles_of(a: ComparedCone, b: ComparedCone) -> tuple[float, ...] | None:
    """The principal angles of the spaces of the top k axes, in degrees; None where they have none."""
    from cone_kernels.statistics.directions import principal_angles

    return tuple(principal_angles(a.axes, b.axes).tolist()) if a.dim == b.dim and a.spanned and b.spanned else None


def centered_level(a: ComparedCone, b: ComparedCone) -> Level | None:
    """The sentence level of the one after subtracting the mean of the other."""
    if a.dim != b.dim or a.vectors is None:
        return None
    return level_after(a.vectors, b.centering, groups=a.groups)


def functional_cosine_of(a: ComparedCone, b: ComparedCone) -> float:
    """|r| of the projections on both first axes, over the sentences that have a vector in both models."""
    from cone_kernels.runs.sentence_vectors import used_rows
    from cone_kernels.statistics.correlation import Correlation

    if a.vectors is None or b.vectors is None or a.compared.corpus_fingerprint != b.compared.corpus_fingerprint:
        return math.nan
    correlation = Correlation(1)
    for (_, first), (_, second) in zip(a.vectors.blocks(), b.vectors.blocks(), strict=True):
        rows_a, rows_b = first.double(), second.double()
        used = used_rows(rows_a) & used_rows(rows_b)
        along_a = (rows_a[used] - a.centering.mean) @ a.axes[0]  # (n,)
        along_b = (rows_b[used] - b.centering.mean) @ b.axes[0]
        correlation.add(along_a[:, None], along_b)
    return abs(float(correlation.r[0]))
