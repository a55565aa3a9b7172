"""What `vectors` finds of vectors that somebody has already, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cone_kernels.experiments.axis_result import degrees, excerpt
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.layers_result import shape_to_dict
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.population_claims import geometry_in_words
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.names import listed_words
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.experiments.rogue_dimensions import RogueDimension, WithoutRogue
    from cone_kernels.metrics import Geometry
    from cone_kernels.state.cone_state import ConeState

SCHEMA = "cone_kernels/vectors/1"

# The summary mentions eigengaps below this share of the eigenvalue.
_CLOSE = 0.1


@dataclass(frozen=True)
class VectorProjection:
    """A vector far along an axis.

    Attributes:
        index: its row, from 0.
        projection: (x − mean)·v.
        id: its text or id, where ids were given.
    """

    index: int
    projection: float
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The vector as JSON data."""
        return {"id": self.id, "index": self.index, "projection": self.projection}

    @property
    def label(self) -> str:
        """Its id, or its row where it has none."""
        return f"row {self.index}" if self.id is None else self.id


@dataclass(frozen=True)
class VectorAxis:
    """One eigenvector of the covariance, and what lies along it.

    Attributes:
        eigenvalue, explained_variance_ratio, residual, eigengap: as those of a `Component` of `axis`.
        top, bottom: the vectors with the highest and the lowest projections, the furthest first.
    """

    eigenvalue: float
    explained_variance_ratio: float
    residual: float
    eigengap: float
    top: tuple[VectorProjection, ...]
    bottom: tuple[VectorProjection, ...]

    def to_dict(self) -> dict[str, Any]:
        """The axis as JSON data."""
        numbers = ("eigenvalue", "explained_variance_ratio", "residual", "eigengap")
        ends = {name: [one.to_dict() for one in getattr(self, name)] for name in ("top", "bottom")}
        return {**{name: finite(getattr(self, name)) for name in numbers}, **ends}


@dataclass(frozen=True)
class VectorAxes:
    """The top axes.

    Attributes:
        components: the one of largest variance first.
        mean_cosine: |cos| of the first one and the mean direction.
        reasons: a sentence for each number that is not defined.
    """

    components: tuple[VectorAxis, ...]
    mean_cosine: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The axes as JSON data."""
        components = [component.to_dict() for component in self.components]
        return {"components": components, "mean_cosine": finite(self.mean_cosine), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class VectorsResult(ExperimentResult):
    """What `vectors` found.

    Attributes:
        vectors: what was measured: `name`, `rows`, `dim`, `dtype`, `scale`, `fingerprint`.
        corpus: how many there were, and what was left out.
        level: the anisotropy and what it was computed from.
        rogue_dimensions, without_rogue, geometry: as those of a `Layer` of `layers`.
        axis: the top axes; None where none were asked for.
        manifest: versions, backend, times and options.
        state: the sums that all of it was computed from.
        cone, share: whether there is a cone, and whether the dimensions listed carry more than a quarter of it; None
            where none are listed.

    Examples:
        >>> vectors("minilm.npy").level.anisotropy
        0.055...
    """

    table: ClassVar[str | None] = None
    vectors: dict[str, Any]
    corpus: dict[str, Any]
    level: Level
    rogue_dimensions: tuple[RogueDimension, ...]
    without_rogue: WithoutRogue
    geometry: Geometry | None
    axis: VectorAxes | None
    manifest: dict[str, Any]
    state: ConeState = field(repr=False, compare=False)
    cone: Claim = field(repr=False, compare=False)
    share: Claim | None = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "vectors",
            "vectors": self.vectors,
            "sentence": self.level.to_dict(),
            **shape_to_dict(self),
            "axis": None if self.axis is None else self.axis.to_dict(),
            "dependence": Dependence.of(self.state).to_dict(),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """What the vectors are like in plain sentences, each said only where the data says it."""
        return tuple(_summary(self))

    def __repr__(self) -> str:
        one = self.level
        return (
            f"VectorsResult({self.vectors['name']}, {one.count:,} vectors, {self.vectors['dim']:,} wide: anisotropy "
            f"{one.anisotropy:.4f}, standard error {one.stderr:.4f})"
        )


def _summary(result: VectorsResult) -> Iterator[str]:
    yield _anisotropy(result.level, result.cone)
    yield from _rogue(result)
    if result.geometry is not None:
        which = f"the {result.level.count:,} vectors"
        yield from geometry_in_words(result.geometry, "vectors", which)
    if result.axis is not None:
        yield from _axis(result.axis)
    left_out = {"zero": result.level.n_zero, "not finite": result.level.n_nonfinite}
    counted = [f"{count:,} {'is' if count == 1 else 'are'} {what}" for what, count in left_out.items() if count]
    if counted:
        yield f"Of the vectors {listed_words(counted)}, and left out."
    yield from Dependence.of(result.state).summary("vectors")


def _anisotropy(level: Level, cone: Claim) -> str:
    if not math.isfinite(level.anisotropy):
        return f"There is no mean cosine of two of these vectors: {level.reason}."
    begin = "Two of these vectors picked at random have a mean cosine of"
    if not math.isfinite(level.stderr):
        return f"{begin} {level.anisotropy:.3f}, of an error that is not known ({level.reason})."
    # As many as show the error, which of a million vectors is small.
    decimals = 3 if level.stderr == 0 else min(9, max(3, -math.floor(math.log10(level.stderr))))
    said = f"{begin} {level.anisotropy:.{decimals}f} ± {level.stderr:.{decimals}f}"
    return f"{said}." if cone.verdict == "greater" else f"{said}: these data do not tell it from 0."


def _rogue(result: VectorsResult) -> Iterator[str]:
    share = sum(rogue.share for rogue in result.rogue_dimensions)
    # Where the mean cosine may be 0, its shares mean nothing.
    if result.cone.verdict != "greater" or result.share is None or result.share.verdict != "greater":
        return
    names = listed_words([str(rogue.dimension) for rogue in result.rogue_dimensions])
    one = len(result.rogue_dimensions) == 1
    without = result.without_rogue.in_words(
        len(result.rogue_dimensions), result.level.count, "vectors", "spread evenly over all"
    )
    yield (
        f"{'One dimension does' if one else 'A few dimensions do'} much of it: "
        f"{f'dimension {names} carries' if one else f'dimensions {names} carry'} {share:.0%} of the mean cosine"
        f"{without}."
    )


def _axis(axis: VectorAxes) -> Iterator[str]:
    first = axis.components[0]
    share = sum(component.explained_variance_ratio for component in axis.components)
    together = f", the first {len(axis.components)} together {share:.1%}" if len(axis.components) > 1 else ""
    yield f"The first axis carries {first.explained_variance_ratio:.1%} of the variance{together}."
    if first.eigengap < _CLOSE * first.eigenvalue:
        yield "The second axis carries nearly as much, so other vectors of the kind could turn the first towards it."
    ends = [
        f"{end.label if end.id is None else f'“{excerpt(end.id, 70)}”'} ({end.projection:+.3g})"
        for end in (first.top[0], first.bottom[0])
    ]
    yield f"At its upper end lies {ends[0]}, at its lower end {ends[1]}."
    if math.isfinite(axis.mean_cosine):
        yield f"It stands at {degrees(axis.mean_cosine):.0f}° to the mean direction."
