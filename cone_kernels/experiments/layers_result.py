"""What `layers` finds: levels, rogue dimensions and geometry of every layer, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cone_kernels.experiments.curve_shape import CurveShape, curve_shape
from cone_kernels.experiments.level import Level, differ
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.names import POOLINGS

if TYPE_CHECKING:
    from cone_kernels.metrics import Geometry
    from cone_kernels.state.cone_state import ConeState

SCHEMA = "cone_kernels/layers/2"


@dataclass(frozen=True)
class RogueDimension:
    """A dimension that much of the mean cosine comes from.

    Attributes:
        dimension: its index.
        contribution: c_j, what it adds to the anisotropy; all dimensions add up to it exactly.
        share: c_j / A; NaN where A is 0 or below.
    """

    dimension: int
    contribution: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """The dimension as JSON data."""
        return {"dimension": self.dimension, "contribution": finite(self.contribution), "share": finite(self.share)}


@dataclass(frozen=True)
class Layer:
    """One layer: its number as in Hugging Face's `hidden_states`, what it is, and both levels.

    Attributes:
        layer, name: the number, and the module.
        sentence, token: the levels.
        rogue_dimensions: those that contribute most at the sentence level, descending.
        anisotropy_without_rogue: the mean cosine of what is left of the vectors without those dimensions, from the
            sums alone: (A − Σc_j) / (mean of 1 − Σu_j²), a ratio of means in place of a mean of ratios.
        geometry: None where the second moment was not kept.
    """

    layer: int
    name: str
    sentence: Level
    token: Level
    rogue_dimensions: tuple[RogueDimension, ...] = ()
    anisotropy_without_rogue: float = math.nan
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
        rogue_dimensions, anisotropy_without_rogue, geometry: as those of a `Layer`.
    """

    about: dict[str, Any]
    sentence: Level | None = None
    rogue_dimensions: tuple[RogueDimension, ...] = ()
    anisotropy_without_rogue: float = math.nan
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
    def anisotropy_without_rogue(self) -> float: ...

    @property
    def geometry(self) -> Geometry | None: ...


def shape_to_dict(row: Shaped) -> dict[str, Any]:
    """The shape as JSON data."""
    return {
        "rogue_dimensions": [rogue.to_dict() for rogue in row.rogue_dimensions],
        "anisotropy_without_rogue": finite(row.anisotropy_without_rogue),
        "geometry": _geometry(row.geometry),
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
        published: the published curve to compare this one with, or None.
        output: what a model of sentence-transformers gives for sentences; None for other models.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    layers: tuple[Layer, ...]
    manifest: dict[str, Any]
    state: ConeState = field(repr=False, compare=False)
    published: dict[str, Any] | None = field(default=None, repr=False)
    output: Output | None = None

    @property
    def shape(self) -> CurveShape | None:
        """Builds, dips, peak and crash of the sentence level's curve; None where it has fewer than two values."""
        levels = [row.sentence for row in self.layers]
        # Without errors (one group of sentences) nothing can be told from noise.
        known = [(row.layer, level) for row, level in zip(self.layers, levels, strict=True) if level.reason is None]
        return curve_shape(
            [number for number, _ in known],
            [level.anisotropy for _, level in known],
            [level.stderr for _, level in known],
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
            "published": published,
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """The shape of the curve in plain sentences, each said only where the data says it.

        Differences below three standard errors are not mentioned.
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
    return None if found is None else {name: finite(value) for name, value in asdict(found).items()}


def _summary(result: LayersResult) -> list[str]:
    prompt = result.model.get("prompt")
    said = [f"Every sentence was given after the prompt “{prompt}”, whose tokens are in all numbers."] if prompt else []
    own = [] if result.output is None else [result.output.summary(result.state.pooling)]
    return said + own + _of_layers(result)


def _of_layers(result: LayersResult) -> list[str]:
    shape = result.shape
    known = [row for row in result.layers if math.isfinite(row.sentence.stderr) and math.isfinite(row.token.stderr)]
    if shape is None or len(known) < 2:
        return []
    peak = next(row for row in known if row.layer == shape.peak)
    lines = [
        f"The cone is tightest at layer {peak.layer}: two sentences picked at random have a mean cosine of "
        f"{shape.peak_height:.2f} there."
    ]
    lines += _moves(shape, {row.layer: row.sentence.anisotropy for row in known})
    if known[-2:] == list(result.layers[-2:]):
        lines.append(_ending(shape, known[-2], known[-1]))
    else:
        unknown = listed_words([str(row.layer) for row in result.layers if row not in known])
        lines.append(f"How it ends cannot be told: there is no mean cosine, or no error of one, at layer {unknown}.")
    if result.state.pooling == "mean" and differ(peak.sentence, peak.token, by=0.05):
        effect = "tighter" if peak.sentence.anisotropy > peak.token.anisotropy else "wider"
        lines.append(
            f"Averaging tokens into sentences makes the cone look {effect}: at layer {peak.layer} two tokens have a "
            f"mean cosine of {peak.token.anisotropy:.2f}, two sentences one of {peak.sentence.anisotropy:.2f}."
        )
    return lines + _rogue_summary(known) + _geometry_summary(known)


def _moves(shape: CurveShape, heights: dict[int, float]) -> list[str]:
    if not shape.builds:
        return ["It does not build up over the layers: no rise is larger than the noise."]
    builds = [
        f"from {heights[move.start]:.2f} at layer {move.start} to {heights[move.end]:.2f} at layer {move.end}"
        for move in shape.builds
    ]
    dips = [f"by {move.height:.2f} at layer {move.end}" for move in shape.dips]
    return [f"It builds {listed_words(builds)}" + (f", and dips {listed_words(dips)}." if dips else ".")]


def _ending(shape: CurveShape, before: Layer, last: Layer) -> str:
    a, b = before.sentence.anisotropy, last.sentence.anisotropy
    step = f"from {a:.2f} at layer {before.layer} to {b:.2f} at layer {last.layer}"
    if shape.crash:
        return f"It opens in the last layer: {step}."
    if differ(before.sentence, last.sentence, by=0.1):
        return f"It closes in the last layer: {step}."
    return f"There is no crash at the end: the last step goes {step}."


def _rogue_summary(known: Sequence[Layer]) -> list[str]:
    shares = {row.layer: sum(rogue.share for rogue in row.rogue_dimensions) for row in known if row.rogue_dimensions}
    most = max((layer for layer, share in shares.items() if math.isfinite(share)), key=shares.__getitem__, default=None)
    if most is None or shares[most] < 0.25:
        return []
    row = next(row for row in known if row.layer == most)
    names = listed_words([str(rogue.dimension) for rogue in row.rogue_dimensions])
    which = f"dimension {names} carries" if len(row.rogue_dimensions) == 1 else f"dimensions {names} carry"
    return [
        f"A few dimensions do much of it: at layer {most}, {which} {shares[most]:.0%} of the mean cosine, which would "
        f"be about {row.anisotropy_without_rogue:.2f} without them."
    ]


def _geometry_summary(known: Sequence[Layer]) -> list[str]:
    last = known[-1]
    if last.geometry is None:
        return []
    share = f"the first principal axis holds {last.geometry.explained_variance_ratio:.1%} of the variance"
    return [
        f"Around their mean the sentences of layer {last.layer} have a participation ratio of "
        f"{last.geometry.participation_ratio:.1f}: as if they spread evenly over so many directions; {share}."
    ]


def listed_words(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
