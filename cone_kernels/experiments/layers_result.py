"""What `layers` finds: levels, rogue dimensions and geometry of every layer, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cone_kernels.experiments.cone_claims import ConeClaims
from cone_kernels.experiments.curve_shape import CRASH, CurveShape, curve_shape
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.layer_steps import LayerStep, steps_in_words
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.population_claims import geometry_in_words
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.experiments.rogue_dimensions import NOT_KNOWN, RogueDimension, WithoutRogue
from cone_kernels.names import BASELINES, POOLINGS, listed_words, numbered
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.metrics import Geometry
    from cone_kernels.state.cone_state import ConeState

SCHEMA = "cone_kernels/layers/2"


@dataclass(frozen=True)
class Layer:
    """One layer: its number as in Hugging Face's `hidden_states`, what it is, and both levels.

    Attributes:
        layer, name: the number, and the module.
        sentence, token: the levels.
        rogue_dimensions: those that contribute most at the sentence level, descending.
        without_rogue: the mean cosine of what is left of the vectors without those dimensions.
        geometry: None where the second moment was not kept.
    """

    layer: int
    name: str
    sentence: Level
    token: Level
    rogue_dimensions: tuple[RogueDimension, ...] = ()
    without_rogue: WithoutRogue = NOT_KNOWN
    geometry: Geometry | None = None

    def to_dict(self) -> dict[str, Any]:
        """The layer as JSON data."""
        return {
            "layer": self.layer,
            "name": self.name,
            "sentence": self.sentence.to_dict(),
            "token": self.token.to_dict(),
            **shape_to_dict(self),
        }


@dataclass(frozen=True)
class Output:
    """The vectors that the model itself gives for sentences, as `encode` of sentence-transformers does.

    Attributes:
        about: modules, pooling, dim, prompt; where it was not measured, the modules and the `reason`.
        sentence: the level; None where it was not measured.
        rogue_dimensions, without_rogue, geometry: as those of a `Layer`.
    """

    about: dict[str, Any]
    sentence: Level | None = None
    rogue_dimensions: tuple[RogueDimension, ...] = ()
    without_rogue: WithoutRogue = NOT_KNOWN
    geometry: Geometry | None = None

    def to_dict(self) -> dict[str, Any]:
        """The output as JSON data."""
        if self.sentence is None:
            return dict(self.about)
        return {**self.about, "sentence": self.sentence.to_dict(), **shape_to_dict(self)}

    def summary(self, pooling: str) -> str:
        """What it is, in one sentence.

        Args:
            pooling: that of the layers.
        """
        if self.sentence is None:
            return f"The model's own output is not measured, because {self.about['reason']}."
        made = ", ".join(self.about.get("modules", ["its modules"]))
        given = f"What the model itself gives for a sentence ({made})"
        if self.sentence.reason is not None:
            return f"{given} has no mean cosine here: {self.sentence.reason}."
        said = f"{given} has a mean cosine of {self.sentence.anisotropy:.3f} ± {self.sentence.stderr:.3f}"
        own, phrases = str(self.about.get("pooling")), {name: about.phrase for name, about in POOLINGS.items()}
        if own != pooling:
            return f"{said}; it pools by {phrases.get(own, own)}, and the layers are pooled by {phrases[pooling]}."
        if self.about.get("include_prompt") is False:
            return f"{said}; it leaves the prompt's tokens out of the pooling, and the layers have them in."
        return f"{said}."


class Shaped(Protocol):
    """What has the shape of a cone: its rogue dimensions, and its geometry where second moments are kept."""

    @property
    def rogue_dimensions(self) -> tuple[RogueDimension, ...]: ...

    @property
    def without_rogue(self) -> WithoutRogue: ...

    @property
    def geometry(self) -> Geometry | None: ...


def shape_to_dict(row: Shaped) -> dict[str, Any]:
    """The shape as JSON data."""
    return {
        "rogue_dimensions": [rogue.to_dict() for rogue in row.rogue_dimensions],
        **row.without_rogue.to_dict(),
        "geometry": _geometry(row.geometry),
        "population": None if row.geometry is None else row.geometry.population.to_dict(),
    }


@dataclass(frozen=True)
class LayersResult(ExperimentResult):
    """What `layers` found.

    Attributes:
        model: what was measured; `name`, `architecture`, `weights_sha256`, `final_norm`, ...
        corpus: what it was measured on, and what was left out.
        layers: one entry a layer, 0 the embeddings.
        manifest: versions, device, backend, times and options of the run.
        state: the sums that all of it was computed from.
        claims: what of the layers may be said; `summary` says it.
        published: the published curve to compare this one with, or None.
        output: what a model of sentence-transformers gives for sentences; None for other models.
        steps: what each layer changes of the one before.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    layers: tuple[Layer, ...]
    manifest: dict[str, Any]
    state: ConeState = field(repr=False, compare=False)
    claims: ConeClaims = field(repr=False, compare=False)
    published: dict[str, Any] | None = field(default=None, repr=False)
    output: Output | None = None
    steps: tuple[LayerStep, ...] = ()

    @property
    def shape(self) -> CurveShape | None:
        """Builds, dips, peak and crash of the sentence level's curve; None where it has fewer than two values."""
        # Without errors (one group of sentences) nothing can be told from noise.
        known = [at for at, row in enumerate(self.layers) if row.sentence.reason is None]
        return curve_shape(
            [self.layers[at].layer for at in known],
            [self.layers[at].sentence.anisotropy for at in known],
            [[self.claims.bounds[at][other] for other in known] for at in known],
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        published = self.published and {**self.published, "anisotropy": list(self.published["anisotropy"])}
        return {
            "schema": SCHEMA,
            "experiment": "layers",
            "model": self.model,
            "corpus": self.corpus,
            "pooling": self.state.pooling,
            "layers": [layer.to_dict() for layer in self.layers],
            "output": None if self.output is None else self.output.to_dict(),
            "shape": self.shape.to_dict() if self.shape else None,
            "steps": [step.to_dict() for step in self.steps],
            "dependence": Dependence.of(self.state).to_dict(),
            "published": published,
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """The shape of the curve in plain sentences, each said only where the data says it.

        All differences of layers are judged together: with 19 of 20 samples none that is mentioned is noise.
        """
        return tuple(_summary(self))

    def __repr__(self) -> str:
        corpus = f"{self.corpus['sentences']} sentences of {self.corpus['name'] or 'a saved state'}"
        lines = [
            f"LayersResult({self.model['architecture']}, {corpus})",
            "  layer  sentence  (stderr)     token  (stderr)",
        ]
        for row in self.layers:
            levels = (f"{level.anisotropy:9.4f} {level.stderr:9.4f}" for level in (row.sentence, row.token))
            lines.append(f"  {row.layer:>5} {' '.join(levels)}")
        if self.output is not None and self.output.sentence is not None:
            lines.append(f"  output {self.output.sentence.anisotropy:8.4f} {self.output.sentence.stderr:9.4f}")
        return "\n".join(lines)


def _geometry(found: Geometry | None) -> dict[str, float | None] | None:
    return None if found is None else {name: finite(value) for name, value in found.values.items()}


def _summary(result: LayersResult) -> list[str]:
    prompt = result.model.get("prompt")
    said = [f"Every sentence was given after the prompt “{prompt}”, whose tokens are in all numbers."] if prompt else []
    baseline = result.model.get("baseline")
    said = [f"This is a baseline: {BASELINES.get(baseline, baseline)}.", *said] if baseline else said
    own = [] if result.output is None else [result.output.summary(result.state.pooling)]
    return said + own + _of_layers(result) + list(Dependence.of(result.state).summary())


def _of_layers(result: LayersResult) -> list[str]:
    shape = result.shape
    known = [at for at, row in enumerate(result.layers) if math.isfinite(row.sentence.stderr)]
    if shape is None or len(known) < 2:
        return []
    if all(math.isnan(result.claims.cone[at].bound) for at in known):
        count = result.layers[known[-1]].sentence.count
        return [f"Of the layers nothing is told from noise by {count:,} sentences: they are too few."]
    with_cone = [at for at in known if result.claims.cone[at].verdict == "greater"]
    if not with_cone:
        highest = result.layers[max(known, key=lambda at: result.layers[at].sentence.anisotropy)]
        level = highest.sentence
        lines = [
            f"No cone is told from noise at any layer: the mean cosine of two sentences is {level.anisotropy:.3f} ± "
            f"{level.stderr:.3f} (standard error) at most, at layer {highest.layer}."
        ]
        return lines + _geometry_summary(result.layers[known[-1]])
    lines = _peak(result, shape)
    lines += _moves(shape, {row.layer: row.sentence.anisotropy for row in result.layers})
    if known[-2:] == [len(result.layers) - 2, len(result.layers) - 1]:
        lines.append(_ending(result, known[-2], known[-1]))
    else:
        unknown = listed_words([str(row.layer) for at, row in enumerate(result.layers) if at not in known])
        lines.append(f"How it ends cannot be told: there is no mean cosine, or no error of one, at layer {unknown}.")
    return (
        lines
        + _averaging(result, shape)
        + _rogue_summary(result, with_cone)
        + steps_in_words(result.steps, result.state.sentence.dim)
        + _geometry_summary(result.layers[known[-1]])
    )


def _peak(result: LayersResult, shape: CurveShape) -> list[str]:
    said = "two sentences picked at random have a mean cosine of"
    if len(shape.alike) == 1:
        return [f"The cone is tightest at layer {shape.peak}: {said} {shape.peak_height:.2f} there."]
    numbers = [row.layer for row in result.layers]
    if len(shape.alike) == len(numbers):
        heights = [row.sentence.anisotropy for row in result.layers]
        span = f"{min(heights):.2f} to {max(heights):.2f}"
        return [f"At no layer the cone is told to be tighter than at another: {said} {span}."]
    heights = [row.sentence.anisotropy for row in result.layers if row.layer in shape.alike]
    low, high = f"{min(heights):.2f}", f"{max(heights):.2f}"
    return [
        f"The cone is tightest at {numbered(shape.alike, numbers)}, which are not told apart: {said} "
        f"{high if low == high else f'{low} to {high}'} there."
    ]


def _moves(shape: CurveShape, heights: dict[int, float]) -> list[str]:
    if not shape.builds:
        return ["No rise over the layers is told from noise."]
    builds = [
        f"from {heights[move.start]:.2f} at layer {move.start} to {heights[move.end]:.2f} at layer {move.end}"
        for move in shape.builds
    ]
    dips = [f"by {move.height:.2f} at layer {move.end}" for move in shape.dips]
    return [f"It builds {listed_words(builds)}" + (f", and dips {listed_words(dips)}." if dips else ".")]


def _ending(result: LayersResult, before: int, last: int) -> str:
    rows = result.layers[before], result.layers[last]
    a, b = (row.sentence.anisotropy for row in rows)
    step = f"from {a:.2f} at layer {rows[0].layer} to {b:.2f} at layer {rows[1].layer}"
    claim = Claim(b, null=a, bound=result.claims.bounds[before][last], margin=CRASH)
    if claim.verdict == "less":
        return f"It opens in the last layer: {step}."
    if claim.verdict == "greater":
        return f"It closes in the last layer: {step}."
    if claim.verdict == "equal":
        return f"There is no crash at the end: the last step goes {step}."
    needed = claim.needed(rows[1].sentence.count)
    more = "" if needed is None else f"; about {needed:,} sentences would decide it"
    error = f"± {claim.bound:.2f}" if math.isfinite(claim.bound) else "its error is not known of so few sentences"
    return f"Whether it crashes or closes by {CRASH} at the end is undecided ({step}, {error}){more}."


def _averaging(result: LayersResult, shape: CurveShape) -> list[str]:
    at = next(at for at, row in enumerate(result.layers) if row.layer == shape.peak)
    row, claim = result.layers[at], result.claims.gap[at]
    if result.state.pooling != "mean" or not claim.differs:
        return []
    effect = "tighter" if claim.verdict == "greater" else "wider"
    return [
        f"Averaging tokens into sentences makes the cone look {effect}: at layer {row.layer} two tokens have a "
        f"mean cosine of {row.token.anisotropy:.2f}, two sentences one of {row.sentence.anisotropy:.2f}."
    ]


def _rogue_summary(result: LayersResult, with_cone: Sequence[int]) -> list[str]:
    shares = {
        at: sum(rogue.share for rogue in result.layers[at].rogue_dimensions)
        for at in with_cone
        if result.claims.share and result.claims.share[at].verdict == "greater"
    }
    if not shares:
        return []
    most = max(shares, key=shares.__getitem__)
    row = result.layers[most]
    names = listed_words([str(rogue.dimension) for rogue in row.rogue_dimensions])
    which = f"dimension {names} carries" if len(row.rogue_dimensions) == 1 else f"dimensions {names} carry"
    said = f"A few dimensions do much of it: at layer {row.layer}, {which} {shares[most]:.0%} of the mean cosine"
    without = row.without_rogue.in_words(len(row.rogue_dimensions), row.sentence.count, "sentences")
    return [f"{said}{without}."]


def _geometry_summary(last: Layer) -> list[str]:
    if last.geometry is None:
        return []
    which = f"the {last.sentence.count:,} sentences of layer {last.layer}"
    return list(geometry_in_words(last.geometry, "sentences", which))
