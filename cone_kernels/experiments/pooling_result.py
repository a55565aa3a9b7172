"""What `pooling` finds: tokens against sentences at every layer, the poolings, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.pooling_claims import PoolingClaims
from cone_kernels.experiments.result import Estimate, ExperimentResult
from cone_kernels.names import POOLINGS, listed_words, numbered
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.state.cone_state import ConeState

SCHEMA = "cone_kernels/pooling/1"


@dataclass(frozen=True)
class PoolingLayer:
    """One layer.

    Attributes:
        layer, name: its number as in Hugging Face's `hidden_states`, and the module.
        token, sentence: the levels; a sentence is the mean of its tokens.
        gap: sentence-level less token-level anisotropy.
        within: W, the mean cosine of two tokens of one sentence.
        between: B, the mean cosine of two tokens of different sentences.
        predicted: the anisotropy that averaging alone gives: of sentences that are the mean of their tokens taken at
            length 1, see `cone_kernels.metrics.predicted_anisotropy`.
        poolings: the sentence level under each pooling that was asked for.
        reason: why an estimate is NaN, or None.
    """

    layer: int
    name: str
    token: Level
    sentence: Level
    gap: Estimate
    within: Estimate
    between: Estimate
    predicted: Estimate
    poolings: Mapping[str, Level]
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON data."""
        found: dict[str, Any] = {
            "layer": self.layer,
            "name": self.name,
            "token": self.token.to_dict(),
            "sentence": self.sentence.to_dict(),
            "gap": self.gap.to_dict(),
            "within": self.within.to_dict(),
            "between": self.between.to_dict(),
            "predicted": self.predicted.to_dict(),
            "poolings": {name: level.to_dict() for name, level in self.poolings.items()},
        }
        return found | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class PoolingResult(ExperimentResult):
    """What `pooling` found.

    Attributes:
        model: what was measured; `name`, `architecture`, `weights_sha256`, `final_norm`, ...
        corpus: what it was measured on, and what was left out.
        layers: one entry a layer, 0 the embeddings.
        manifest: versions, device, backend, times and options of the run.
        state: the sums that all of it was computed from.
        claims: what may be said of it; `summary` says it.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    layers: tuple[PoolingLayer, ...]
    manifest: dict[str, Any]
    state: ConeState = field(repr=False, compare=False)
    claims: PoolingClaims = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "pooling",
            "model": self.model,
            "corpus": self.corpus,
            "layers": [row.to_dict() for row in self.layers],
            "dependence": Dependence.of(self.state).to_dict(),
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """How much of the cone is made by pooling, in plain sentences.

        All layers, and all poolings, are judged together: with 19 of 20 samples no difference mentioned is noise.
        """
        return (*_summary(self.layers, self.claims), *Dependence.of(self.state).summary())

    def __repr__(self) -> str:
        corpus = f"{self.corpus['sentences']} sentences of {self.corpus['name'] or 'a saved state'}"
        lines = [
            f"PoolingResult({self.model['architecture']}, {corpus})",
            "  layer     token  sentence       gap  (stderr) predicted  (stderr)    within   between",
        ]
        for row in self.layers:
            levels = f"{row.token.anisotropy:9.4f} {row.sentence.anisotropy:9.4f}"
            estimates = " ".join(f"{one.value:9.4f} {one.stderr:9.4f}" for one in (row.gap, row.predicted))
            lines.append(f"  {row.layer:>5} {levels} {estimates} {row.within.value:9.4f} {row.between.value:9.4f}")
        names = list(self.layers[0].poolings)
        if names != ["mean"]:
            lines.append("  layer " + " ".join(f"{name:>{max(9, len(name))}}" for name in names))
            for row in self.layers:
                cells = (f"{level.anisotropy:{max(9, len(name))}.4f}" for name, level in row.poolings.items())
                lines.append(f"  {row.layer:>5} {' '.join(cells)}")
        return "\n".join(lines)


def _summary(layers: Sequence[PoolingLayer], claims: PoolingClaims) -> list[str]:
    known = [at for at, row in enumerate(layers) if math.isfinite(row.gap.stderr)]
    if not known:
        return []
    lines = _largest_gap(layers, claims, known)
    if known[-1] == len(layers) - 1:
        lines += _last_gap(layers, claims, known)
    # The last layer is the one whose vectors are used.
    return lines + (_poolings(layers[-1], claims.poolings) if len(layers[-1].poolings) > 1 else [])


def _largest_gap(layers: Sequence[PoolingLayer], claims: PoolingClaims, known: Sequence[int]) -> list[str]:
    found = [at for at in known if claims.gap[at].differs]
    if not found:
        return ["At no layer is the cone of the sentences told from that of the tokens."]
    at = max(found, key=lambda at: abs(layers[at].gap.value))
    largest = layers[at]
    token, sentence = largest.token.anisotropy, largest.sentence.anisotropy
    alike = [
        layers[other].layer
        for other in known
        if other != at
        and not Claim(
            abs(largest.gap.value), null=abs(layers[other].gap.value), bound=claims.size_bounds[at][other]
        ).differs
    ]
    numbers = [row.layer for row in layers]
    rivals = f" (as far as can be told, it is as large at {numbered(alike, numbers)})" if alike else ""
    effect = "tightens" if sentence > token else "widens"
    first = (
        f"Pooling {effect} the cone most at layer {largest.layer}{rivals}: two tokens have a mean cosine of "
        f"{token:.2f} there, two sentences one of {sentence:.2f}, a gap of {_signed(largest.gap)} (standard error)."
    )
    return [first, *_averaging(largest, claims.rest[at])]


def _averaging(row: PoolingLayer, rest: Claim) -> list[str]:
    if not math.isfinite(row.predicted.stderr):
        return []
    share = (row.predicted.value - row.token.anisotropy) / row.gap.value
    line = (
        f"Averaging alone, of tokens at length 1 with a mean cosine of {row.within.value:.2f} within a sentence and "
        f"{row.between.value:.2f} between sentences, predicts {row.predicted.value:.2f} for the sentences of layer "
        f"{row.layer}: {share:.0%} of the gap"
    )
    if rest.differs:
        tighter = "tighter" if rest.verdict == "greater" else "wider"
        return [f"{line}; that tokens differ in length makes their cone {tighter} by {abs(rest.estimate):.2f}."]
    return [f"{line}, and no more than the noise is left to explain."]


def _last_gap(layers: Sequence[PoolingLayer], claims: PoolingClaims, known: Sequence[int]) -> list[str]:
    if not any(claims.gap[at].differs for at in known):
        return []
    last = layers[known[-1]]
    if not claims.gap[known[-1]].differs:
        return [f"At the last layer, {last.layer}, the gap is not told from noise: {_signed(last.gap)}."]
    return [f"At the last layer, {last.layer}, the gap is {_signed(last.gap)}."]


def _poolings(last: PoolingLayer, bounds: Mapping[str, Mapping[str, float]]) -> list[str]:
    levels = {name: level for name, level in last.poolings.items() if math.isfinite(level.stderr)}
    if len(levels) < 2:
        return []
    by_width = sorted(levels, key=lambda name: levels[name].anisotropy)
    widest, narrowest = by_width[0], by_width[-1]

    def alike(name: str, end: str) -> bool:
        heights = levels[name].anisotropy, levels[end].anisotropy
        return not Claim(heights[0], null=heights[1], bound=bounds[name][end]).differs

    if alike(widest, narrowest):
        return [f"At the last layer, {last.layer}, the cones of the poolings are not told apart."]

    def said(names: Sequence[str]) -> str:
        return listed_words([f"{POOLINGS[name].phrase} ({levels[name].anisotropy:.2f})" for name in names])

    # One that is told neither from the narrowest nor from the widest is neither.
    between = [name for name in by_width if alike(name, widest) and alike(name, narrowest)]
    narrow = [name for name in by_width[::-1] if alike(name, narrowest) and name not in between]
    wide = [name for name in by_width if alike(name, widest) and name not in between]
    rest = f"; {said(between)} may be either" if between else ""
    return [
        f"At the last layer, {last.layer}, the narrowest cone is that of {said(narrow)}, the widest that of "
        f"{said(wide)}{rest}."
    ]


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ± {estimate.stderr:.3f}"
