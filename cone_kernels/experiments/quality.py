"""Whether opening the cone helps: how well cosines go with labelled pairs, before and after each method, everywhere."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from cone_kernels.corpora.pairs import LabelledPairs
from cone_kernels.doctor import memory
from cone_kernels.experiments.held_out import FOLDS
from cone_kernels.experiments.pair_cosines import PairCosines
from cone_kernels.experiments.quality_fits import Fits, LayerFits, Settings, fits_of
from cone_kernels.experiments.quality_result import Fit, MethodQuality, Place, Quality, QualityLayer, verdict_of
from cone_kernels.experiments.quality_scores import LayerScores, PairItems, of_all_folds
from cone_kernels.experiments.query_ranks import QueryRanks
from cone_kernels.files import require_room
from cone_kernels.names import OUTPUT, QUALITY_METHODS, Layer
from cone_kernels.runs.measure_again import vectors_of
from cone_kernels.statistics.estimates import Estimates, joined

if TYPE_CHECKING:
    from cone_kernels.runs.measurement import Measurement
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import Moments

SIZES = (20, 100, 300, 1000)
"""How many texts the methods are fitted on, besides all of them."""

# A layer in float32, and what is mapped of it in float64.
_COPIES = 4


def quality_of(
    measurement: Measurement,
    pairs: LabelledPairs,
    *,
    layer: Layer,
    poolings: Sequence[str] = (),
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
        poolings: how the sentence vectors of the layers are made, besides those of the measurement.
        components, shrinkage: of all-but-the-top and whitening; None finds them.
        fitted_on: whose sums stand for another corpus; None is the measurement.
        options: the options of the run, of which those that say how a model is run are used.

    Raises:
        CorpusError: the pairs do not do for cross-fitting.
        OSError, MemoryError: there is no room for the vectors of the texts.

    Examples:
        >>> quality_of(measurement, read_pairs("snli_dev.jsonl"), layer="output").verdict.decision
        'do not'
    """
    names = tuple(dict.fromkeys((measurement.state.pooling, *poolings)))
    needed = _require_room(measurement, pairs, len(names))
    clock = time.perf_counter()
    places: dict[Place, SentenceVectors] = {}
    for number, pooling in enumerate(names):
        kept = _vectors(measurement, pairs, pooling, options or {}, with_output=number == 0)
        for one, vectors in kept.items():
            places[Place(one, None if one == OUTPUT else pooling)] = vectors
    run_seconds, clock = time.perf_counter() - clock, time.perf_counter()
    items = PairItems(pairs, _usable(places.values()))
    settings = Settings(components, shrinkage)
    in_use = Place(layer, None if layer == OUTPUT else names[0])
    judged = {place: Judged(place, items, _rows(vectors), settings) for place, vectors in places.items()}
    together = joined([one.estimates for one in judged.values()]).condensed()
    layers = layers_of(judged.values(), together, items.measures[1:])
    verdict = verdict_of(layers, together, in_use)
    source, overlap = fitted_on or measurement, None if fitted_on else _overlap(measurement, pairs)
    found = []
    for place in dict.fromkeys((in_use, Place(verdict.layer, verdict.pooling))):
        found += judged[place].other_fits(_rows(places[place]), _sums_at(source, place), overlap)
    return Quality(
        measure=pairs.measure,
        pairs=len(items.pairs),
        items=len(items),
        groups=int(items.group.max()) + 1,
        folds=FOLDS,
        file={**pairs.to_dict(), "no_vector": items.left_out},
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
        items: what they are judged by.
        rows: (n, d) of all texts.
        settings: of the methods.

    Attributes:
        components: for each fold those of all-but-the-top.
        reasons: why methods cannot be fitted.
        estimates: of the vectors as they are, then of each of `QUALITY_METHODS`; NaN where one cannot be fitted.
        also: (1 + methods, measures) the means of all measures.
    """

    def __init__(self, place: Place, items: PairItems, rows: Tensor, settings: Settings) -> None:
        self.place, self._items, self._settings = place, items, settings
        layer = of_layer(items, rows)
        fits = LayerFits(items, rows, layer, settings)
        self.components = fits.components
        found = fits.of_others()
        self.reasons = _reasons(found)
        self.fitted_on = fits.fitted_on
        scores = _scores(items, layer, found)
        self.also = scores.mean(2)
        self._main = scores[:, 0]
        self.estimates = items.estimates(self._main)

    def other_fits(self, rows: Tensor, corpus: Moments | None, overlap: int | None) -> list[Fit]:
        """What methods are worth that are fitted on fewer texts of the pairs, on all, and on the corpus.

        Args:
            rows: as before.
            corpus: the sums of its vectors of the same layer; None leaves that out.
            overlap: how many texts of the pairs are in the corpus.
        """
        layer = of_layer(self._items, rows)
        fits = LayerFits(self._items, rows, layer, replace(self._settings, chosen=self.components))
        found = []
        for size in SIZES:
            if some := fits.of_some(size):
                found.append(self._fit("pairs", size, _scores(self._items, layer, some)[:, 0]))
        found.append(self._fit("pairs", self.fitted_on, self._main))
        if corpus is not None:
            own = [fits_of(corpus, k, self._settings.shrinkage) for k in self.components]
            scores = _scores(self._items, layer, own)[:, 0]
            found.append(self._fit("corpus", int(corpus.count.sum()), scores, overlap))
        return found

    def _fit(self, source: Literal["pairs", "corpus"], rows: int, scores: Tensor, overlap: int | None = None) -> Fit:
        """What fits of one size are worth, by scores (1 + methods, items).

        The folds' fits on some of the pairs' texts are each of other texts. By how much what they change differs from
        what fits on all texts change, from fold to fold, is the error that the choice of the texts makes.
        """
        differences = _less_raw(self._items.estimates(scores))
        spread = torch.zeros_like(differences.values)
        if source == "pairs":
            by_fold = []
            for fold in range(FOLDS):
                mine = self._items.fold == fold
                some, whole = (self._items.values(one[:, mine], fold) for one in (scores, self._main))
                by_fold.append(some - whole)
            spread = torch.stack(by_fold).var(0)[1:]
        errors = (differences.stderr.square() + spread).sqrt().tolist()
        found = dict(zip(QUALITY_METHODS, zip(differences.values.tolist(), errors, strict=True), strict=True))
        return Fit(*self.place, source, rows, found, overlap)


def of_layer(items: PairItems, rows: Tensor) -> LayerScores:
    """What scores the vectors (n, d) of all texts at one layer."""
    return QueryRanks(items, rows) if items.kind == "retrieval" else PairCosines(items, rows)


def _less_raw(found: Estimates) -> Estimates:
    """Each method less the vectors as they are, which come first."""
    methods = torch.arange(1, len(found.values))
    return found.at(methods).less(found.at(torch.zeros_like(methods)))


def layers_of(judged: Iterable[Judged], every: Estimates, others: Sequence[str]) -> list[QualityLayer]:
    """The rows of the result; all differences to the vectors as they are, at the same layer, are judged together.

    Args:
        judged: the layers.
        every: the estimates of all of them.
        others: the names of the measures besides the first.
    """
    width = 1 + len(QUALITY_METHODS)
    methods = torch.tensor([at for at in range(len(every.values)) if at % width])
    differences = every.at(methods).less(every.at(methods - methods % width))
    claims = iter(differences.claims())
    errors = iter(differences.stderr.tolist())
    found = []
    for one in judged:
        values = one.estimates.values.tolist()
        also = [dict(zip(others, row, strict=True)) for row in one.also[:, 1:].tolist()]
        rows = {
            method: MethodQuality(value, next(claims), next(errors), rest, one.reasons.get(method))
            for method, value, rest in zip(QUALITY_METHODS, values[1:], also[1:], strict=True)
        }
        found.append(QualityLayer(*one.place, values[0], float(one.estimates.stderr[0]), also[0], rows, one.components))
    return found


def _scores(items: PairItems, layer: LayerScores, fits: Sequence[Fits]) -> Tensor:
    """(1 + methods, measures, items) of the vectors as they are, then of each method; NaN where a fold has no fit."""
    reasons = _reasons(fits)
    undefined = torch.full((len(items.measures), len(items)), torch.nan, dtype=torch.float64)
    found = [of_all_folds(items, layer)]
    for method in QUALITY_METHODS:
        maps: list[Any] = [one[method] for one in fits]
        found.append(undefined if method in reasons else of_all_folds(items, layer, maps))
    return torch.stack(found)


def _reasons(fits: Sequence[Fits]) -> dict[str, str]:
    """Why methods cannot be fitted on some fold."""
    return {method: fit for one in fits for method, fit in one.items() if isinstance(fit, str)}


def _vectors(
    measurement: Measurement, pairs: LabelledPairs, pooling: str, options: Mapping[str, Any], *, with_output: bool
) -> dict[Layer, SentenceVectors]:
    """The vectors of all texts at every layer; the output's once."""
    layers: list[Layer] = list(measurement.state.layers)
    layers += [OUTPUT] if with_output and measurement.state.output is not None else []
    found = vectors_of(measurement, list(pairs.texts), layers, pooling=pooling, options=options)
    sizes = {len(vectors) for vectors in found.values()}
    if sizes != {len(pairs.texts)}:
        raise ValueError(f"pairs: got {max(sizes)} of the {len(pairs.texts)} texts back; it must be all")
    return found


def _sums_at(source: Measurement, place: Place) -> Moments | None:
    """The sums of the same vectors of another corpus; None where it has none of these."""
    if place.layer == OUTPUT:
        return source.state.output
    known = place.layer in source.state.layers and place.pooling == source.state.pooling
    return source.moments(place.layer) if known else None


def _rows(vectors: SentenceVectors) -> Tensor:
    return torch.cat([block for _, block in vectors.blocks()])


def _usable(every: Iterable[SentenceVectors]) -> Tensor:
    """(n,) which texts have a vector that is used at every layer."""
    from cone_kernels.runs.sentence_vectors import used_rows

    found = [torch.cat([used_rows(block.double()) for _, block in vectors.blocks()]) for vectors in every]
    return torch.stack(found).all(0)


def _require_room(measurement: Measurement, pairs: LabelledPairs, poolings: int) -> int:
    """The bytes that the texts' vectors take on the disk; refuses where they, or a layer of them, have no room."""
    widths = [measurement.state.sentence.dim] * len(measurement.state.layers) * poolings
    widths += [] if measurement.state.output is None else [measurement.state.output.dim]
    size = 8 if measurement.model.get("dtype") == "float64" else 4
    needed = len(pairs.texts) * sum(widths) * size
    require_room("pairs", Path(tempfile.gettempdir(), "vectors"), needed)
    at_once = _COPIES * len(pairs.texts) * max(widths) * size
    free = memory()["available_bytes"]
    if free is not None and at_once > free:
        raise MemoryError(
            f"pairs: the vectors of {len(pairs.texts):,} texts at one layer take {at_once / 1e6:,.0f} MB of memory, "
            f"and {free / 1e6:,.0f} MB are free; give fewer pairs"
        )
    return needed


def _overlap(measurement: Measurement, pairs: LabelledPairs) -> int | None:
    """How many texts of the pairs are sentences of the corpus too; None where it cannot be read again."""
    corpus = measurement.sentences
    if corpus is None or corpus.read_once:
        return None
    texts = set(pairs.texts)
    return len(texts.intersection(sentence for sentence in corpus))
