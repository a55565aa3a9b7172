"""Experiment 4: whether models share their cone's axis, and whether a centring vector carries over between them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.axes_pair import Chance, Matrix
from cone_kernels.experiments.compared_cones import (
    ComparedCone,
    angles_of,
    axis_cosine_of,
    centered_level,
    functional_cosine_of,
    mean_cosine_of,
    pair_of,
    symmetric,
)
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.rotation_corpora import corpora_of, joined_corpus, names_of_corpora
from cone_kernels.experiments.rotation_result import RotationResult
from cone_kernels.names import OUTPUT, Layer
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
    from typing_extensions import Unpack

    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.state.cone_state import ConeState


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
            one for each model and state; with `corpora` one for all.
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
    if isinstance(layer, Sequence) and not isinstance(layer, str) and len(set(layer)) > 1:
        raise ValueError(f"layer: got {list(layer)} with corpora; it must be one, for only the corpus may differ")
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
    cones = [ComparedCone.of(*each, k) for each in zip(measurements, layers, names, strict=True)]
    chance = {
        dim: Chance(directions.random_cosine_mean(dim), directions.random_cosine_quantile(0.95, dim))
        for dim in {cone.dim for cone in cones}
    }
    axis_cosine = symmetric(cones, axis_cosine_of)
    centered = [[centered_level(a, b) for b in cones] for a in cones]
    functional_cosine = symmetric(cones, functional_cosine_of)
    several = len(cones) * (len(cones) - 1) // 2
    pairs = {(i, j): pair_of(cones[i], cones[j], k, several) for i, j in combinations(range(len(cones)), 2)}
    return RotationResult(
        models=tuple(cone.compared for cone in cones),
        corpus=joined_corpus(measurements, names) if over_corpora else shared_corpus(measurements),
        k=k,
        axis_cosine=axis_cosine,
        pairs=tuple(
            tuple(None if i == j else pairs[min(i, j), max(i, j)] for j in range(len(cones))) for i in range(len(cones))
        ),
        mean_cosine=symmetric(cones, mean_cosine_of),
        principal_angles=tuple(tuple(angles_of(a, b) for b in cones) for a in cones),
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


def _reasons(
    cones: Sequence[ComparedCone], centered: Sequence[Sequence[Level | None]], functional: Matrix
) -> list[str]:
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
