"""What `axis` finds: the components, what lies along them, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cone_kernels.experiments.frequency import FrequencyOf, FrequencyRelation
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.names import VARIABLES, Layer, place, spaced
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.experiments.axis_vectors import AxisVectors
    from cone_kernels.experiments.vocabulary import TokenProjection

SCHEMA = "cone_kernels/axis/1"

# The summary mentions correlations from this one up, and eigengaps below this share of the eigenvalue.
_NOTABLE, _CLOSE = 0.3, 0.1


@dataclass(frozen=True)
class SentenceProjection:
    """A sentence far along an axis: (x − mean)·v, the text, its index in the corpus."""

    text: str
    projection: float
    sentence: int

    def to_dict(self) -> dict[str, Any]:
        """The sentence as JSON data."""
        return {"text": self.text, "projection": self.projection, "sentence": self.sentence}


@dataclass(frozen=True)
class Component:
    """One eigenvector of the covariance, and what lies along it.

    Attributes:
        eigenvalue: λ, the variance along it.
        explained_variance_ratio: λ/tr C.
        residual: ‖C v − λ v‖, which bounds the eigenvalue's error.
        eigengap: λ less the next eigenvalue; NaN where there is no next one.
        top, bottom: the sentences with the highest and the lowest projections, the furthest first.
        tokens_top, tokens_bottom: the same of the vocabulary; empty where it cannot be projected.
        correlations: Pearson's r of the projections with each of `cone_kernels.names.VARIABLES`; NaN where one of the
            two is constant.
        frequency: how projections go with frequency in the corpus, of "tokens" and of "sentences", where defined.
    """

    eigenvalue: float
    explained_variance_ratio: float
    residual: float
    eigengap: float
    top: tuple[SentenceProjection, ...]
    bottom: tuple[SentenceProjection, ...]
    tokens_top: tuple[TokenProjection, ...]
    tokens_bottom: tuple[TokenProjection, ...]
    correlations: Mapping[str, float]
    frequency: Mapping[FrequencyOf, FrequencyRelation] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The component as JSON data."""
        numbers = ("eigenvalue", "explained_variance_ratio", "residual", "eigengap")
        lists = ("top", "bottom", "tokens_top", "tokens_bottom")
        return {
            **{name: finite(getattr(self, name)) for name in numbers},
            **{name: [entry.to_dict() for entry in getattr(self, name)] for name in lists},
            "correlations": {name: finite(r) for name, r in self.correlations.items()},
            "frequency": {of: relation.to_dict() for of, relation in self.frequency.items()},
        }


@dataclass(frozen=True)
class AxisResult(ExperimentResult):
    """What `axis` found.

    Attributes:
        model, corpus: what was measured, and on what.
        layer, layer_name: where, as in Hugging Face's `hidden_states`.
        sentences: the sentence vectors used; those that are zero or not finite are left out.
        components: the centred axes, the one of largest variance first.
        mean_cosine: |cos| of the first centred axis and the mean direction.
        uncentered_mean_cosine: |cos| of the uncentred axis and the mean direction.
        centered_uncentered_cosine: |cos| of the first centred axis and the uncentred one.
        vocabulary: how many tokens were projected and as what, or the reason why none were.
        vectors_file: where the vectors were written, or None.
        reasons: a sentence for each number that is not defined.
        manifest: versions, device, backend, times and options of the run.
        vectors: the directions themselves.
    """

    table: ClassVar[str | None] = "components"
    model: dict[str, Any]
    corpus: dict[str, Any]
    layer: Layer
    layer_name: str
    sentences: int
    components: tuple[Component, ...]
    mean_cosine: float
    uncentered_mean_cosine: float
    centered_uncentered_cosine: float
    vocabulary: dict[str, Any]
    vectors_file: str | None
    reasons: tuple[str, ...]
    manifest: dict[str, Any]
    vectors: AxisVectors = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "axis",
            "model": self.model,
            "corpus": self.corpus,
            "layer": self.layer,
            "layer_name": self.layer_name,
            "sentences": self.sentences,
            "components": [component.to_dict() for component in self.components],
            "mean_cosine": finite(self.mean_cosine),
            "uncentered_mean_cosine": finite(self.uncentered_mean_cosine),
            "centered_uncentered_cosine": finite(self.centered_uncentered_cosine),
            "vocabulary": self.vocabulary,
            "vectors_file": self.vectors_file,
            "reasons": list(self.reasons),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """What the axes are in plain sentences, each said only where the data says it."""
        return tuple(_summary(self))

    def __repr__(self) -> str:
        lines = [
            f"AxisResult({self.model['architecture']}, {place(self.layer)}, {self.sentences} sentences of "
            f"{self.corpus['name']})",
            f"  |cos| with the mean direction {self.mean_cosine:.4f}",
            "  axis  eigenvalue  of variance  " + "  ".join(f"r {name}" for name in VARIABLES),
        ]
        for number, component in enumerate(self.components, start=1):
            correlations = "  ".join(f"{component.correlations[name]:{len(name) + 2}.3f}" for name in VARIABLES)
            variance = f"{component.eigenvalue:10.4g}  {component.explained_variance_ratio:11.2%}"
            lines.append(f"  {number:>4}  {variance}  {correlations}")
        return "\n".join(lines)


