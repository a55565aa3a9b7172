"""What all the ways to share a run's shards among processes have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache, partial, reduce
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.files import writing
from cone_kernels.names import Layer
from cone_kernels.runs.measure_part import loaded_model
from cone_kernels.runs.measurement import Measurement, measurement_of
from cone_kernels.runs.options import CORPUS_OPTIONS, DEFAULTS, SharedOptions, open_corpus, with_checkpoint_of

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.models.loaded import LoadedModel
    from cone_kernels.runs.part import RunPart
    from cone_kernels.runs.sentence_vectors import SentenceVectors

# Options of the process that shares the work out; the processes that run the shards do not get them.
_NOT_PASSED_ON = ("workers", "ray", "distributed", "overwrite", "progress", "log_json")


class SharedRun:
    """A run whose shards several processes share: what each of them is asked, and what their parts make.

    Args:
        model, corpus: as in `measure`.
        gathered: `second_moment`, `unit_second_moment`, `pooling`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions`.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
    """

    def __init__(
        self,
        model: Any,
        corpus: Any,
        gathered: Mapping[str, Any],
        save_state: str | os.PathLike[str] | None,
        options: SharedOptions,
    ) -> None:
        self._started, self._clock = datetime.now(timezone.utc), time.perf_counter()
        self._model, self._gathered, self._save_state = model, gathered, save_state
        self._options: dict[str, Any] = dict(options)
        self._corpus = open_corpus(corpus, options)

    def keywords(self, process: int, processes: int, **own: Any) -> dict[str, Any]:
        """The keywords of `measure_part` for one process; its checkpoint is a file of its own, FILE.0-of-4.

        Args:
            process: its number, from 0.
            processes: how many there are.
            own: further keywords of this process: `save_state`, where its part is written; `device`, `threads`.
        """
        left_out = (*_NOT_PASSED_ON, *CORPUS_OPTIONS)
        passed_on = {name: value for name, value in self._options.items() if name not in left_out}
        rest = with_checkpoint_of(f"{process}-of-{processes}", passed_on)
        shard = f"{process}/{processes}"
        return {"model": self._model, "corpus": self._corpus, **self._gathered, **rest, "shard": shard, **own}

    def measurement(
        self,
        part: RunPart,
        vectors: dict[Layer, SentenceVectors],
        shared_by: Mapping[str, int],
        loaded: LoadedModel | None = None,
        rank: int = 0,
    ) -> Measurement:
        """The whole run, as a single process gives it.

        Args:
            part: the parts of all processes, merged.
            vectors: the sentence vectors of the whole corpus.
            shared_by: how many processes there were, by the name of the option.
            loaded: the model, where this process has it; else it is loaded when it is first asked for.
            rank: the number of this process among those that return the measurement; 0 writes.
        """
        from cone_kernels.runs.runner import Run

        part = replace(part, facts={**part.facts, "seconds": time.perf_counter() - self._clock})
        ran = Run.of(part, part.close(), vectors)
        if self._save_state is not None and rank == 0:
            with writing(self._save_state):
                ran.state.save(self._save_state)
        asked = {name: value for name, value in self._gathered.items() if name != "keep_vectors"}
        asked |= {name: self._options.get(name) for name in ("token_budget", "threads", "shard_size")}
        asked |= {name: self._options.get(name, DEFAULTS[name]) for name in ("backend", "packed")} | dict(shared_by)
        options: Any = self._options

        @cache
        def load() -> LoadedModel:
            return loaded or loaded_model(self._model, options, images=self._corpus.of_images)

        return measurement_of(
            ran,
            asked,
            self._started.isoformat(timespec="seconds"),
            0.0,
            load=load,
            sentences=self._corpus,
            rank=rank,
        )


def refuse_unopenable(model: Any, corpus: Any, option: str) -> None:
    """Refuses a model or a corpus that other processes cannot open again.

    Args:
        model, corpus: as in `measure`.
        option: the one that asks for other processes, `workers` or `ray`.

    Raises:
        TypeError: the model is no path or id, or the corpus is not in files.
    """
    for name, value in (("model", model), ("corpus", corpus)):
        if isinstance(value, Corpus) and value.in_files:
            continue
        if not isinstance(value, (str, os.PathLike)) or str(value) == "-":
            got = "standard input" if isinstance(value, (str, os.PathLike)) else type(value).__name__
            if isinstance(value, Corpus):
                got = f"the corpus {value.name}"
            raise TypeError(
                f"{name}: got {got} with {option}; it must be a path or an id, as each process opens it again"
            )


def merged_parts(each: Sequence[Mapping[str, Any]]) -> tuple[RunPart, dict[Layer, SentenceVectors]]:
    """The parts that processes have written, as one, and the sentence vectors of all by layer.

    Args:
        each: the keywords that each process called `measure_part` with.

    Raises:
        OSError, StateFileError: a part cannot be read.
        ValueError: they are not the parts of one run, or shards are in two of them.
    """
    from cone_kernels.runs.part import RunPart
    from cone_kernels.runs.sentence_vectors import united
    from cone_kernels.runs.vector_keeper import opened

    parts = [RunPart.load(keywords["save_state"]) for keywords in each]
    whole = reduce(RunPart.merge, parts)
    if not each[0].get("keep_vectors"):
        return whole, {}
    prefixes = [keywords.get("checkpoint") or keywords["save_state"] for keywords in each]
    kept = [opened(prefix, part.facts) for prefix, part in zip(prefixes, parts, strict=True)]
    vectors = {}
    for layer in sorted(set().union(*kept), key=str):
        held = [of_process[layer] for of_process in kept if layer in of_process]
        headers = [of_process.header() for of_process in held]
        vectors[layer] = united(headers, whole.sentences, partial(_read, held))
    return whole, vectors


def _read(held: Sequence[SentenceVectors], which: int, first_id: int, n: int) -> Tensor:
    return held[which].read(first_id, n)
