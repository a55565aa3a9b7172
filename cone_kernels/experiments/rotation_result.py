"""What `rotation` found: matrices over the models compared, and the sentences that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cone_kernels.experiments.level import Level
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.names import Layer

SCHEMA = "cone_kernels/rotation/1"

Matrix = tuple[tuple[float, ...], ...]
"""m × m; NaN where a value is not defined."""

# |cos| from which on two axes are called one, and |r| from which on two sets of projections are called the same.
_SHARED = 0.9
# What another model's mean does, by the share of the cone that it leaves of what the model's own mean takes away.
_VERDICTS = (
    (-math.inf, 0.1, "carries over", "carry over"),
    (0.1, 0.9, "carries over in part", "carry over in part"),
    (0.9, 1.1, "does not carry over", "do not carry over"),
    (1.1, math.inf, "closes the cone further", "close the cone further"),
)
# A cone that a model's own mean opens by less than this is too small to be mentioned.
_LEAST_CONE = 0.02


@dataclass(frozen=True)
class ComparedModel:
    """One of the models, or a state saved before.

    Attributes:
        name: a short name, unlike all others of the comparison.
        source: the folder or hub id, or the state's name.
        architecture, weights_sha256: what it is; None where a state does not say.
        hidden_size: the width.
        layer, layer_name: the layer's number or "output", and the module or modules.
        level: its anisotropy at the sentence level.
        explained_variance_ratio: λ₁/tr C, how much of the variance lies along the axis.
        corpus_fingerprint: sha256 of the sentences; None for a state.
    """

    name: str
    source: str
    architecture: str | None
    weights_sha256: str | None
    hidden_size: int
    layer: Layer
    layer_name: str
    level: Level
    explained_variance_ratio: float
    corpus_fingerprint: str | None

    def to_dict(self) -> dict[str, Any]:
        """The model as JSON data."""
        found = {name: value for name, value in vars(self).items() if name != "level"}
        found["explained_variance_ratio"] = finite(self.explained_variance_ratio)
        return found | self.level.to_dict()


@dataclass(frozen=True)
class Chance:
    """|cos| of two random directions: its mean, and what one pair in twenty exceeds."""

    mean: float
    p95: float

    def to_dict(self) -> dict[str, float]:
        """The two as JSON data."""
        return {"mean": self.mean, "p95": self.p95}


@dataclass(frozen=True)
class RotationResult(ExperimentResult):
    """What `rotation` found. Matrices have a row and a column for each of `models`, NaN or None where not defined.

    Attributes:
        models: what was compared.
        corpus: the sentences; `tokens` and `truncated` are added up over the models.
        k: how many axes the subspaces of `principal_angles` have.
        axis_cosine: |cos| of the cone axes, the first centred eigenvectors.
        mean_cosine: |cos| of the mean directions.
        principal_angles: degrees, ascending, between the subspaces of the top k axes.
        centered_anisotropy: [i][j] the anisotropy of model i's sentence vectors after subtracting the mean of model j.
        centered_stderr: its grouped-jackknife standard error.
        functional_cosine: |Pearson's r| of the projections of the same sentences on both first axes; of any widths.
        null: what random directions in that width would give for `axis_cosine`.
        p_value: how often random directions would be at least as close as the axes are.
        reasons: why a value is not defined.
        manifest: versions, times and options, and under "measurements" that of each model.
    """

    models: tuple[ComparedModel, ...]
    corpus: dict[str, Any]
    k: int
    axis_cosine: Matrix
    mean_cosine: Matrix
    principal_angles: tuple[tuple[tuple[float, ...] | None, ...], ...]
    centered_anisotropy: Matrix
    centered_stderr: Matrix
    functional_cosine: Matrix
    null: tuple[tuple[Chance | None, ...], ...]
    p_value: Matrix
    reasons: tuple[str, ...]
    manifest: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "rotation",
            "models": [model.to_dict() for model in self.models],
            "corpus": self.corpus,
            "k": self.k,
            "axis_cosine": _numbers(self.axis_cosine),
            "mean_cosine": _numbers(self.mean_cosine),
            "principal_angles": [[None if one is None else list(one) for one in row] for row in self.principal_angles],
            "centered_anisotropy": _numbers(self.centered_anisotropy),
            "centered_stderr": _numbers(self.centered_stderr),
            "functional_cosine": _numbers(self.functional_cosine),
            "null": [[one and one.to_dict() for one in row] for row in self.null],
            "p_value": _numbers(self.p_value),
            "reasons": list(self.reasons),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """Who shares an axis and a centring vector with whom, in plain sentences, each said where the data says it."""
        return (*_of_axes(self), *_of_widths(self), *_of_means(self))

    def __repr__(self) -> str:
        width = max(len(model.name) for model in self.models)
        lines = [f"RotationResult({len(self.models)} models, |cos| of their axes)"]
        for model, row in zip(self.models, self.axis_cosine, strict=True):
            cells = " ".join("      -" if math.isnan(cosine) else f"{cosine:7.4f}" for cosine in row)
            lines.append(f"  {model.name:<{width}} {cells}")
        return "\n".join(lines)


def _numbers(matrix: Matrix) -> list[list[float | None]]:
    return [[finite(value) for value in row] for row in matrix]


def _of_axes(result: RotationResult) -> Iterator[str]:
    families = _families(result)
    for family in families:
        if len(family) > 1:
            cosines = [result.axis_cosine[i][j] for i, j in combinations(family, 2)]
            least = f"{min(cosines):.3f}" + (" or more between any two" if len(family) > 2 else "")
            yield f"{_names(result, family)} share their axis: |cos| {least}."
    for first, second in combinations(families, 2):
        pairs = [(i, j) for i in first for j in second]
        cosines = [result.axis_cosine[i][j] for i, j in pairs]
        random = result.null[first[0]][second[0]]
        if random is None:
            continue
        who = _both(result, first, second)
        dim = result.models[first[0]].hidden_size
        if max(cosines) <= random.p95:
            yield (
                f"The axes of {who} are no closer than chance: |cos| {_range(cosines)}; two random directions in "
                f"{dim} dimensions have {random.mean:.3f} on average."
            )
        else:
            yield (
                f"The axes of {who} differ: |cos| {_range(cosines)}. By chance one pair of directions in twenty has "
                f"{random.p95:.3f} or more in {dim} dimensions."
            )
        functional = [result.functional_cosine[i][j] for i, j in pairs]
        if min(functional) >= _SHARED:  # False for NaN
            yield (
                f"Yet they order the same sentences alike: the projections of {who} on their axes correlate with |r| "
                f"{_range(functional)}. It is the same axis in a rotated space."
            )


def _of_widths(result: RotationResult) -> Iterator[str]:
    for i, j in combinations(range(len(result.models)), 2):
        a, b, functional = result.models[i], result.models[j], result.functional_cosine[i][j]
        if a.hidden_size != b.hidden_size and not math.isnan(functional):
            yield (
                f"{a.name} and {b.name} are {a.hidden_size} and {b.hidden_size} wide, so their axes have no angle; "
                f"over the same sentences the projections on them correlate with |r| {functional:.3f}."
            )


def _of_means(result: RotationResult) -> Iterator[str]:
    for i, model in enumerate(result.models):
        before, own = model.level, result.centered_anisotropy[i][i]
        opened = before.anisotropy - own
        if not opened >= max(_LEAST_CONE, 3 * math.hypot(before.stderr, result.centered_stderr[i][i])):
            continue
        others = [j for j, value in enumerate(result.centered_anisotropy[i]) if j != i and not math.isnan(value)]
        left = {j: (result.centered_anisotropy[i][j] - own) / opened for j in others}
        said = []
        for low, high, one, several in _VERDICTS:
            which = [j for j in others if low < left[j] <= high]
            if which:
                leaves = _range([result.centered_anisotropy[i][j] for j in which])
                those, verdict = ("that", one) if len(which) == 1 else ("those", several)
                said.append(f"{those} of {_names(result, which)} {verdict}: {leaves}")
        if others:
            yield (
                f"Subtracting its own mean takes {model.name} from a mean cosine of {before.anisotropy:.3f} to "
                f"{own:.3f}; {'; '.join(said)}."
            )


def _families(result: RotationResult) -> list[list[int]]:
    """The models grouped by whom they share an axis with, directly or by way of others."""
    families: list[list[int]] = []
    for i in range(len(result.models)):
        near = [family for family in families if any(result.axis_cosine[i][j] >= _SHARED for j in family)]
        families = [family for family in families if family not in near]
        families.append(sorted([*(j for family in near for j in family), i]))
    return sorted(families)


def _names(result: RotationResult, which: Sequence[int]) -> str:
    names = [result.models[i].name for i in which]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _both(result: RotationResult, first: Sequence[int], second: Sequence[int]) -> str:
    """Two families side by side, told apart where one of them has several models."""
    one, other = _names(result, first), _names(result, second)
    single = len(first) == len(second) == 1
    return f"{one} and {other}" if single else f"{one} on one side and {other} on the other"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"
