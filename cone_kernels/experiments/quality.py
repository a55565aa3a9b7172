"""Whether opening the cone helps: how well cosines go with labelled pairs, before and after each method, everywhere."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cone_kernels.corpora.pairs import LabelledPairs
from cone_kernels.doctor import memory
from cone_kernels.experiments.held_out import FOLDS
from cone_kernels.experiments.quality_fits import Fits, LayerFits, Settings, fits_of
from cone_kernels.experiments.quality_result import Fit, MethodQuality, Place, Quality, QualityLayer, verdict_of
from cone_kernels.experiments.quality_scores import PairScores
from cone_kernels.files import require_room
from cone_kernels.names import OUTPUT, QUALITY_METHODS, Layer
from cone_kernels.runs.measure import measure
from cone_kernels.statistics.estimates import Estimates, joined

if TYPE_CHECKING:
    from cone_kernels.runs.measurement import Measurement
    from cone_kernels.runs.sentence_vectors import SentenceVectors

SIZES = (20, 100, 300, 1000)
"""How many texts the methods are fitted on, besides all of them."""

# Fits of one size, each on other texts: what one fit is worth depends on which it gets.
_DRAWS = 3
# What of a run the texts of the pairs are measured with too; all else is of the corpus alone.
_RUN_OPTIONS = ("backend", "token_budget", "packed", "threads", "shard_size", "progress")
# A layer in float32, and what is mapped of it in float64.
_COPIES = 4


def quality_of(
    measurement: Measurement,
    pairs: LabelledPairs,
    *,
    layer: Layer,
    poolings: Sequence[str] | None = None,
    components: int | None = None,
    shrinkage: float | None = None,
    fitted_on: Measurement | None = None,
    options: Mapping[str, Any] | None = None,
) -> Quality:
    """How well the cosines of labelled pairs go with their labels, at every layer and the output.

    The texts of the pairs go once through the model for each pooling. Each method is fitted on the texts of three
    quarters of the groups, and judged on the pairs of the fourth, in turn; a group has all pairs that share a text.

    Args:
        measurement: of the model, on the corpus.
        pairs: what `read_pairs` returns.
        layer: the vectors that are in use now, as `Measurement.layer` gives it: what all else is compared with.
        poolings: how the sentence vectors of the layers are made; None is as those of the measurement.
        components, shrinkage: of all-but-the-top and whitening; None finds them.
        fitted_on: whose sums stand for another corpus; None is the measurement.
        options: the options of the run, of which those that say how a model is run are used.

    Raises:
        CorpusError: the pairs do not do for cross-fitting.
        OSError, MemoryError: there is no room for the vectors of the texts.

    Example:
        >>> quality_of(measurement, read_pairs("snli_dev.jsonl"), layer="output").verdict.decision
        'do not'
    """
    names = (measurement.state.pooling,) if poolings is None else tuple(poolings)
    needed = _require_room(measurement, pairs)
    clock = time.perf_counter()
    places: dict[Place, SentenceVectors] = {}
    for number, pooling in enumerate(names):
        kept = _vectors(measurement, pairs, pooling, options or {}, with_output=number == 0)
        for one, vectors in kept.items():
            places[Place(one, None if one == OUTPUT else pooling)] = vectors
    run_seconds, clock = time.perf_counter() - clock, time.perf_counter()
    scores = PairScores(pairs, _usable(places.values()))
    settings = Settings(components, shrinkage)
    in_use = Place(layer, None if layer == OUTPUT else names[0])
    judged = [Judged(place, scores, _rows(vectors), settings) for place, vectors in places.items()]
    layers = _layers(judged)
    verdict = verdict_of(layers, joined([one.estimates for one in judged]), in_use)
    looked_at = {in_use: None, Place(verdict.layer, verdict.pooling): None}
    overlap = _overlap(measurement, pairs)
    source = measurement if fitted_on is None else fitted_on
    found = []
    for place in looked_at:
        one = next(judge for judge in judged if judge.place == place)
        found += one.sized(_rows(places[place]))
        if place.pooling in (None, source.state.pooling):
            found += one.of_corpus(_rows(places[place]), source, None if fitted_on else overlap)
    return Quality(
        measure=pairs.measure,
        pairs=len(pairs.pairs) - scores.left_out,
        items=len(scores),
        groups=int(scores.group.max()) + 1,
        folds=FOLDS,
        file={**pairs.to_dict(), "no_vector": scores.left_out},
        layers=tuple(layers),
        fits=tuple(found),
        verdict=verdict,
        manifest={
            "seconds": {"run": round(run_seconds, 3), "judge": round(time.perf_counter() - clock, 3)},
            "vectors_bytes": needed,
        },
    )


class Judged:
    """One layer's vectors, judged as they are and after each method.

    Args:
        place: which vectors.
        scores: the items they are judged by.
        rows: (n, d) of all texts.
        settings: of the methods.

    Attributes:
        estimates: of the vectors as they are, then of each of `QUALITY_METHODS`; NaN where one cannot be fitted.
        also: (1 + methods, measures) the means of all measures.
    """

    def __init__(self, place: Place, scores: PairScores, rows: Tensor, settings: Settings) -> None:
        self.place, self._scores, self._settings = place, scores, settings
        fits = LayerFits(scores, rows, settings)
        self.components = fits.components
        self._fits = fits.of_others()
        self.reasons = _reasons(self._fits)
        self._raw = _of_all_folds(scores, rows, None)
        found = _scored(scores, rows, self._fits, self.reasons)
        every = torch.cat([self._raw[None], found])
        self.also = every.mean(2)
        self.estimates = scores.estimates(every[:, 0])

    def sized(self, rows: Tensor) -> list[Fit]:
        """What the methods are worth when they are fitted on fewer texts of the pairs, and on all."""
        fits = LayerFits(self._scores, rows, self._settings, self.components)
        found = []
        for size in SIZES:
            drawn = [one for draw in range(_DRAWS) if (one := fits.of_some(size, draw)) is not None]
            if drawn:
                found.append(self._fit("pairs", size, [self._differences(rows, one) for one in drawn]))
        texts = min(int(((self._scores.text_fold >= 0) & (self._scores.text_fold != f)).sum()) for f in range(FOLDS))
        every = torch.arange(1, len(self.estimates.values))
        whole = self.estimates.at(every).less(self.estimates.at(torch.zeros_like(every)))
        return [*found, self._fit("pairs", texts, [whole])]

    def of_corpus(self, rows: Tensor, source: Measurement, overlap: int | None) -> list[Fit]:
        """What they are worth when they are fitted on the corpus, whose vectors are of the same layer."""
        moments = source.moments(source.layer(self.place.layer))
        fits = [fits_of(moments, k, self._settings.shrinkage) for k in self.components]
        size = int(moments.count.sum())
        return [self._fit("corpus", size, [self._differences(rows, fits)], overlap)] if size else []

    def _differences(self, rows: Tensor, fits: Sequence[Fits]) -> Estimates:
        found = self._scores.estimates(
            torch.cat([self._raw[None], _scored(self._scores, rows, fits, _reasons(fits))])[:, 0]
        )
        every = torch.arange(1, len(found.values))
        return found.at(every).less(found.at(torch.zeros_like(every)))

    def _fit(self, kind: str, size: int, several: Sequence[Estimates], overlap: int | None = None) -> Fit:
        values = torch.stack([one.values for one in several])
        errors = torch.stack([one.stderr for one in several]).square().mean(0)
        spread = values.var(0) if len(several) > 1 else torch.zeros_like(errors)
        rows = zip(QUALITY_METHODS, values.mean(0).tolist(), (errors + spread).sqrt().tolist(), strict=True)
        found = {name: (difference, error) for name, difference, error in rows}
        return Fit(self.place.layer, self.place.pooling, kind, size, len(several), found, overlap)


def _layers(judged: Sequence[Judged]) -> list[QualityLayer]:
    """The rows of the result; all differences to the vectors as they are, at the same layer, are judged together."""
    every = joined([one.estimates for one in judged])
    width = 1 + len(QUALITY_METHODS)
    methods = torch.tensor([at for at in range(len(every.values)) if at % width])
    differences = every.at(methods).less(every.at(methods - methods % width))
    claims = iter(differences.claims())
    errors = iter(differences.stderr.tolist())
    found = []
    for one in judged:
        values = one.estimates.values.tolist()
        names = one._scores.measures[1:]
        also = [dict(zip(names, row, strict=True)) for row in one.also[:, 1:].tolist()]
        rows = {
            method: MethodQuality(value, next(claims), next(errors), rest, one.reasons.get(method))
            for method, value, rest in zip(QUALITY_METHODS, values[1:], also[1:], strict=True)
        }
        found.append(
            QualityLayer(*one.place, values[0], float(one.estimates.stderr[0]), also[0], rows, one.components)
        )
    return found


def _of_all_folds(scores: PairScores, rows: Tensor, fits: Sequence[Any] | None) -> Tensor:
    """(measures, items) each fold by its own fit."""
    found = torch.empty(len(scores.measures), len(scores), dtype=torch.float64)
    for fold in range(FOLDS):
        found[:, scores.fold == fold] = scores.scores(rows, fold, None if fits is None else fits[fold]).double()
    return found


def _scored(scores: PairScores, rows: Tensor, fits: Sequence[Fits], reasons: Mapping[str, str]) -> Tensor:
    """(methods, measures, items); NaN of a method that some fold has no fit of."""
    undefined = torch.full((len(scores.measures), len(scores)), torch.nan, dtype=torch.float64)
    return torch.stack(
        [
            undefined if method in reasons else _of_all_folds(scores, rows, [one[method] for one in fits])
            for method in QUALITY_METHODS
        ]
    )


def _reasons(fits: Sequence[Fits]) -> dict[str, str]:
    """Why methods cannot be fitted on some fold."""
    return {method: fit for one in fits for method, fit in one.items() if isinstance(fit, str)}


def _vectors(
    measurement: Measurement, pairs: LabelledPairs, pooling: str, options: Mapping[str, Any], *, with_output: bool
) -> dict[Layer, SentenceVectors]:
    """The vectors of all texts at every layer; the output's once."""
    loaded = measurement.loaded
    assert loaded is not None
    layers: list[Layer] = list(measurement.state.layers)
    layers += [OUTPUT] if with_output and measurement.state.output is not None else []
    chosen: dict[str, Any] = {name: options[name] for name in _RUN_OPTIONS if name in options}
    found = measure(loaded, list(pairs.texts), pooling=pooling, keep_vectors=layers, **chosen)
    if found.corpus["sentences"] != len(pairs.texts):
        raise ValueError(f"pairs: got {found.corpus['sentences']} of the {len(pairs.texts)} texts back; it must be all")
    return found.vectors


