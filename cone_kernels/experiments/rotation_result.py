"""What `rotation` found: matrices over the models compared, and the sentences that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, ClassVar

from cone_kernels.experiments.axes_pair import (
    SHARED,
    AxesPair,
    Chance,
    Matrix,
    SharedAxes,
    alike,
    overlaps,
    range_in_words,
)
from cone_kernels.experiments.corpora_result import Corpora
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.names import Layer
from cone_kernels.statistics.claims import Claim

SCHEMA = "cone_kernels/rotation/1"

# The quantile of the normal distribution that 95 % lie within.
_FISHER = 1.96
# What another model's mean does, by the share of the cone that it leaves of what the model's own mean takes away.
_VERDICTS = (
    (-math.inf, 0.1, "carries over", "carry over"),
    (0.1, 0.9, "carries over in part", "carry over in part"),
    (0.9, 1.1, "does not carry over", "do not carry over"),
    (1.1, math.inf, "makes the cone tighter", "make the cone tighter"),
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
class RotationResult(ExperimentResult):
    """What `rotation` found. Matrices have a row and a column for each of `models`, NaN or None where not defined.

    Attributes:
        models: what was compared.
        corpus: the sentences; `tokens` and `truncated` are added up over the models.
        k: how many axes the subspaces of `principal_angles` have.
        axis_cosine: |cos| of the cone axes, the first centred eigenvectors.
        pairs: how alike the spaces of the top axes are, and what may be said of it; None on the diagonal, and for
            models of different widths.
        mean_cosine: |cos| of the mean directions.
        principal_angles: degrees, ascending, between the subspaces of the top k axes.
        centered_anisotropy: [i][j] the anisotropy of model i's sentence vectors after subtracting the mean of model j.
        centered_stderr: its grouped-jackknife standard error.
        functional_cosine: |Pearson's r| of the projections of the same sentences on both first axes; of any widths.
        null: what random directions in that width would give for `axis_cosine`.
        p_value: how often random directions would be at least as close as the axes are.
        reasons: why a value is not defined.
        manifest: versions, times and options, and under "measurements" that of each model.
        dependence: whether neighbouring sentences are alike over long stretches, of each model.
        corpora: what is known besides where `models` are one model over several corpora, each by the corpus's name.
    """

    table: ClassVar[str | None] = "models"
    models: tuple[ComparedModel, ...]
    corpus: dict[str, Any]
    k: int
    axis_cosine: Matrix
    pairs: tuple[tuple[AxesPair | None, ...], ...]
    mean_cosine: Matrix
    principal_angles: tuple[tuple[tuple[float, ...] | None, ...], ...]
    centered_anisotropy: Matrix
    centered_stderr: Matrix
    functional_cosine: Matrix
    null: tuple[tuple[Chance | None, ...], ...]
    p_value: Matrix
    reasons: tuple[str, ...]
    manifest: dict[str, Any]
    dependence: tuple[Dependence, ...] = ()
    corpora: Corpora | None = None

    @property
    def verdict(self) -> tuple[tuple[SharedAxes, ...], ...]:
        """Whether each two share their axes; a model shares its own."""
        return tuple(
            tuple("share" if i == j else "undecided" if pair is None else pair.verdict for j, pair in enumerate(row))
            for i, row in enumerate(self.pairs)
        )

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
            "verdict": [list(row) for row in self.verdict],
            "axis_stderr": [[None if one is None else finite(one.axis_stderr) for one in row] for row in self.pairs],
            "overlap": [[one and one.to_dict() for one in row] for row in self.pairs],
            "dependence": [one.to_dict() for one in self.dependence],
            **({} if self.corpora is None else {"corpora": self.corpora.to_dict()}),
            "reasons": list(self.reasons),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """Who shares an axis and a centring vector with whom, in plain sentences, each said where the data says it."""
        warning = Dependence.worst(self.dependence).summary() if self.dependence else ()
        if self.corpora is not None:
            names, layer = [model.name for model in self.models], self.models[0].layer
            return (*self.corpora.summary(names, layer, self.pairs, self.centered_stderr), *warning)
        return (*_of_axes(self), *_of_widths(self), *_of_means(self), *warning)

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
        sharing = _pairs(result, combinations(family, 2))
        if sharing:
            between = " between any two" if len(family) > 2 else ""
            yield f"{_names(result, family)} share {_whose(sharing)}: {overlaps(sharing)}{between}."
    for first, second in combinations(families, 2):
        pairs = _pairs(result, product(first, second))
        if not pairs:
            continue
        yield _apart(pairs, _both(result, first, second))
        functional = [result.functional_cosine[i][j] for i, j in product(first, second)]
        if all(_correlate(r, pair.sentences) for r, pair in zip(functional, pairs, strict=True)):
            yield (
                f"Yet they order the same sentences alike: the projections of {_both(result, first, second)} on their "
                f"axes correlate with |r| {range_in_words(functional)}. It is the same axis in a rotated space."
            )


def _pairs(result: RotationResult, which: Iterable[tuple[int, int]]) -> list[AxesPair]:
    """Those of models of one width."""
    return [pair for i, j in which if (pair := result.pairs[i][j]) is not None]


def _apart(pairs: Sequence[AxesPair], who: str) -> str:
    """What is said of models of which no two are told to share their axes."""
    if all(pair.verdict == "differ" for pair in pairs):
        drawn = alike(pairs, [pair.drawn.p95 for pair in pairs], bare=True)
        chance = f"of directions drawn from their covariances one pair in twenty has more than {drawn}"
        apart = "are no closer than chance" if all(pair.by_chance for pair in pairs) else "differ"
        return f"{_axes(pairs)} of {who} {apart}: {overlaps(pairs)}; {chance}."
    undecided = [pair for pair in pairs if pair.verdict == "undecided"]
    needed = [pair.needed for pair in undecided if pair.needed is not None]
    more = f" About {max(needed):,} sentences would decide it." if needed else ""
    halves = [half for pair in undecided for half in pair.halves if not math.isnan(half)]
    own = f", where two halves of one's own sentences have {alike(pairs, halves, bare=True)}" if halves else ""
    n = min(pair.sentences for pair in undecided)
    values = alike(pairs, [pair.overlap.value for pair in undecided])
    return f"Whether {who} share {_whose(pairs)} is undecided by {n:,} sentences: {values}{own}.{more}"


def _correlate(r: float, n: int) -> bool:
    """Whether projections are the same, by Fisher's z, whose error is 1/√(n − 3)."""
    if math.isnan(r) or n <= 3:
        return False
    z, shared = (math.atanh(min(value, 1 - 1e-15)) for value in (r, SHARED))
    return Claim(z, null=shared, bound=_FISHER / math.sqrt(n - 3)).verdict == "greater"


def _whose(pairs: Sequence[AxesPair]) -> str:
    counts = sorted({pair.overlap.axes for pair in pairs})
    return "their axis" if counts == [1] else f"the space of their top {_counts(counts)} axes"


def _axes(pairs: Sequence[AxesPair]) -> str:
    counts = sorted({pair.overlap.axes for pair in pairs})
    return "The axes" if counts == [1] else f"The spaces of the top {_counts(counts)} axes"


def _counts(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


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
        opened, error = before.anisotropy - own, math.hypot(before.stderr, result.centered_stderr[i][i])
        if not (opened >= _LEAST_CONE and opened >= 3 * error):  # nor where the error is not known
            continue
        others = [j for j, value in enumerate(result.centered_anisotropy[i]) if j != i and not math.isnan(value)]
        left = {j: (result.centered_anisotropy[i][j] - own) / opened for j in others}
        said = []
        for low, high, one, several in _VERDICTS:
            which = [j for j in others if low < left[j] <= high]
            if which:
                leaves = range_in_words([result.centered_anisotropy[i][j] for j in which])
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
        near = [family for family in families if any(result.verdict[i][j] == "share" for j in family)]
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
