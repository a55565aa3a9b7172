"""Experiment 1: the anisotropy of every layer of a model over a corpus, at the sentence and the token level."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.curve_shape import CurveShape, curve_shape
from cone_kernels.experiments.level import Level, differ, levels_of
from cone_kernels.experiments.published import MXBAI_EMBED_LARGE
from cone_kernels.experiments.result import ExperimentResult, finite
from cone_kernels.runs.measure import measured
from cone_kernels.runs.measurement import Measurement, threads_of
from cone_kernels.runs.options import ShardOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.models.loading import LoadedModel
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
class Geometry:
    """How the sentence vectors of a layer spread around their mean, from the second moment.

    Attributes:
        participation_ratio: (tr C)²/‖C‖_F², between 1 and d.
        iso_score: IsoScore (Rudman et al. 2022), between 0 and 1.
        explained_variance_ratio: λ₁/tr C.
        effective_rank: exp of the entropy of λ/Σλ (Roy & Vetterli 2007).
        rank_me: RankMe (Garrido et al. 2023), from the uncentred singular values.
    """

    participation_ratio: float
    iso_score: float
    explained_variance_ratio: float
    effective_rank: float
    rank_me: float

    def to_dict(self) -> dict[str, Any]:
        """The geometry as JSON data."""
        return {name: finite(value) for name, value in vars(self).items()}


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
            "rogue_dimensions": [rogue.to_dict() for rogue in self.rogue_dimensions],
            "anisotropy_without_rogue": finite(self.anisotropy_without_rogue),
            "geometry": self.geometry.to_dict() if self.geometry else None,
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
        published: the curve that was asked for beside it, or None.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    layers: tuple[Layer, ...]
    manifest: dict[str, Any]
    state: ConeState = field(repr=False, compare=False)
    published: dict[str, Any] | None = field(default=None, repr=False)

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
            "layers": [layer.to_dict() for layer in self.layers],
            "shape": self.shape.to_dict() if self.shape else None,
            "published": published,
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """The shape of the curve in plain sentences, each said only where the data says it.

        Differences below three standard errors are not spoken of.
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
        return "\n".join(lines)


def layers(
    model: str | os.PathLike[str] | LoadedModel | None = None,
    corpus: str | os.PathLike[str] | Corpus | Iterable[str] | None = None,
    *,
    state: ConeState | str | os.PathLike[str] | None = None,
    second_moment: bool = False,
    rogue: int = 3,
    published: bool = False,
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> LayersResult:
    """Measures the cone at every layer, in one pass over the corpus.

    Args:
        model: a folder, a hub id, or what `load_model` returned.
        corpus: a file, a `Corpus`, or sentences.
        state: a state saved before, in place of model and corpus: what it holds, as `cone show` does.
        second_moment: also participation ratio, IsoScore, λ₁ share, effective rank and RankMe of every layer.
        rogue: how many dimensions are listed for each layer.
        published: lay the published curve of mxbai-embed-large-v1 beside this one.
        save_state: where to write the state.
        options: `ShardOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        StateFileError: the state's file is damaged.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: an option is out of range, or the corpus has no sentence.

    Example:
        >>> result = layers("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=300)
        >>> result.layers[2].sentence.anisotropy
        0.7207...
    """
    if rogue < 0:
        raise ValueError(f"rogue: got {rogue}; it must be 0 or more")
    if state is not None and second_moment:
        raise ValueError("second_moment: got True beside a state, which has kept what it has kept")
    measurement = measured(model, corpus, state, second_moment=second_moment, save_state=save_state, **options)
    with threads_of(measurement):
        return layers_of(measurement, rogue=rogue, published=published)


def layers_of(measurement: Measurement, *, rogue: int = 3, published: bool = False) -> LayersResult:
    """The result of a measurement; see `layers`."""
    state = measurement.state
    sentence, token = levels_of(state.sentence), levels_of(state.token)
    geometries = _geometries(state)
    rows = []
    for at, (number, name) in enumerate(zip(state.layers, measurement.layer_names, strict=True)):
        dimensions, without = _rogue_dimensions(state, at, rogue, sentence[at].anisotropy)
        rows.append(Layer(number, name, sentence[at], token[at], dimensions, without, geometries[at]))
    return LayersResult(
        model=measurement.model,
        corpus=measurement.corpus,
        layers=tuple(rows),
        manifest=measurement.manifest,
        state=state,
        published=MXBAI_EMBED_LARGE if published else None,
    )


def _rogue_dimensions(
    state: ConeState, at: int, rogue: int, anisotropy: float
) -> tuple[tuple[RogueDimension, ...], float]:
    from cone_kernels import metrics

    moments = state.sentence.select(state.layers[at])
    contributions = metrics.contributions(moments)[0]  # (d,)
    if not rogue or not math.isfinite(anisotropy):
        return (), math.nan
    largest = contributions.topk(min(rogue, len(contributions)))
    share = 1 / anisotropy if anisotropy > 0 else math.nan
    found = tuple(
        RogueDimension(j, value, value * share)
        for j, value in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
    )
    kept_length = 1 - float(moments.unit_sq_sum[0, largest.indices].sum() / moments.count.sum())
    left = anisotropy - float(largest.values.sum())
    return found, left / kept_length if len(found) < len(contributions) else math.nan


def _geometries(state: ConeState) -> list[Geometry | None]:
    """One layer at a time: a covariance is (d, d) float64."""
    if "second_moment" not in state.sentence.fields:
        return [None] * len(state.layers)
    from cone_kernels import metrics
    from cone_kernels.ops.top_eigenvectors import top_eigenvectors

    found: list[Geometry | None] = []
    for layer in state.layers:
        moments = state.sentence.select(layer)
        if int(moments.count.sum()) < 2:
            found.append(None)
            continue
        covariance = metrics.covariance(moments)  # (1, d, d)
        top = top_eigenvectors(covariance=covariance, k=1)
        found.append(
            Geometry(
                participation_ratio=float(metrics.participation_ratio(covariance)),
                iso_score=float(metrics.iso_score(covariance)),
                explained_variance_ratio=float(metrics.explained_variance_ratio(covariance, top.values)),
                effective_rank=float(metrics.effective_rank(covariance)),
                rank_me=float(metrics.rank_me(moments)),
            )
        )
    return found


def _summary(result: LayersResult) -> list[str]:
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
    lines.append(_ending(shape, known[-2], known[-1]))
    if differ(peak.sentence, peak.token, by=0.05):
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
    return [f"It builds {_listed(builds)}" + (f", and dips {_listed(dips)}." if dips else ".")]


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
    names = _listed([str(rogue.dimension) for rogue in row.rogue_dimensions])
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


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
