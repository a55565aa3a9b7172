"""One pass of a model over a corpus, in this process or shared among several: what every experiment begins with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.names import Layer
from cone_kernels.runs.measure_part import measure_part
from cone_kernels.runs.measurement import Measurement, from_state
from cone_kernels.runs.options import (
    ShardOptions,
    rank_of,
    refuse_replacing,
    refuse_run_options,
    refuse_unknown_options,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.state.cone_state import ConeState


def measure(
    model: ModelLike,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any],
    *,
    second_moment: bool = False,
    unit_second_moment: bool = False,
    pooling: str = "mean",
    poolings: Sequence[str] = (),
    keep_vectors: Sequence[Layer | None] = (),
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> Measurement:
    """Runs a model over a corpus once.

    Args:
        model: a folder, a hub id, what `load_model` returned, or a model in memory (`ModelLike`).
        corpus: a file, a `Corpus`, sentences, or records that have them in a `field`; of a model of images a folder of
            them, a list of images of PIL, or a data set with a column of them.
        second_moment, unit_second_moment: as in `RunOptions`.
        pooling, poolings: as in `RunOptions`; "model" is the one that a model of sentence-transformers has itself.
        keep_vectors: as in `RunOptions`; None is the model's output, or its last layer where it has none.
        save_state: where to write the state; with `shard` the `RunPart`, and kept vectors next to it.
        options: `ShardOptions`.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        BackendUnavailable: the backend asked for cannot run here.
        TypeError: an option is unknown; other processes cannot open the model or the corpus.
        ValueError: an option is out of range, or the corpus has no sentence; `shard` without `save_state`.
        WorkerError: a worker or a task failed.

    Examples:
        >>> measured = measure("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=300)
        >>> metrics.anisotropy(measured.state.sentence)
    """
    refuse_unknown_options(options)
    if rank_of(options) == 0:
        refuse_replacing(save_state, options.get("overwrite", False))
    gathered: dict[str, Any] = {
        "second_moment": second_moment,
        "unit_second_moment": unit_second_moment,
        "pooling": pooling,
        "poolings": list(poolings),
        "keep_vectors": list(keep_vectors),
    }
    given: dict[str, Any] = {name: options.get(name) for name in ("distributed", "workers", "ray", "shard")}
    first, *others = [name for name, value in given.items() if value is not None and value is not False] or [""]
    if others:
        raise ValueError(f"{first}: got {given[first]} together with {', '.join(others)}; give one of them")
    if first == "distributed":
        from cone_kernels.runs.sharing.ranks import measure_by_ranks

        return measure_by_ranks(model, corpus, gathered, save_state, options)
    if first == "workers":
        from cone_kernels.runs.sharing.workers import measure_by_workers

        return measure_by_workers(model, corpus, gathered, save_state, options)
    if first == "ray":
        from cone_kernels.runs.sharing.ray_tasks import measure_by_ray

        return measure_by_ray(model, corpus, gathered, save_state, options)
    return measure_part(model, corpus, save_state=save_state, **gathered, **options)


def measured(
    model: ModelLike | None,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any] | None,
    state: ConeState | str | os.PathLike[str] | None,
    *,
    second_moment: bool = False,
    pooling: str = "mean",
    poolings: Sequence[str] = (),
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> Measurement:
    """A pass of `model` over `corpus`, or what `state` holds: exactly one of the two.

    Args:
        model, corpus: as in `measure`.
        state: as in `from_state`.
        second_moment, pooling, poolings, save_state, options: of the pass, as in `measure`.

    Raises:
        ValueError: both are given, or neither, or a state and options of a run; and as `measure`, `from_state`.
    """
    if state is None:
        if model is None or corpus is None:
            missing = " and ".join(name for name, value in (("model", model), ("corpus", corpus)) if value is None)
            raise ValueError(f"{missing}: got none; give a model and a corpus, or a state")
        gathered: dict[str, Any] = {"second_moment": second_moment, "pooling": pooling, "poolings": poolings}
        return measure(model, corpus, save_state=save_state, **gathered, **options)
    given = {
        "model": model,
        "corpus": corpus,
        "save_state": save_state,
        "pooling": None if pooling == "mean" else pooling,
    }
    taken = [name for name, value in given.items() if value is not None]
    if taken:
        raise ValueError(f"state: got one together with {', '.join(taken)}; a state takes the place of a run")
    refuse_run_options(options)
    found = from_state(state)
    if not found.state.layers:
        raise ValueError(f"state: got one of vectors, {found.name}, which has no layers; see `vectors`")
    return found
