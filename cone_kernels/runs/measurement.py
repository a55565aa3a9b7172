"""One pass of a model over a corpus: what every experiment is computed from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import DROP_REASONS, REPLACE_REASONS, Corpus
from cone_kernels.models.names import short_name
from cone_kernels.runs.machine import machine, versions
from cone_kernels.runs.options import (
    DEFAULTS,
    LOAD_OPTIONS,
    RUN_OPTIONS,
    MeasureOptions,
    ShardOptions,
    open_corpus,
    refuse_run_options,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.models.loading import LoadedModel
    from cone_kernels.runs.progress import Progress
    from cone_kernels.runs.runner import Run
    from cone_kernels.runs.sentence_vectors import SentenceVectors
    from cone_kernels.state.cone_state import ConeState


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one pass gathered, or a state saved before.

    Attributes:
        model: what was measured: `name`, `architecture`, `weights_sha256`, `final_norm`, ...
        corpus: what it was measured on, and what was dropped, replaced, truncated or left out.
        manifest: versions, device, backend, times and options of the run; of a state its fingerprint.
        layer_names: what each layer is, by module name.
        state: the sums.
        vectors: the sentence vectors of the layers that were kept, by layer number.
        load: gives the model; None for a state.
        sentences: the corpus, to be read again in the order of the sentence ids; None for a state.
        rank: of this process among those of torchrun that have the same measurement; 0 alone writes.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    manifest: dict[str, Any]
    layer_names: tuple[str, ...]
    state: ConeState
    vectors: dict[int, SentenceVectors]
    load: Callable[[], LoadedModel] | None = None
    sentences: Corpus | None = None
    rank: int = 0

    @cached_property
    def loaded(self) -> LoadedModel | None:
        """The model; None for a state. It is loaded now where other processes have run it."""
        return self.load() if self.load else None

    @property
    def name(self) -> str:
        """A short name of the model: the last part of its folder or hub id, two where the last one says nothing."""
        return short_name(str(self.model["name"]))

    def layer(self, layer: int) -> int:
        """The number of a layer that may be counted from the end: -1 is the last.

        Raises:
            ValueError: there is none such.
        """
        numbers = self.state.layers
        if layer in numbers:
            return layer
        if not -len(numbers) <= layer < 0:
            raise ValueError(f"layer: got {layer}; it must be one of {numbers}, or from {-len(numbers)} to -1")
        return numbers[layer]

    def kept_vectors(self, layer: int) -> SentenceVectors:
        """The sentence vectors of a layer, by its number.

        Raises:
            ValueError: the measurement did not keep them.
        """
        if layer not in self.vectors:
            kept = sorted(self.vectors)
            raise ValueError(f"layer: got {layer}; the measurement kept the sentence vectors of {kept}")
        return self.vectors[layer]


def measure(
    model: str | os.PathLike[str] | LoadedModel,
    corpus: str | os.PathLike[str] | Corpus | Iterable[str],
    *,
    second_moment: bool = False,
    unit_second_moment: bool = False,
    poolings: Sequence[str] = (),
    keep_vectors: Sequence[int] = (),
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> Measurement:
    """Runs a model over a corpus once.

    Args:
        model: a folder, a hub id, or what `load_model` returned.
        corpus: a file, a `Corpus`, or sentences.
        second_moment, unit_second_moment, poolings, keep_vectors: as in `cone_kernels.runs.runner.run`.
        save_state: where to write the state; with `shard` the part, and kept vectors beside it.
        options: `ShardOptions`.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
        ModuleNotFoundError, ModelError: the model cannot be loaded.
        BackendUnavailable: the backend asked for cannot run here.
        TypeError: an option is unknown.
        ValueError: an option is out of range, or the corpus has no sentence; `shard` without `save_state`.
        WorkerError: a worker or a task failed.

    Example:
        >>> measured = measure("sentence-transformers/all-MiniLM-L6-v2", "snli_dev.jsonl", limit=300)
        >>> metrics.anisotropy(measured.state.sentence)
    """
    unknown = sorted(set(options) - set(ShardOptions.__annotations__))
    if unknown:
        raise TypeError(f"options: got {', '.join(unknown)}; they must be of {', '.join(ShardOptions.__annotations__)}")
    kept: dict[str, Any] = {
        "second_moment": second_moment,
        "unit_second_moment": unit_second_moment,
        "poolings": list(poolings),
        "keep_vectors": list(keep_vectors),
    }
    given: dict[str, Any] = {name: options.get(name) for name in ("distributed", "workers", "ray", "shard")}
    first, *others = [name for name, value in given.items() if value is not None and value is not False] or [""]
    if others:
        raise ValueError(f"{first}: got {given[first]} beside {', '.join(others)}; they do not go together")
    if first == "distributed":
        from cone_kernels.runs.sharing.by_ranks import measure_by_ranks

        return measure_by_ranks(model, corpus, kept, save_state, options)
    if first == "workers":
        from cone_kernels.runs.sharing.by_workers import measure_by_workers

        return measure_by_workers(model, corpus, kept, save_state, options)
    if first == "ray":
        from cone_kernels.runs.sharing.by_ray import measure_by_ray

        return measure_by_ray(model, corpus, kept, save_state, options)
    shard = options.get("shard")
    if shard is not None and save_state is None:
        if keep_vectors:
            raise ValueError(
                f"shard: got {shard!r}, but the sentence vectors of the whole corpus are needed; see workers"
            )
        raise ValueError(f"shard: got {shard!r} without save_state, which is to be merged with the other parts")
    read = open_corpus(corpus, options)

    from cone_kernels.runs.runner import WINDOW, run

    chosen: dict[str, Any] = {name: options.get(name, DEFAULTS[name]) for name in RUN_OPTIONS}
    shard_size = options.get("shard_size")
    window = WINDOW if shard_size is None else shard_size
    with reported(model, options) as progress:
        started, clock = datetime.now(timezone.utc), time.perf_counter()
        loaded = loaded_model(model, options)
        load_seconds = time.perf_counter() - clock
        beside = None if shard is None else save_state
        ran = run(loaded, read, window=window, vectors_beside=beside, progress=progress, **kept, **chosen)
    if save_state is not None:
        (ran.state if shard is None else ran.part).save(save_state)
    del kept["keep_vectors"]  # it is told by what is done with the vectors
    asked = {
        **kept,
        **{name: chosen[name] for name in ("backend", "token_budget", "packed", "threads", "shard")},
        "shard_size": window,
    }
    times = {"started": started.isoformat(timespec="seconds"), "load": load_seconds}
    return measurement_of(ran, asked, times, load=lambda: loaded, sentences=read)


def measurement_of(
    ran: Run,
    asked: dict[str, Any],
    times: dict[str, Any],
    *,
    load: Callable[[], LoadedModel],
    sentences: Corpus,
    rank: int = 0,
) -> Measurement:
    """A run as a measurement.

    Args:
        ran: the run, or several united.
        asked: the options that its manifest tells.
        times: `started`, and the seconds of `load`.
        load, sentences, rank: as in `Measurement`.
    """
    facts, identity = ran.part.facts, ran.part.identity
    summary, info = facts["corpus"], facts["model"]
    policies = {name: identity[f"corpus.{name}"] for name in ("errors", "malformed", "dedup")}
    return Measurement(
        model={**info, "final_norm": ran.final_norm},
        corpus={
            **summary,
            "sentences": ran.sentences,
            "dropped": {**summary["dropped"], "no_token": ran.no_token},
            "tokens": ran.tokens,
            "truncated": ran.truncated,
            "left_out": _left_out(ran.state),
        },
        manifest={
            "versions": versions(),
            "started": times["started"],
            "seconds": {"load": round(times["load"], 3), "run": round(ran.seconds, 3)},
            "options": {**policies, **asked},
            **machine(ran),
            "max_length": info["max_length"],
            "state_fingerprint": ran.state.fingerprint(),
        },
        layer_names=ran.layer_names,
        state=ran.state,
        vectors=ran.vectors,
        load=load,
        sentences=sentences,
        rank=rank,
    )


def from_state(state: ConeState | str | os.PathLike[str]) -> Measurement:
    """What a saved state tells without its model and its corpus.

    Args:
        state: a `ConeState`, or a file that `save` wrote.

    Raises:
        OSError, StateFileError: the file cannot be read, or is damaged.

    Example:
        >>> from_state("minilm.safetensors").state.layers
        (0, 1, 2, 3, 4, 5, 6)
    """
    from cone_kernels.state.cone_state import ConeState

    file = None if isinstance(state, ConeState) else Path(state)
    found = state if isinstance(state, ConeState) else ConeState.load(state)
    info, sentence = found.info, found.sentence
    identity = info["model"] if isinstance(info.get("model"), dict) else {"architecture": info.get("model")}
    names = info.get("layer_names") or [f"layer {number}" for number in found.layers]
    return Measurement(
        model={"name": file.stem if file else "state", **identity, "final_norm": info.get("final_norm")},
        corpus={
            "name": None,
            "sentences": sentence.rows_seen(0),
            "dropped": dict.fromkeys(DROP_REASONS, 0) | {"no_token": int(sentence.n_empty[0].sum())},
            "replaced": dict.fromkeys(REPLACE_REASONS, 0),
            "examples": [],
            "tokens": found.token.rows_seen(0),
            "left_out": _left_out(found),
        },
        manifest={
            "versions": versions(),
            "state": file.name if file else None,
            "state_fingerprint": found.fingerprint(),
        },
        layer_names=tuple(names),
        state=found,
        vectors={},
    )


def measured(
    model: str | os.PathLike[str] | LoadedModel | None,
    corpus: str | os.PathLike[str] | Corpus | Iterable[str] | None,
    state: ConeState | str | os.PathLike[str] | None,
    *,
    second_moment: bool = False,
    poolings: Sequence[str] = (),
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> Measurement:
    """A pass of `model` over `corpus`, or what `state` holds: exactly one of the two.

    Raises:
        ValueError: both are given, or neither, or options of a run beside a state; and as `measure`, `from_state`.
    """
    if state is None:
        if model is None or corpus is None:
            missing = " and ".join(name for name, value in (("model", model), ("corpus", corpus)) if value is None)
            raise ValueError(f"{missing}: got none; give a model and a corpus, or a state")
        keep: dict[str, Any] = {"second_moment": second_moment, "poolings": poolings, "save_state": save_state}
        return measure(model, corpus, **keep, **options)
    given = {"model": model, "corpus": corpus, "save_state": save_state}
    taken = [name for name, value in given.items() if value is not None]
    if taken:
        raise ValueError(f"state: got one beside {', '.join(taken)}; a state takes the place of a run")
    refuse_run_options(options)
    return from_state(state)


def labels(measurements: Sequence[Measurement]) -> list[str]:
    """The names of the models, numbered where one comes again.

    Example:
        >>> labels([bert, bert])
        ['bert-base-uncased', 'bert-base-uncased (2)']
    """
    names = [measurement.name for measurement in measurements]
    return [
        name if name not in names[:at] else f"{name} ({names[:at].count(name) + 1})" for at, name in enumerate(names)
    ]


def shared_corpus(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What several measurements were made on: the runs' corpus, or what the states say of theirs.

    Counts that differ by tokenizer are added up; "sentences" is None where the corpora differ in it.
    """
    runs = [found.corpus for found in measurements if "fingerprint" in found.corpus]
    corpora = runs or [found.corpus for found in measurements]
    added = [name for name in ("tokens", "truncated") if name in corpora[0]]
    totals: dict[str, Any] = {name: sum(one[name] for one in corpora) for name in added}
    sentences = {one["sentences"] for one in corpora}
    dropped = {**corpora[0]["dropped"], "no_token": max(one["dropped"]["no_token"] for one in corpora)}
    return {
        **corpora[0],
        **totals,
        "sentences": sentences.pop() if len(sentences) == 1 else None,
        "dropped": dropped,
        "left_out": max(found.corpus["left_out"] for found in measurements),
    }