def degrees(cosine: float) -> float:
    """The angle between two directions without a sign, from |cos|: 0 to 90, NaN for NaN."""
    # Rounding can take the product of two unit vectors above 1.
    return math.degrees(math.acos(min(cosine, 1.0))) if math.isfinite(cosine) else math.nan


def excerpt(text: str, width: int) -> str:
    """A text on one line of at most `width` characters, what cannot be printed left blank."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def _summary(result: AxisResult) -> Iterator[str]:
    first = result.components[0]
    share = sum(component.explained_variance_ratio for component in result.components)
    together = f", the first {len(result.components)} together {share:.1%}" if len(result.components) > 1 else ""
    yield (
        f"The first axis of {place(result.layer)} carries {first.explained_variance_ratio:.1%} of the variance of "
        f"{result.sentences:,} sentence vectors{together}."
    )
    if first.eigengap < _CLOSE * first.eigenvalue:
        yield "The second axis carries nearly as much, so another sample could turn the first towards it."
    yield (
        f"At its upper end lies “{excerpt(first.top[0].text, 70)}” ({first.top[0].projection:+.3g}), at its lower end "
        f"“{excerpt(first.bottom[0].text, 70)}” ({first.bottom[0].projection:+.3g})."
    )
    if first.tokens_top:
        yield (
            f"Of the vocabulary, {_quoted(first.tokens_top)} lie furthest along it, {_quoted(first.tokens_bottom)} "
            f"furthest against it{_as_by_chance(result.vocabulary)}."
        )
    yield from _correlations(first.correlations, result.sentences)
    if first.frequency:
        said = [relation.in_words(of) for of, relation in first.frequency.items()]
        yield f"Is it carried by common words? {'; '.join(said)[:1].upper()}{'; '.join(said)[1:]}."
    yield from _angle(result.mean_cosine)


def _correlations(correlations: Mapping[str, float], n: int) -> Iterator[str]:
    from cone_kernels.statistics.significance import correlation_claims

    known = {name: r for name, r in correlations.items() if math.isfinite(r)}
    claims = correlation_claims(known, n, _NOTABLE)
    told = [name for name, claim in claims.items() if claim.differs]
    if told:
        strongest = max(told, key=lambda name: abs(known[name]))
        rivals = [claim for name, claim in claims.items() if name != strongest]
        most = " most" if all(abs(one.estimate) + one.bound < abs(known[strongest]) for one in rivals) else ""
        yield f"It goes with the {VARIABLES[strongest].phrase}{most}: r = {known[strongest]:+.2f}."
    elif known and all(claim.verdict == "equal" for claim in claims.values()):
        yield f"It goes with none of {', '.join(spaced(name) for name in known)}: every |r| is below {_NOTABLE}."
    elif known:
        names = ", ".join(spaced(name) for name, claim in claims.items() if claim.verdict == "undecided")
        yield f"Whether it goes with {names} is undecided: {n:,} sentences are too few to tell it from an accident."


def _angle(mean_cosine: float) -> Iterator[str]:
    angle = degrees(mean_cosine)
    if angle >= 80:
        yield f"It stands across the mean direction ({angle:.0f}°): what sentences share is not what tells them apart."
    elif angle <= 10:
        yield f"It is nearly the mean direction ({angle:.0f}°): sentences differ most in how far they go along it."
    elif math.isfinite(angle):
        yield f"It stands at {angle:.0f}° to the mean direction."


def _as_by_chance(vocabulary: Mapping[str, Any]) -> str:
    """What is said of tokens that lie no further out than they do along random directions."""
    far, random = vocabulary["furthest"][0], vocabulary["random_furthest"]
    if Claim(far, null=random["mean"], bound=random["p95"] - random["mean"]).verdict == "greater":
        return ""
    return (
        f"; along random directions tokens lie as far out ({far:.1f} standard deviations here, up to "
        f"{random['p95']:.1f} there), so these say nothing of the axis"
    )


def _quoted(tokens: Sequence[TokenProjection]) -> str:
    return ", ".join(f"“{excerpt(token.token, 20)}”" for token in tokens[:3])
