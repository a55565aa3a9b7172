"""Experiment 3: what the top principal axes of a layer's sentence vectors encode."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.axis_result import AxisResult, Component, SentenceProjection
from cone_kernels.experiments.frequency import (
    FrequencyOf,
    FrequencyRelation,
    drawn_directions,
    of_sentences,
    of_tokens,
)
from cone_kernels.experiments.solved_axes import SolvedAxes, extremes_of, solved_axes, window
from cone_kernels.files import require_local, writing
from cone_kernels.names import OUTPUT, VARIABLES, Layer, place
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement, threads_of
from cone_kernels.runs.options import CORPUS_OPTIONS, SharedOptions, open_corpus, refuse_images

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from cone_kernels.experiments.axis_vectors import AxisVectors
    from cone_kernels.experiments.corpus_tokens import CorpusTokens
    from cone_kernels.experiments.vocabulary import TokenProjection
    from cone_kernels.models.loaded import LoadedModel, ModelLike
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import Moments
    from cone_kernels.statistics.correlation import Correlation
    from cone_kernels.statistics.extremes import Extreme

# Modules after the pooling that give vectors in other directions than they take.
_MAPS = ("Dense", "LayerNorm")


def axis(
    model: ModelLike,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any],
    *,
    layer: Layer | None = None,
    pooling: str = "mean",
    k: int = 1,
    top: int = 5,
    tokens: int = 20,
    save_vectors: str | os.PathLike[str] | None = None,
    **options: Unpack[SharedOptions],
) -> AxisResult:
    """Finds the top centred eigenvectors of a layer's sentence vectors, and what lies along them.

    One pass of the model; then the kept sentence vectors are read twice and the corpus once more, for the texts at the
    ends and for token frequencies. The sign of an axis: it points along the mean; where |cos| with the mean is below
    1e-3, its largest component is positive.

    Args:
        model: a folder, a hub id, what `load_model` returned, or a model in memory (`ModelLike`).
        corpus: a file, a `Corpus`, sentences, or records that have them in a `field` that can be iterated over again.
        layer: its number as in Hugging Face's `hidden_states`, -1 is the last; or "output", the vectors that the model
            itself gives. None is the output, or with `pooling` and of a model without one the last layer.
        pooling: how the sentence vectors of a layer are made, one of `cone_kernels.names.POOLINGS` or "model".
        k: how many axes.
        top: sentences at each end of an axis.
        tokens: vocabulary tokens at each end of an axis, by input embedding · axis; see `project_vocabulary`.
        save_vectors: where to write the directions; `AxisVectors.load` reads them.
        options: `SharedOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        TypeError: the corpus can be read only once, or the model is a state.
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: an option is out of range, the corpus has too few sentences for k axes, its sentence vectors are all
            the same, or it changed while it was read.

    Examples:
        >>> result = axis("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=1000)
        >>> result.components[0].top[0].text, result.components[0].explained_variance_ratio
    """
    _check_counts(k, top, tokens)
    require_local("save_vectors", save_vectors)
    if isinstance(corpus, Iterator):
        raise TypeError(
            f"corpus: got a {type(corpus).__name__}, which can be read once; it must be one that axis can read twice"
        )
    from cone_kernels.state.cone_state import ConeState

    if isinstance(model, ConeState):
        raise TypeError(
            "model: got a ConeState; it must be a model, for a state has neither sentence vectors nor texts"
        )
    read = open_corpus(corpus, options, again=True)
    refuse_images(read)
    rest: Any = {name: value for name, value in options.items() if name not in CORPUS_OPTIONS}
    measurement = measure(model, read, second_moment=True, pooling=pooling, keep_vectors=(layer,), **rest)
    with threads_of(measurement):
        return axis_of(measurement, layer=layer, k=k, top=top, tokens=tokens, save_vectors=save_vectors)


def axis_of(
    measurement: Measurement,
    *,
    layer: Layer | None = None,
    k: int = 1,
    top: int = 5,
    tokens: int = 20,
    save_vectors: str | os.PathLike[str] | None = None,
) -> AxisResult:
    """The result of a measurement that kept second moments and the vectors of `layer`; see `axis`.

    Raises:
        ValueError: also where the measurement is of a state, or did not keep what is needed.
    """
    from cone_kernels import metrics

    _check_counts(k, top, tokens)
    number = measurement.layer(layer)
    loaded, kept, moments = _parts(measurement, number)

    solved = solved_axes(moments, k, "corpus", "sentence vectors", f" at {place(number)}")
    found = solved.found
    extremes = extremes_of(kept.blocks(window(kept.dim)), solved, top)
    ends = [(extremes.highest(at), extremes.lowest(at)) for at in range(k)]
    texts, corpus_tokens = _read_again(measurement, ends, window(kept.dim))
    drawn = drawn_directions(metrics.covariance(moments)[0].cpu())
    correlations, of_random = _correlations(kept, solved, corpus_tokens, drawn)
    if number == OUTPUT and loaded.output is not None and loaded.output.normalized:
        # In 16 bits their lengths differ by more than a millionth, by rounding alone.
        correlations["norm"] = correlations["norm"] * math.nan
    vocabulary, named = _vocabulary(loaded, number, solved.directions, tokens)
    frequency = _frequency(loaded, number, solved.directions, drawn, corpus_tokens, of_random)
    components = tuple(
        Component(
            **solved.numbers(at),
            top=_with_texts(ends[at][0], texts),
            bottom=_with_texts(ends[at][1], texts),
            tokens_top=named[at][0],
            tokens_bottom=named[at][1],
            correlations={name: math.nan if solved.flat[at] else float(r[at]) for name, r in correlations.items()},
            frequency={} if solved.flat[at] else {of: found[at] for of, found in frequency.items() if found},
        )
        for at in range(k)
    )
    name = measurement.layer_name(number)
    vectors = _vectors(measurement, solved, {"layer": number, "layer_name": name})
    if save_vectors is not None and measurement.rank == 0:
        with writing(save_vectors):
            vectors.save(save_vectors)
    cosines = (found.centered_mean_cosine, found.uncentered_mean_cosine, found.centered_uncentered_cosine)
    mean_cosine, uncentered_mean_cosine, centered_uncentered_cosine = (float(cosine) for cosine in cosines)
    return AxisResult(
        model=measurement.model,
        corpus=measurement.corpus,
        layer=number,
        layer_name=name,
        sentences=int(moments.count.sum()),
        components=components,
        mean_cosine=mean_cosine,
        uncentered_mean_cosine=uncentered_mean_cosine,
        centered_uncentered_cosine=centered_uncentered_cosine,
        vocabulary=vocabulary,
        vectors_file=None if save_vectors is None else os.fspath(save_vectors),
        reasons=(*_reasons(components), *solved.reasons("the sentence vectors")),
        manifest={**measurement.manifest, "axis": {"k": k, "top": top, "tokens": tokens}},
        vectors=vectors,
    )


def _check_counts(k: int, top: int, tokens: int) -> None:
    from cone_kernels.ops.arguments import require_integer

    for name, value in {"k": k, "top": top, "tokens": tokens}.items():
        require_integer(name, value)
        if value < 1:
            raise ValueError(f"{name}: got {value}; it must be at least 1")


def _parts(measurement: Measurement, layer: Layer) -> tuple[LoadedModel, SentenceVectors, Moments]:
    """The model, the kept vectors and the sums of one layer, all there."""
    if measurement.load is None or measurement.sentences is None:
        raise ValueError(
            "measurement: got one of a saved state; it must be of a model and a corpus, whose vectors axis reads"
        )
    vectors = measurement.kept_vectors(layer)
    moments = measurement.moments(layer)
    if "second_moment" not in moments.fields:
        raise ValueError("measurement: got one without second moments; it must be made with second_moment=True")
    assert measurement.loaded is not None
    return measurement.loaded, vectors, moments


def _read_again(
    measurement: Measurement, ends: Sequence[Sequence[Sequence[Extreme]]], window: int
) -> tuple[dict[int, str], CorpusTokens]:
    """The texts of the extremes by their index, and the tokens of the whole corpus."""
    from cone_kernels.experiments.corpus_tokens import CorpusTokens
    from cone_kernels.runs.encoded_shard import counted_tokens, text_blocks

    assert measurement.loaded is not None
    assert measurement.sentences is not None
    wanted = {extreme.index for pair in ends for end in pair for extreme in end}
    texts, tokens, first = {}, CorpusTokens(), 0
    stream = iter(measurement.sentences)
    while block := list(islice(stream, window)):
        texts.update({index: block[index - first] for index in wanted if first <= index < first + len(block)})
        ids, added = [], []
        for part in text_blocks(block):
            found = counted_tokens(measurement.loaded, part)
            ids += found[0]
            added += found[1]
        tokens.append(ids, added)
        first += len(block)
    if measurement.sentences.summary.fingerprint != measurement.corpus["fingerprint"]:
        got = f"{first} sentences, not the {measurement.corpus['sentences']} of the first time or not the same"
        raise ValueError(f"corpus: got {got} when it was read again; it must not change, for axis reads it twice")
    return texts, tokens


def _correlations(
    kept: SentenceVectors, solved: SolvedAxes, tokens: CorpusTokens, drawn: Tensor
) -> tuple[dict[str, Tensor], Correlation]:
    """Pearson's r of the projections with each variable, (k,) by its name; and the correlations of token frequency with
    the projections on the axes and on the directions drawn (r, d)."""
    import torch

    from cone_kernels.runs.sentence_vectors import used_blocks
    from cone_kernels.statistics.correlation import Correlation
    from cone_kernels.statistics.extremes import project

    # Vectors that were normalized differ in length by rounding alone.
    resolution = {"norm": 8 * torch.finfo(kept.dtype).eps}
    found = {name: Correlation(len(solved.directions), resolution.get(name, 0.0)) for name in VARIABLES}
    both = torch.cat([solved.directions, drawn])
    of_random = Correlation(len(both))
    blocks, first = used_blocks(kept.blocks(window(kept.dim))), 0
    for (indices, rows), (lengths, frequency) in zip(blocks, tokens.windows(), strict=True):
        used = indices - first
        projections = project(rows, solved.directions, solved.mean)
        variables = {"length": lengths[used], "token_frequency": frequency[used], "norm": rows.norm(dim=1)}
        for name, values in variables.items():
            found[name].add(projections, values)
        of_random.add((rows - solved.mean) @ both.mT, frequency[used])
        first += len(lengths)
    return {name: correlation.r for name, correlation in found.items()}, of_random


def _frequency(
    loaded: LoadedModel, layer: Layer, axes: Tensor, drawn: Tensor, tokens: CorpusTokens, of_random: Correlation
) -> dict[FrequencyOf, list[FrequencyRelation]]:
    """How the axes go with frequency, in the vocabulary and over the sentences; empty where that is not defined."""
    import torch

    from cone_kernels.experiments.vocabulary import TokenEmbeddings, VocabularyError

    in_vocabulary: list[FrequencyRelation] = []
    if not _mapped(loaded, layer):
        try:
            embeddings = TokenEmbeddings.of(loaded.model, axes.shape[1])
            in_vocabulary = of_tokens(embeddings, torch.from_numpy(tokens.counts), axes, drawn)
        except VocabularyError:
            pass  # `vocabulary` has the reason
    return {"tokens": in_vocabulary, "sentences": of_sentences(of_random.count, of_random.r, len(axes))}


def _mapped(loaded: LoadedModel, layer: Layer) -> list[str]:
    """The modules that the vectors of a layer pass, and token embeddings do not."""
    return [name for name in (loaded.output.modules if layer == OUTPUT and loaded.output else ()) if name in _MAPS]


def _vocabulary(
    loaded: LoadedModel, layer: Layer, directions: Tensor, count: int
) -> tuple[dict[str, Any], list[tuple[tuple[TokenProjection, ...], tuple[TokenProjection, ...]]]]:
    """What was projected, and the highest and lowest tokens of each axis."""
    from cone_kernels.experiments.vocabulary import VocabularyError, project_vocabulary

    mapped = _mapped(loaded, layer)
    try:
        if mapped:
            raise VocabularyError(f"the output passes a {mapped[0]}, which token embeddings do not")
        found = project_vocabulary(loaded.model, loaded.tokenizer, directions, count)
    except VocabularyError as error:
        return {"reason": str(error)}, [((), ())] * len(directions)
    return found.to_dict(), list(zip(found.highest, found.lowest, strict=True))


def _with_texts(extremes: Sequence[Extreme], texts: Mapping[int, str]) -> tuple[SentenceProjection, ...]:
    return tuple(SentenceProjection(texts[one.index], one.projection, one.index) for one in extremes)


def _vectors(measurement: Measurement, solved: SolvedAxes, where: dict[str, Any]) -> AxisVectors:
    from cone_kernels.experiments.axis_vectors import AxisVectors

    found = solved.found

    names = ("name", "architecture", "weights_sha256")
    corpus = measurement.corpus
    return AxisVectors(
        centered=found.centered.vectors[0],
        eigenvalues=found.centered.values[0],
        mean=solved.mean,
        # A mean of zero has no direction; NaN would make the file unreadable.
        mean_direction=found.mean_direction[0].nan_to_num(0.0),
        uncentered=found.uncentered.vectors[0, 0],
        info={
            "model": {name: measurement.model[name] for name in names},
            **where,
            "sentences": corpus["sentences"],
            "corpus_fingerprint": corpus["fingerprint"],
        },
    )


def _reasons(components: Sequence[Component]) -> Iterator[str]:
    for name, about in VARIABLES.items():
        # The first axis is never flat.
        if math.isnan(components[0].correlations[name]):
            yield f"the correlation with {name} is not defined: the {about.phrase} does not vary"