def loaded_model(model: str | os.PathLike[str] | LoadedModel, options: MeasureOptions) -> LoadedModel:
    """The model, as the options say that it is loaded.

    Raises:
        ModuleNotFoundError, ModelError: it cannot be loaded.
        ValueError: it is a `LoadedModel` beside such options.
    """
    from cone_kernels.models.loading import LoadedModel, load_model

    defaults = {name: DEFAULTS[name] for name in LOAD_OPTIONS}
    chosen: dict[str, Any] = {name: options.get(name, default) for name, default in defaults.items()}
    if not isinstance(model, LoadedModel):
        return load_model(model, **chosen)
    if chosen != defaults:
        raise ValueError(
            f"model: got a LoadedModel and options of load_model; give {', '.join(defaults)} to load_model"
        )
    return model


@contextmanager
def reported(
    model: str | os.PathLike[str] | LoadedModel, options: MeasureOptions
) -> Iterator[Callable[[Progress], None] | None]:
    """What takes the reports of a run; a log is open meanwhile."""
    then, file = options.get("progress"), options.get("log_json")
    if file is None:
        yield then
        return
    from cone_kernels.runs.progress import JsonLinesProgress

    name = str(model) if isinstance(model, (str, os.PathLike)) else str(model.info["name"])
    with JsonLinesProgress(file, then=then, also={"model": name}) as log:
        yield log


def threads_of(*measurements: Measurement) -> AbstractContextManager[None]:
    """The CPU threads of the run, for what is computed from it: their number decides the last bits of some products."""
    from cone_kernels.devices import cpu_threads

    return cpu_threads(next((found.manifest["threads"] for found in measurements if "threads" in found.manifest), None))


def _left_out(state: ConeState) -> int:
    """Sentence vectors left out as zero or not finite, of the layer where they are most."""
    return int((state.sentence.n_zero + state.sentence.n_nonfinite).sum(1).max())
