"""Experiment 1: the anisotropy of every layer of a model over a corpus, at the sentence and the token level."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.cone_claims import ConeClaims, share_claims
from cone_kernels.experiments.layer_steps import layer_steps
from cone_kernels.experiments.layers_result import Layer, LayersResult, Output
from cone_kernels.experiments.level import levels_of
from cone_kernels.experiments.published import MXBAI_EMBED_LARGE
from cone_kernels.experiments.rogue_dimensions import RogueDimension, WithoutRogue, rogue_dimensions
from cone_kernels.experiments.without_rogue import of_sentences
from cone_kernels.names import OUTPUT
from cone_kernels.names import Layer as LayerName
from cone_kernels.runs.measure import measured
from cone_kernels.runs.measurement import Measurement, threads_of
from cone_kernels.runs.options import ShardOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.metrics import Geometry
    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.state.cone_state import ConeState, Moments
    from cone_kernels.statistics.claims import Claim


def layers(
    model: ModelLike | None = None,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any] | None = None,
    *,
    state: ConeState | str | os.PathLike[str] | None = None,
    pooling: str = "mean",
    second_moment: bool = False,
    rogue: int = 3,
    published: bool = False,
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> LayersResult:
    """Measures the cone at every layer, and in a model's own output where it has one, in one pass over the corpus.

    Where a few dimensions carry much of a layer's mean cosine, 256 of the sentences are drawn and run once more, for
    what it is without them.

    Args:
        model: a folder, a hub id, what `load_model` returned, or a model in memory (`ModelLike`).
        corpus: a file, a `Corpus`, sentences, or records that have them in a `field`.
        state: a state saved before, in place of model and corpus: what it holds, as `cone show` does.
        pooling: how the sentence vectors of the layers are made of tokens, one of `cone_kernels.names.POOLINGS`, or
            "model": the pooling that a model of sentence-transformers has itself.
        second_moment: also the `Geometry` of every layer: participation ratio, IsoScore, ...
        rogue: how many dimensions are listed for each layer.
        published: also give the published curve of mxbai-embed-large-v1, to compare this one with.
        save_state: where to write the state.
        options: `ShardOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        StateFileError: the state's file is damaged.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: an option is out of range, or the corpus has no sentence.

    Examples:
        >>> result = layers("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=300)
        >>> result.layers[2].sentence.anisotropy
        0.7207...
    """
    if rogue < 0:
        raise ValueError(f"rogue: got {rogue}; it must be 0 or more")
    if state is not None and second_moment:
        raise ValueError(
            "second_moment: got True together with a state; it must be False, for nothing can be added to a state"
        )
    gathered: dict[str, Any] = {"second_moment": second_moment, "pooling": pooling}
    measurement = measured(model, corpus, state, **gathered, save_state=save_state, **options)
    with threads_of(measurement):
        return layers_of(measurement, rogue=rogue, published=published, options=options)


def layers_of(
    measurement: Measurement, *, rogue: int = 3, published: bool = False, options: Mapping[str, Any] | None = None
) -> LayersResult:
    """The result of a measurement; see `layers`.

    Args:
        measurement: of a model, or a saved state.
        rogue, published: as in `layers`.
        options: those of the measurement, where the model may run a draw of its sentences once more: for what is left
            without the rogue dimensions where these carry much of the mean cosine. None: the sums alone tell it.
    """
    state = measurement.state
    sentence, token = levels_of(state.sentence), levels_of(state.token)
    rows = []
    for at, (number, name) in enumerate(zip(state.layers, measurement.layer_names, strict=True)):
        # One layer at a time: a covariance is (d, d) float64.
        moments = state.sentence.select(number)
        found = shape_of(moments, rogue, sentence[at].anisotropy)
        rows.append(Layer(number, name, sentence[at], token[at], *found))
    result = LayersResult(
        model=measurement.model,
        corpus=measurement.corpus,
        layers=tuple(rows),
        manifest=measurement.manifest,
        state=state,
        claims=ConeClaims.of(state, rogue),
        published=MXBAI_EMBED_LARGE if published else None,
        output=_output(measurement, rogue),
        steps=layer_steps(state.sentence, state.layers),
    )
    return result if options is None else _exact(result, measurement, rogue, options)


def _output(measurement: Measurement, rogue: int) -> Output | None:
    described, moments = measurement.model.get("output"), measurement.state.output
    if moments is None:
        return None if described is None else Output(described)
    (level,) = levels_of(moments)
    about = {**(described or {}), "prompt": measurement.model.get("prompt")}
    return Output(about, level, *shape_of(moments, rogue, level.anisotropy))


def _exact(result: LayersResult, measurement: Measurement, rogue: int, options: Mapping[str, Any]) -> LayersResult:
    """The result with what is left without rogue dimensions vector by vector, where these carry much of a layer."""
    claims = [*result.claims.share, *_shares_of_output(measurement, rogue)]
    if all(claim.verdict != "greater" for claim in claims):
        return result
    places: dict[LayerName, Layer | Output] = {row.layer: row for row in result.layers}
    places |= {} if result.output is None else {OUTPUT: result.output}
    dimensions = {
        name: [one.dimension for one in row.rogue_dimensions] for name, row in places.items() if row.rogue_dimensions
    }
    found = of_sentences(measurement, dimensions, options)
    layers = tuple(replace(row, without_rogue=found.get(row.layer, row.without_rogue)) for row in result.layers)
    output = result.output
    if output is not None and OUTPUT in found:
        output = replace(output, without_rogue=found[OUTPUT])
    return replace(result, layers=layers, output=output)


def _shares_of_output(measurement: Measurement, rogue: int) -> list[Claim]:
    return [] if measurement.state.output is None else share_claims(measurement.state.output, rogue)


def shape_of(
    moments: Moments, rogue: int, anisotropy: float
) -> tuple[tuple[RogueDimension, ...], WithoutRogue, Geometry | None]:
    """Rogue dimensions of one layer, its anisotropy without them as the sums tell it, and its geometry where second
    moments are kept."""
    from cone_kernels import metrics

    geometry = metrics.geometry(moments) if "second_moment" in moments.fields else None
    return (*rogue_dimensions(moments, rogue, anisotropy), geometry)
