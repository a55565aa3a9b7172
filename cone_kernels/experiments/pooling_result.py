"""What `pooling` finds: tokens against sentences at every layer, the poolings, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.level import Level, differ
from cone_kernels.experiments.result import Estimate, ExperimentResult
from cone_kernels.names import POOLINGS

if TYPE_CHECKING:
    from cone_kernels.state.cone_state import ConeState

SCHEMA = "cone_kernels/pooling/1"

# How many standard errors make a difference.
_CLEAR = 3.0


@dataclass(frozen=True)
class PoolingLayer:
    """One layer.

    Attributes:
        layer, name: its number as in Hugging Face's `hidden_states`, and the module.
        token, sentence: the levels; a sentence is the mean of its tokens.
        gap: sentence-level less token-level anisotropy.
        within: W, the mean cosine of two tokens of one sentence.
        between: B, the mean cosine of two tokens of different sentences.
        predicted: the anisotropy of sentences that averaging alone gives, B / ((1 + (T̄−1)·W)/T̄) for T̄ tokens a
            sentence.
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
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    layers: tuple[PoolingLayer, ...]
    manifest: dict[str, Any]
    state: ConeState = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        return {
            "schema": SCHEMA,
            "experiment": "pooling",
            "model": self.model,
            "corpus": self.corpus,
            "layers": [row.to_dict() for row in self.layers],
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """How much of the cone is made by pooling, in plain sentences.

        A difference is mentioned where it is larger than three standard errors.
        """
        return tuple(_summary(self.layers))

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


def _summary(layers: Sequence[PoolingLayer]) -> list[str]:
    known = [row for row in layers if math.isfinite(row.gap.stderr)]
    if not known:
        return []
    lines = _largest_gap(known) + (_last_gap(known) if known[-1] is layers[-1] else [])
    # The last layer is the one whose vectors are used.
    return lines + (_poolings(layers[-1]) if len(layers[-1].poolings) > 1 else [])


def _largest_gap(known: Sequence[PoolingLayer]) -> list[str]:
    largest = max(known, key=lambda row: abs(row.gap.value))
    if not _clear(largest.gap.value, largest.gap.stderr):
        return ["At no layer does the cone of the sentences differ from that of the tokens by more than the noise."]
    token, sentence = largest.token.anisotropy, largest.sentence.anisotropy
    alike = [
        str(row.layer)
        for row in known
        if row is not largest
        and not _clear(abs(largest.gap.value) - abs(row.gap.value), math.hypot(largest.gap.stderr, row.gap.stderr))
    ]
    rivals = f" (as far as the noise tells, it is as large at layer {', '.join(alike)})" if alike else ""
    effect = "tightens" if sentence > token else "widens"
    first = (
        f"Pooling {effect} the cone most at layer {largest.layer}{rivals}: two tokens have a mean cosine of "
        f"{token:.2f} there, two sentences one of {sentence:.2f}, a gap of {_signed(largest.gap)} (standard error)."
    )
    return [first, *_averaging(largest)]


def _averaging(row: PoolingLayer) -> list[str]:
    if not math.isfinite(row.predicted.stderr):
        return []
    share = (row.predicted.value - row.token.anisotropy) / row.gap.value
    line = (
        f"Averaging alone, over tokens with a mean cosine of {row.within.value:.2f} within a sentence and "
        f"{row.between.value:.2f} between sentences, predicts {row.predicted.value:.2f} for the sentences of layer "
        f"{row.layer}: {share:.0%} of the gap"
    )
    rest = row.sentence.anisotropy - row.predicted.value
    if _clear(rest, math.hypot(row.sentence.stderr, row.predicted.stderr)):
        return [f"{line}; their cone is {'tighter' if rest > 0 else 'wider'} than that by {abs(rest):.2f}."]
    return [f"{line}, and no more than the noise is left to explain."]


def _last_gap(known: Sequence[PoolingLayer]) -> list[str]:
    last = known[-1]
    if not any(_clear(row.gap.value, row.gap.stderr) for row in known):
        return []
    if not _clear(last.gap.value, last.gap.stderr):
        return [f"At the last layer, {last.layer}, the gap is no larger than the noise: {_signed(last.gap)}."]
    return [f"At the last layer, {last.layer}, the gap is {_signed(last.gap)}."]


def _poolings(last: PoolingLayer) -> list[str]:
    levels = {name: level for name, level in last.poolings.items() if math.isfinite(level.stderr)}
    if len(levels) < 2:
        return []
    by_width = sorted(levels, key=lambda name: levels[name].anisotropy)
    widest, narrowest = by_width[0], by_width[-1]
    if not differ(levels[widest], levels[narrowest], by=0.0):
        return [f"At the last layer, {last.layer}, the poolings cannot be told apart: their cones are alike."]
    ends = []
    for end, ordered in ((narrowest, by_width[::-1]), (widest, by_width)):
        alike = [name for name in ordered if name == end or not differ(levels[name], levels[end], by=0.0)]
        ends.append(", ".join(f"{POOLINGS[name].phrase} ({levels[name].anisotropy:.2f})" for name in alike))
    return [f"At the last layer, {last.layer}, the narrowest cone is that of {ends[0]}, the widest that of {ends[1]}."]


def _clear(difference: float, stderr: float) -> bool:
    return abs(difference) > _CLEAR * stderr


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ± {estimate.stderr:.3f}"
