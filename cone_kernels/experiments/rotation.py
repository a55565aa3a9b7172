"""Experiment 4: whether models share their cone's axis, and whether a centring vector carries over between them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.axes_pair import AxesPair, Chance, Matrix
from cone_kernels.experiments.centering import level_after
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.level import Level, levels_of, seen_by_group
from cone_kernels.experiments.rotation_corpora import corpora_of, joined_corpus, names_of_corpora
from cone_kernels.experiments.rotation_result import ComparedModel, RotationResult
from cone_kernels.names import OUTPUT, Layer, place
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement, from_state, labels, shared_corpus, threads_of
from cone_kernels.runs.options import (
    CORPUS_OPTIONS,
    SharedOptions,
    open_corpus,
    options_by_model,
    refuse_run_options,
    with_checkpoint_of,
)

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from cone_kernels.centering import Centering
    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import ConeState, Moments
    from cone_kernels.statistics.subspaces import SampledAxes

# Gives the jackknife groups of sentences by their indices.
_Groups: TypeAlias = "Callable[[Tensor], Tensor]"

# Angles between axes are off by their residuals over their eigengaps, so the axes are taken to more digits than usual.
_TOLERANCE = 1e-12

# The top k axes span no subspace of their own where the last eigenvalue is to the first what rounding is.
_LEAST_EIGENVALUE = 1e-8


def rotation(
    model: Sequence[ModelLike] = (),
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any] | None = None,
    *,
    corpora: Sequence[str | os.PathLike[str] | Corpus | Iterable[Any]] = (),
    state: Sequence[ConeState | str | os.PathLike[str]] = (),
    layer: Layer | Sequence[Layer | None] | None = None,
    pooling: str = "mean",
    k: int = 4,
    **options: Unpack[SharedOptions],
) -> RotationResult:
    """Compares the cones of two or more models: one pass of each over the same corpus, one model in memory at a time.

    Args:
        model: folders, hub ids, what `load_model` returned, or models in memory (`ModelLike`).
        corpus: a file, a `Corpus`, or sentences; read once for each model.
        corpora: two or more of them in place of `corpus`, and of one model: its cones over each corpus are compared.
            The result's `models` are named by the corpora, and its `corpora` says whether axis, mean and centring move.
        state: states saved before, with their second moments; they follow the models. What needs sentence vectors
            (`functional_cosine`, and their own rows of `centered_anisotropy`) is not defined for them.
        layer: its number as in Hugging Face's `hidden_states`, -1 the last of each; or "output", the vectors that the
            models themselves give. None is the output, or with `pooling` and of a model without one the last layer. Or
            one for each model and state.
        pooling: how the sentence vectors of a layer are made, one of `cone_kernels.names.POOLINGS` or "model".
        k: the principal angles are those between the subspaces of the top k axes. The verdict is on the spaces of as
            many axes, at most k, as stand furthest apart from the rest.
        options: `SharedOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        TypeError: `model` or `state` is one of its kind in place of a sequence.
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: a model cannot be loaded.
        StateFileError: a state's file is damaged.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: fewer than two models and states, or corpora; a corpus without a model or the reverse, an option is
            out of range, a state without second moments, too few sentences, or a corpus that changes while it is read.

    Examples:
        >>> result = rotation(["mixedbread-ai/mxbai-embed-large-v1", "bert-large-uncased"], "snli_dev.jsonl")
        >>> result.axis_cosine[0][1], result.null[0][1].p95
    """
    for name, several in (("model", model), ("state", state)):
        if isinstance(several, (str, os.PathLike)) or not isinstance(several, Sequence):
            raise TypeError(f"{name}: got one {type(several).__name__}; it must be a sequence of them")
    if corpora:
        return _over_corpora(model, corpus, corpora, state, layer=layer, pooling=pooling, k=k, options=options)
    if (corpus is None) != (not model):
        raise ValueError("model, corpus: got one without the other; it must be both or neither")
    layers = _layers(layer, len(model) + len(state), k)
    measurements: list[Measurement] = []
    if corpus is None:
        refuse_run_options(options)
        if pooling != "mean":
            raise ValueError(f"pooling: got {pooling!r} with states alone; it must be left out, for nothing is run")
    else:
        read = open_corpus(corpus, options, again=True)
        for one, number, rest in zip(model, layers, options_by_model(options, len(model)), strict=False):
            found = measure(one, read, second_moment=True, pooling=pooling, keep_vectors=(number,), **rest)
            measurements.append(replace(found, load=None))
    if len({found.corpus["fingerprint"] for found in measurements}) > 1:
        raise ValueError(
            "corpus: got other sentences when it was read again; it must not change, for every model reads it"
        )
    measurements += [from_state(one) for one in state]
    with threads_of(*measurements):
        return rotation_of(measurements, layer=layers, k=k)


def _over_corpora(
    model: Sequence[ModelLike],
    corpus: object,
    corpora: Sequence[str | os.PathLike[str] | Corpus | Iterable[Any]],
    state: Sequence[object],
    *,
    layer: Layer | Sequence[Layer | None] | None,
    pooling: str,
    k: int,
    options: SharedOptions,
) -> RotationResult:
    """One model over several corpora."""
    if len(model) != 1 or state or corpus is not None:
        got = f"{len(model)} models, {len(state)} states{'' if corpus is None else ' and a corpus'}"
        raise ValueError(f"corpora: got them with {got}; they must come with one model alone")
    if len(corpora) < 2:
        raise ValueError(f"corpora: got {len(corpora)}; it must be at least two")
    layers = _layers(layer, len(corpora), k)
    rest = {name: value for name, value in options.items() if name not in CORPUS_OPTIONS}
    measurements: list[Measurement] = []
    for at, (one, number) in enumerate(zip(corpora, layers, strict=True)):
        own: Any = with_checkpoint_of(f"corpus-{at}", rest)
        read = open_corpus(one, options, again=True)
        found = measure(model[0], read, second_moment=True, pooling=pooling, keep_vectors=(number,), **own)
        measurements.append(replace(found, load=None))
    prints = [found.corpus["fingerprint"] for found in measurements]
    if len(set(prints)) < len(prints):
        raise ValueError("corpora: got the same sentences twice; they must differ")
    with threads_of(*measurements):
        return rotation_of(measurements, layer=layers, k=k, over_corpora=True)


def rotation_of(
    measurements: Sequence[Measurement],
    *,
    layer: Layer | Sequence[Layer | None] | None = None,
    k: int = 4,
    over_corpora: bool = False,
) -> RotationResult:
    """The result of measurements with second moments, which kept the vectors of the layers or are of saved states.

    Measurements of different corpora are compared too; their functional cosine is not defined. See `rotation`.

    Args:
        measurements: of the models; or of one model over several corpora, with their vectors.
        layer, k: as in `rotation`.
        over_corpora: they are of one model, each is named by its corpus, and what moves with the corpus is told.
    """
    from cone_kernels.statistics import directions

    given = _layers(layer, len(measurements), k)
    layers = [found.layer(number) for found, number in zip(measurements, given, strict=True)]
    names = names_of_corpora(measurements) if over_corpora else _labels(measurements, layers)
    cones = [_Cone.of(*each, k) for each in zip(measurements, layers, names, strict=True)]
    chance = {
        dim: Chance(directions.random_cosine_mean(dim), directions.random_cosine_quantile(0.95, dim))
        for dim in {cone.dim for cone in cones}
    }
    axis_cosine = _symmetric(cones, _axis_cosine)
    centered = [[_centered_level(a, b) for b in cones] for a in cones]
    functional_cosine = _symmetric(cones, _functional_cosine)
    several = len(cones) * (len(cones) - 1) // 2
    pairs = {(i, j): _pair(cones[i], cones[j], k, several) for i, j in combinations(range(len(cones)), 2)}
    return RotationResult(
        models=tuple(cone.compared for cone in cones),
        corpus=joined_corpus(measurements, names) if over_corpora else shared_corpus(measurements),
        k=k,
        axis_cosine=axis_cosine,
        pairs=tuple(
            tuple(None if i == j else pairs[min(i, j), max(i, j)] for j in range(len(cones))) for i in range(len(cones))
        ),
        mean_cosine=_symmetric(cones, _mean_cosine),
        principal_angles=tuple(tuple(_angles(a, b) for b in cones) for a in cones),
        centered_anisotropy=tuple(tuple(level.anisotropy if level else math.nan for level in row) for row in centered),
        centered_stderr=tuple(tuple(level.stderr if level else math.nan for level in row) for row in centered),
        functional_cosine=functional_cosine,
        null=tuple(tuple(chance[a.dim] if a.dim == b.dim else None for b in cones) for a in cones),
        p_value=tuple(
            tuple(math.nan if math.isnan(c) else directions.random_cosine_p_value(c, cone.dim) for c in row)
            for cone, row in zip(cones, axis_cosine, strict=True)
        ),
        reasons=tuple(_reasons(cones, centered, functional_cosine)),
        manifest=_manifest(measurements, {"k": k, "layers": layers}),
        dependence=tuple(
            Dependence.of_moments(found.moments(layer)) for found, layer in zip(measurements, layers, strict=True)
        ),
        corpora=corpora_of(
            measurements[0].name,
            [found.moments(layer) for found, layer in zip(measurements, layers, strict=True)],
            [found.kept_vectors(layer) for found, layer in zip(measurements, layers, strict=True)],
            [cone.groups for cone in cones],
            centered,
        )
        if over_corpora
        else None,
    )


def _layers(layer: Layer | Sequence[Layer | None] | None, count: int, k: int) -> list[Layer | None]:
    from cone_kernels.ops.arguments import require_integer

    if count < 2:
        raise ValueError(f"model, state: got {count} in all; it must be at least two")
    require_integer("k", k)
    if k < 1:
        raise ValueError(f"k: got {k}; it must be at least 1")
    numbers = [layer] if layer is None or isinstance(layer, (int, str)) else list(layer)
    if len(numbers) not in (1, count):
        raise ValueError(
            f"layer: got {len(numbers)} numbers for {count} models and states; it must be one, or one for each"
        )
    return numbers * (count // len(numbers))


def _labels(measurements: Sequence[Measurement], layers: Sequence[Layer]) -> list[str]:
    """The models' names; with the layers where a name comes again, and numbered where that does not help."""
    names = [found.name for found in measurements]
    if len(set(names)) == len(names):
        return names
    with_layers = [
        f"{name} {layer if layer == OUTPUT else f'L{layer}'}" for name, layer in zip(names, layers, strict=True)
    ]
    return with_layers if len(set(with_layers)) == len(with_layers) else labels(measurements)


@dataclass(frozen=True, eq=False)
class _Cone:
    """What is compared of one model at one layer."""

    compared: ComparedModel
    axes: Tensor  # (k, d) float64, the top centred eigenvectors
    sampled: SampledAxes  # all of them, and what the choice of sentences does to the first k
    spanned: bool  # whether the sentences vary in all k of these directions
    centering: Centering
    vectors: SentenceVectors | None
    groups: _Groups

    @property
    def name(self) -> str:
        return self.compared.name

    @property
    def dim(self) -> int:
        return self.compared.hidden_size

    @classmethod
    def of(cls, measurement: Measurement, layer: Layer, label: str, k: int) -> _Cone:
        from cone_kernels import metrics
        from cone_kernels.centering import Centering
        from cone_kernels.ops.top_eigenvectors import top_eigenvectors

        moments = measurement.moments(layer)
        if "second_moment" not in moments.fields:
            raise ValueError(
                f"state: got {label} without second moments; it must hold them, for its axis is computed from them"
            )
        count = int(moments.count.sum())
        if count < 2:
            raise ValueError(
                f"corpus: got {count} sentence vectors of {label} at {place(layer)}; it must be at least two"
            )
        covariance = metrics.covariance(moments)[0].cpu()
        groups = measurement.groups()
        vectors = measurement.kept_vectors(layer) if "fingerprint" in measurement.corpus else None
        found = top_eigenvectors(covariance=covariance, k=k, tolerance=_TOLERANCE)
        if not float(found.values[0]) > 0:
            raise ValueError(f"corpus: got equal sentence vectors of {label} at {place(layer)}; they must vary")
        compared = ComparedModel(
            name=label,
            source=str(measurement.model["name"]),
            architecture=measurement.model.get("architecture"),
            weights_sha256=measurement.model.get("weights_sha256"),
            hidden_size=moments.dim,
            layer=layer,
            layer_name=measurement.layer_name(layer),
            level=levels_of(moments)[0],
            explained_variance_ratio=float(metrics.explained_variance_ratio(covariance, found.values)[0]),
            corpus_fingerprint=measurement.corpus.get("fingerprint"),
        )
        return cls(
            compared,
            axes=found.vectors,
            spanned=count > k and float(found.values[-1]) >= _LEAST_EIGENVALUE * float(found.values[0]),
            centering=Centering.fit(moments),
            vectors=vectors,
            groups=groups,
            sampled=_sampled(moments, vectors, covariance, k, groups),
        )


def _sampled(
    moments: Moments, vectors: SentenceVectors | None, covariance: Tensor, k: int, groups: _Groups
) -> SampledAxes:
    """By jackknife over blocks of sentences; without vectors, as if sentences were independent and normal."""
    from cone_kernels import metrics
    from cone_kernels.runs.sentence_vectors import used_rows
    from cone_kernels.statistics.subspaces import SampledAxes
    from cone_kernels.sums import GROUPS, jackknife_blocks

    if vectors is None:
        return SampledAxes.of_covariance(covariance, int(moments.count.sum()), k, GROUPS)
    # The same blocks for every model, whichever sentences it has no vector for: their errors are paired.
    blocks = jackknife_blocks(seen_by_group(moments))

    def grouped() -> Iterator[tuple[Tensor, Tensor]]:
        for first, block in vectors.blocks():
            used = used_rows(block.double())
            yield block[used], blocks[groups(used.nonzero()[:, 0] + first)]

    return SampledAxes.of_rows(covariance, metrics.mean_vector(moments)[0].cpu(), k, grouped(), int(blocks.max()) + 1)


def _pair(a: _Cone, b: _Cone, k: int, pairs: int) -> AxesPair | None:
    """What may be said of the axes of two models, of `pairs` that are compared; None where they have no angle."""
    from cone_kernels.statistics.significance import student_bound
    from cone_kernels.statistics.subspaces import compared_axes, drawn_overlaps, overlap

    if a.dim != b.dim:
        return None
    paired = a.vectors is not None and b.vectors is not None
    paired = paired and a.compared.corpus_fingerprint == b.compared.corpus_fingerprint
    m = compared_axes(a.sampled, b.sampled, k)
    found, first = (overlap(a.sampled.space(axes), b.sampled.space(axes), paired) for axes in (m, 1))
    drawn = drawn_overlaps(a.sampled, b.sampled, found.axes)
    cosine = math.sqrt(first.value)
    return AxesPair(
        overlap=found,
        bound=student_bound(found.stderr, found.degrees, pairs),
        # d√O = dO / (2√O)
        axis_stderr=first.stderr / (2 * cosine) if cosine > 0 else math.nan,
        halves=(a.sampled.half_overlap(found.axes), b.sampled.half_overlap(found.axes)),
        drawn=Chance(float(drawn.mean()), float(drawn.quantile(0.95))),
        sentences=min(a.compared.level.count, b.compared.level.count),
    )


def _symmetric(cones: Sequence[_Cone], compare: Callable[[_Cone, _Cone], float]) -> Matrix:
    found = {(i, j): compare(cones[i], cones[j]) for i in range(len(cones)) for j in range(i, len(cones))}
    return tuple(tuple(found[min(i, j), max(i, j)] for j in range(len(cones))) for i in range(len(cones)))


def _axis_cosine(a: _Cone, b: _Cone) -> float:
    from cone_kernels.statistics.directions import axis_cosine

    return axis_cosine(a.axes[0], b.axes[0]) if a.dim == b.dim else math.nan


def _mean_cosine(a: _Cone, b: _Cone) -> float:
    from cone_kernels.statistics.directions import axis_cosine

    defined = a.dim == b.dim and bool(a.centering.mean.any()) and bool(b.centering.mean.any())
    return axis_cosine(a.centering.mean, b.centering.mean) if defined else math.nan


def _angles(a: _Cone, b: _Cone) -> tuple[float, ...] | None:
    from cone_kernels.statistics.directions import principal_angles

    return tuple(principal_angles(a.axes, b.axes).tolist()) if a.dim == b.dim and a.spanned and b.spanned else None


def _centered_level(a: _Cone, b: _Cone) -> Level | None:
    """The sentence level of the one after subtracting the mean of the other."""
    if a.dim != b.dim or a.vectors is None:
        return None
    return level_after(a.vectors, b.centering, groups=a.groups)


def _functional_cosine(a: _Cone, b: _Cone) -> float:
    """|r| of the projections on both first axes, over the sentences that have a vector in both models."""
    from cone_kernels.runs.sentence_vectors import used_rows
    from cone_kernels.statistics.correlation import Correlation

    if a.vectors is None or b.vectors is None or a.compared.corpus_fingerprint != b.compared.corpus_fingerprint:
        return math.nan
    correlation = Correlation(1)
    for (_, first), (_, second) in zip(a.vectors.blocks(), b.vectors.blocks(), strict=True):
        rows_a, rows_b = first.double(), second.double()
        used = used_rows(rows_a) & used_rows(rows_b)
        along_a = (rows_a[used] - a.centering.mean) @ a.axes[0]  # (n,)
        along_b = (rows_b[used] - b.centering.mean) @ b.axes[0]
        correlation.add(along_a[:, None], along_b)
    return abs(float(correlation.r[0]))


def _reasons(cones: Sequence[_Cone], centered: Sequence[Sequence[Level | None]], functional: Matrix) -> list[str]:
    found = []
    widths = sorted({cone.dim for cone in cones})
    if len(widths) > 1:
        found.append(
            f"axis_cosine, mean_cosine, principal_angles, centered_anisotropy of models of different widths "
            f"({', '.join(map(str, widths))}): directions of different spaces have no angle; see functional_cosine"
        )
    for cone in cones:
        if cone.vectors is None:
            found.append(
                f"centered_anisotropy, functional_cosine of {cone.name}: a saved state has no sentence vectors"
            )
        if not cone.spanned:
            found.append(f"principal_angles of {cone.name}: its sentence vectors vary in fewer directions than k")
        if not bool(cone.centering.mean.any()):
            found.append(f"mean_cosine of {cone.name}: the mean of its sentence vectors is zero")
    for (i, a), (j, b) in combinations(enumerate(cones), 2):
        if math.isnan(functional[i][j]) and a.vectors is not None and b.vectors is not None:
            same = a.compared.corpus_fingerprint == b.compared.corpus_fingerprint
            why = "they have too few sentence vectors in common" if same else "they were measured on other sentences"
            found.append(f"functional_cosine of {a.name} and {b.name}: {why}")
    for a, row in zip(cones, centered, strict=True):
        for b, level in zip(cones, row, strict=True):
            if level is not None and level.reason:
                found.append(f"centered_anisotropy of {a.name} with the mean of {b.name}: {level.reason}")
    return found


def _manifest(measurements: Sequence[Measurement], options: dict[str, Any]) -> dict[str, Any]:
    runs = [found.manifest for found in measurements if "seconds" in found.manifest]
    shared = {"versions": measurements[0].manifest["versions"], "rotation": options}
    if runs:
        shared |= {name: runs[0][name] for name in ("started", "options", "device", "device_name", "backend")}
        shared["seconds"] = {part: round(sum(run["seconds"][part] for run in runs), 3) for part in ("load", "run")}
    return {**shared, "measurements": [found.manifest for found in measurements]}
