"""The fix: a centering fitted on a layer, and the anisotropy before and after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.corpora.pairs import opened_pairs
from cone_kernels.experiments.centering_result import CenteringResult
from cone_kernels.experiments.cone_claims import cone_claims
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.held_out import Blocks, cross_fitted, judged, of_same_rows
from cone_kernels.experiments.level import level_after, levels_of
from cone_kernels.files import require_local, writing
from cone_kernels.names import OUTPUT, CenteringMethod, Layer
from cone_kernels.runs.measure import measure as run_model
from cone_kernels.runs.measurement import Measurement, from_state, threads_of
from cone_kernels.runs.options import DEFAULTS, SharedOptions, refuse_run_options

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from cone_kernels.corpora.pairs import LabelledPairs
    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import ConeState


def center(
    model: ModelLike | None = None,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any] | None = None,
    *,
    state: ConeState | str | os.PathLike[str] | None = None,
    layer: Layer | None = None,
    pooling: str = "mean",
    method: CenteringMethod = "mean",
    components: int | None = None,
    shrinkage: float | None = None,
    output: str | os.PathLike[str] | None = None,
    vectors: Any = None,
    scale: float | None = None,
    write: str | os.PathLike[str] | None = None,
    pairs: str | os.PathLike[str] | LabelledPairs | None = None,
    measure: str | None = None,
    **options: Unpack[SharedOptions],
) -> CenteringResult:
    """Fits a centering on a layer's sentence vectors and measures the cone before and after it.

    With a model and a corpus: one pass, fitted and measured on the same sentences. With a state too: fitted on the
    state, measured on the corpus. With a state alone nothing is run, and what comes after is not measured. With vectors
    in place of a model and a corpus no model is needed: they are read twice, and may be written opened.

    Args:
        model: a folder, a hub id, what `load_model` returned, or a model in memory (`ModelLike`).
        corpus: a file, a `Corpus`, sentences, or records that have them in a `field`.
        state: a state saved before, with second moments for all methods but "mean".
        layer: its number as in Hugging Face's `hidden_states`, -1 is the last; or "output", the vectors that the model
            itself gives. None is the output, or with `pooling` and of a model without one the last layer.
        pooling: how the sentence vectors of a layer are made, one of `cone_kernels.names.POOLINGS` or "model".
        method: "mean", "all-but-the-top" or "whitening"; see `Centering.fit`.
        components: directions that all-but-the-top projects out. Default: a hundredth of the width.
        shrinkage: α of whitening, 0 to 1. Default: the oracle approximating shrinkage.
        output: where to write the centering; `Centering.load` reads it.
        vectors: vectors that are there already, in place of a model and a corpus: what `experiments.vectors` takes. Of
            `options` they take field, limit, backend, threads, workers, checkpoint, checkpoint_every and resume.
        scale: what vectors of int8 and uint8 are multiplied by.
        write: where to write the opened vectors, by the ending of its name as .npy, .safetensors, .parquet, .fvecs or
            .fbin.
        pairs: labelled pairs of texts, in a file that `read_pairs` reads: whether centring helps is measured by them,
            at every layer and by every method.
        measure: what they are judged by: "auc", "spearman", "mrr" or "recall@K"; None finds it from the file.
        options: `SharedOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus or the pairs cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        StateFileError: the state's file is damaged.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: an option is out of range or not of this method, a model or a corpus is given without the other,
            neither they nor a state are given, or the state or its width does not fit.

    Examples:
        >>> result = center("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", method="whitening")
        >>> result.before.anisotropy, result.after.anisotropy
        >>> opened = result.centering(vectors)
    """
    from cone_kernels.centering import check_method

    check_method(method, components, shrinkage)
    for name, path in (("output", output), ("write", write)):
        require_local(name, path)
    fit: dict[str, Any] = {"layer": layer, "method": method, "components": components, "shrinkage": shrinkage}
    labelled = opened_pairs(pairs, measure, no_model=vectors is not None or (model is None and corpus is None))
    saved = None if state is None else from_state(state)
    if vectors is not None:
        taken = {"model": model, "corpus": corpus, "pooling": None if pooling == "mean" else pooling}
        return _center_vectors(vectors, scale, taken, options, fitted_on=saved, write=write, output=output, **fit)
    for name, value in (("scale", scale), ("write", write)):
        if value is not None:
            raise ValueError(f"{name}: got {value!r} without vectors; it must be left out")
    if model is None and corpus is None:
        if saved is None:
            raise ValueError(
                "model, corpus, state: got none; it must be a model and a corpus, or a state, or all three"
            )
        refuse_run_options(options)
        if pooling != "mean":
            raise ValueError(f"pooling: got {pooling!r} with a state alone; it must be left out, for nothing is run")
        return center_of(saved, output=output, **fit)
    if model is None or corpus is None:
        missing = "model" if model is None else "corpus"
        raise ValueError(f"{missing}: got none; it must be given, for a run needs a model and a corpus")
    needs_moment = saved is None and (method != "mean" or labelled is not None)
    gathered: dict[str, Any] = {"second_moment": needs_moment, "pooling": pooling, "keep_vectors": (layer,)}
    measurement = run_model(model, corpus, **gathered, **options)
    with threads_of(measurement):
        result = center_of(measurement, fitted_on=saved, output=output, **fit)
        if labelled is None:
            return result
        from cone_kernels.experiments.quality import quality_of

        asked: dict[str, Any] = {"components": components, "shrinkage": shrinkage, "fitted_on": saved}
        return replace(result, quality=quality_of(measurement, labelled, layer=result.layer, options=options, **asked))


def _center_vectors(
    vectors: Any, scale: float | None, taken: dict[str, Any], options: SharedOptions, **fit: Any
) -> CenteringResult:
    from cone_kernels.experiments.center_vectors import center_vectors
    from cone_kernels.experiments.vectors import open_vectors
    from cone_kernels.runs.measure_vectors import VectorsOptions

    names = VectorsOptions.__annotations__
    rest = {name: value for name, value in options.items() if name not in names and name != "field"}
    refused = [name for name, value in taken.items() if value is not None]
    refused += [name for name, value in rest.items() if value != DEFAULTS.get(name)]
    if refused:
        raise ValueError(f"{', '.join(refused)}: got a value together with vectors; no model is run, so leave it out")
    asked = options.get("field") or []
    fields = [asked] if isinstance(asked, str) else asked
    if len(fields) > 1:
        raise ValueError(f"field: got {', '.join(fields)}; it must be one, which holds the vectors")
    field = fields[0] if fields else None
    own: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    return center_vectors(open_vectors(vectors, field=field, scale=scale), field=field, **fit, **own)


def center_of(
    measurement: Measurement,
    *,
    layer: Layer | None = None,
    method: CenteringMethod = "mean",
    components: int | None = None,
    shrinkage: float | None = None,
    fitted_on: Measurement | None = None,
    output: str | os.PathLike[str] | None = None,
) -> CenteringResult:
    """The result of a measurement, which kept the vectors of `layer` unless it is a saved state; see `center`.

    Args:
        measurement: what `before` and `after` are measured on.
        layer, method, components, shrinkage, output: as in `center`.
        fitted_on: what the centering is fitted on; default `measurement` itself.
    """
    from cone_kernels.centering import Centering

    number = measurement.layer(layer)
    source = measurement if fitted_on is None else fitted_on
    _refuse_other_vectors(source, measurement, number)
    centering = Centering.fit(
        source.state,
        layer=source.layer(number if layer is None else layer),
        method=method,
        components=components,
        shrinkage=shrinkage,
    )
    width = measurement.moments(number).dim
    if centering.dim != width:
        raise ValueError(
            f"state: got width {centering.dim}; it must be {width}, the width of the model's sentence vectors"
        )
    after, found = None, None
    moments = measurement.moments(number)
    if measurement.load is not None or measurement.vectors:
        vectors = measurement.kept_vectors(number)
        groups = measurement.groups()
        before, after = (level_after(vectors, one, groups=groups) for one in (None, centering))
        blocks = _used(vectors, groups)
        fit: dict[str, Any] = {"method": method, "components": components, "shrinkage": shrinkage}
        same = of_same_rows(source.moments(source.layer(number if layer is None else layer)), moments)
        found = cross_fitted(blocks, moments, fit) if same else judged(blocks, moments, [centering])
    else:
        before = levels_of(measurement.moments(number))[0]
    if output is not None and measurement.rank == 0:
        with writing(output):
            centering.save(output)
    return CenteringResult(
        model=measurement.model,
        corpus=measurement.corpus,
        layer=number,
        layer_name=measurement.layer_name(number),
        before=before,
        after=after,
        fitted_on={
            "state": None if fitted_on is None else fitted_on.name,
            "sentences": centering.count,
            "prompt": source.model.get("prompt"),
        },
        cone=cone_claims(moments)[0],
        held_out=found,
        file=None if output is None else os.fspath(output),
        manifest={**measurement.manifest, "centering_fingerprint": centering.fingerprint()},
        centering=centering,
        dependence=Dependence.of_moments(moments),
    )


def _refuse_other_vectors(fitted_on: Measurement, measured_on: Measurement, layer: Layer) -> None:
    """Refuses sums of vectors that are made otherwise than those that they are to centre."""
    name, kind = ("output", _output) if layer == OUTPUT else ("pooling", _pooling)
    fitted, measured = kind(fitted_on), kind(measured_on)
    if fitted != measured:
        raise ValueError(f"state: got one of the {name} {fitted!r}; it must be {measured!r}, as what it is measured on")


def _pooling(measurement: Measurement) -> str:
    return measurement.state.pooling


def _output(measurement: Measurement) -> str:
    """What makes the vectors of an output, in words; models of the same words may differ in their weights."""
    about = measurement.model.get("output") or {}
    kept = {name: about[name] for name in ("modules", "pooling", "dim", "include_prompt") if name in about}
    return ", ".join(f"{name} {value}" for name, value in kept.items())


def _used(vectors: SentenceVectors, groups: Callable[[Tensor], Tensor]) -> Blocks:
    """The vectors that are in the sums, with their groups."""
    from cone_kernels.runs.sentence_vectors import used_blocks

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for ids, rows in used_blocks(vectors.blocks()):
            yield rows, groups(ids)

    return blocks