def _rows(vectors: SentenceVectors) -> Tensor:
    return torch.cat([block for _, block in vectors.blocks()])


def _usable(every: Iterable[SentenceVectors]) -> Tensor:
    """(n,) which texts have a vector that is used at every layer."""
    from cone_kernels.runs.sentence_vectors import used_rows

    found = [torch.cat([used_rows(block.double()) for _, block in vectors.blocks()]) for vectors in every]
    return torch.stack(found).all(0)


def _require_room(measurement: Measurement, pairs: LabelledPairs) -> int:
    """The bytes that the vectors of the texts take on the disk; refuses where they, or a layer of them, have no room."""
    widths = [measurement.state.sentence.dim] * len(measurement.state.layers)
    widths += [] if measurement.state.output is None else [measurement.state.output.dim]
    size = 8 if measurement.model.get("dtype") == "float64" else 4
    needed = len(pairs.texts) * sum(widths) * size
    require_room("pairs", Path(tempfile.gettempdir(), "vectors"), needed)
    at_once = _COPIES * len(pairs.texts) * max(widths) * size
    free = memory()["available_bytes"]
    if free is not None and at_once > free:
        raise MemoryError(
            f"pairs: the vectors of {len(pairs.texts):,} texts at one layer take {at_once / 1e6:,.0f} MB of memory, and "
            f"{free / 1e6:,.0f} MB are free; give fewer pairs"
        )
    return needed


def _overlap(measurement: Measurement, pairs: LabelledPairs) -> int | None:
    """How many texts of the pairs are sentences of the corpus too; None where it cannot be read again."""
    corpus = measurement.sentences
    if corpus is None or corpus.read_once:
        return None
    texts = set(pairs.texts)
    return len(texts.intersection(sentence for sentence in corpus))
