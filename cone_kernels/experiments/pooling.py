"""Experiment 2: the cone of tokens against that of sentences, what averaging alone makes of it, and the poolings."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.level import levels_of
from cone_kernels.experiments.pooling_claims import PoolingClaims
from cone_kernels.experiments.pooling_result import PoolingLayer, PoolingResult
from cone_kernels.experiments.result import Estimate
from cone_kernels.models.names import with_own_pooling
from cone_kernels.names import asked_poolings
from cone_kernels.runs.measure import measured
from cone_kernels.runs.measurement import Measurement, threads_of
from cone_kernels.runs.options import ShardOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.state.cone_state import ConeState


def pooling(
    model: ModelLike | None = None,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any] | None = None,
    *,
    state: ConeState | str | os.PathLike[str] | None = None,
    pooling: str | Sequence[str] = ("mean",),
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> PoolingResult:
    """Tokens against sentences at every layer, and the poolings side by side, in one pass over the corpus.

    Args:
        model: a folder, a hub id, what `load_model` returned, or a model in memory (`ModelLike`).
        corpus: a file, a `Corpus`, sentences, or records that have them in a `field`.
        state: a state saved before, in place of model and corpus.
        pooling: names of `cone_kernels.names.POOLINGS`, or "all"; of a state those that it keeps. "model" is the
            pooling that a model of sentence-transformers has itself.
        save_state: where to write the state.
        options: `ShardOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        StateFileError: the state's file is damaged.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: no pooling, an unknown one or one that is not in the state; an option is out of range; the corpus
            has no sentence.

    Examples:
        >>> result = pooling("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=300, pooling="all")
        >>> result.layers[2].gap
        Estimate(value=0.521..., stderr=...)
    """
    names = asked_poolings(pooling)
    measurement = measured(model, corpus, state, poolings=names, save_state=save_state, **options)
    with threads_of(measurement):
        return pooling_of(measurement, pooling=names)


def pooling_of(measurement: Measurement, *, pooling: str | Sequence[str] = ("mean",)) -> PoolingResult:
    """The result of a measurement; see `pooling`.

    Raises:
        ValueError: no pooling, an unknown one or one that the measurement did not keep.
    """
    from cone_kernels import metrics

    state, names = measurement.state, with_own_pooling(asked_poolings(pooling), measurement.model)
    if state.pooling != "mean":
        raise ValueError(f"state: got one of the pooling {state.pooling!r}; it must be of the mean")
    token, sentence = levels_of(state.token), levels_of(state.sentence)
    pooled = {name: levels_of(state.pooled(name)) for name in names}
    gap = _estimates(metrics.pooling_gap(state), metrics.pooling_gap_stderr(state))
    within = _estimates(metrics.within_sentence_cosine(state.token), metrics.within_stderr(state.token))
    between = _estimates(metrics.between_sentence_cosine(state.token), metrics.between_stderr(state.token))
    predicted = _estimates(metrics.predicted_anisotropy(state.token), metrics.predicted_anisotropy_stderr(state.token))
    rows = tuple(
        PoolingLayer(
            layer=number,
            name=name,
            token=token[at],
            sentence=sentence[at],
            gap=gap[at],
            within=within[at],
            between=between[at],
            predicted=predicted[at],
            poolings={pooling: levels[at] for pooling, levels in pooled.items()},
            reason=_reason(gap[at], within[at], between[at], predicted[at]),
        )
        for at, (number, name) in enumerate(zip(state.layers, measurement.layer_names, strict=True))
    )
    claims = PoolingClaims.of(state, names)
    return PoolingResult(measurement.model, measurement.corpus, rows, measurement.manifest, state, claims)


def _estimates(values: Any, stderrs: Any) -> list[Estimate]:
    return [Estimate(value, stderr) for value, stderr in zip(values.tolist(), stderrs.tolist(), strict=True)]


def _reason(gap: Estimate, within: Estimate, between: Estimate, predicted: Estimate) -> str | None:
    found = []
    if math.isnan(gap.value):
        found.append("gap: one of the two levels has no pair")
    if math.isnan(within.value):
        found.append("within, predicted: no sentence has two tokens that were used")
    if math.isnan(between.value):
        found.append("between, predicted: fewer than two sentences have a token that was used")
    elif math.isnan(predicted.value) and math.isfinite(within.value):
        found.append("predicted: the tokens of all sentences but one cancel at length 1")
    known = (one for one in (gap, within, between, predicted) if math.isfinite(one.value))
    if any(math.isnan(one.stderr) for one in known):
        found.append("stderr: the jackknife needs two groups of sentences that leave pairs behind")
    return "; ".join(found) or None
