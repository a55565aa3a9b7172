"""What all the ways to share a run's shards among processes have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.runs.measurement import Measurement, loaded_model, measurement_of
from cone_kernels.runs.options import CORPUS_OPTIONS, DEFAULTS, SharedOptions, open_corpus, with_checkpoint_of

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.models.loading import LoadedModel
    from cone_kernels.runs.part import PartialRun
    from cone_kernels.runs.sentence_vectors import SentenceVectors

# What is for the process that shares the work out, and not for those that it is shared among.
_OF_THE_WHOLE = ("workers", "ray", "distributed", "progress", "log_json")


class SharedRun:
    """A run whose shards several processes share: what each of them is asked, and what their parts make.

    Args:
        model, corpus: as in `measure`.
        kept: `second_moment`, `unit_second_moment`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions`.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the corpus cannot be read.
    """

    def __init__(
        self,
        model: Any,
        corpus: Any,
        kept: Mapping[str, Any],
        save_state: str | os.PathLike[str] | None,
        options: SharedOptions,
    ) -> None:
        self._started, self._clock = datetime.now(timezone.utc), time.perf_counter()
        self._model, self._kept, self._save_state = model, kept, save_state
        self.options: dict[str, Any] = dict(options)
        self.corpus = open_corpus(corpus, options)

    def keywords(self, process: int, processes: int, **own: Any) -> dict[str, Any]:
        """Those of `measure` for one of so many processes; a checkpoint becomes one of its own, FILE.0-of-4.

        Args:
            process: its number, from 0.
            processes: how many there are.
            own: further options of it: `save_state`, its part; `device`, `threads`.
        """
        passed_on = {
            name: value for name, value in self.options.items() if name not in (*_OF_THE_WHOLE, *CORPUS_OPTIONS)
        }
        rest = with_checkpoint_of(f"{process}-of-{processes}", passed_on)
        shard = f"{process}/{processes}"
        return {"model": self._model, "corpus": self.corpus, **self._kept, **rest, "shard": shard, **own}

    def measurement(
        self,
        part: PartialRun,
        vectors: dict[int, SentenceVectors],
        shared_by: Mapping[str, int],
        loaded: LoadedModel | None = None,
        rank: int = 0,
    ) -> Measurement:
        """The whole run, as a single process gives it.

        Args:
            part: the parts of all processes, merged.
            vectors: the sentence vectors of the whole corpus.
            shared_by: how many processes there were, by the name of the option.
            loaded: the model, where this process has it; else it is loaded when it is asked for.
            rank: of this process among those that return the measurement; 0 writes.
        """
        from cone_kernels.runs.runner import Run

        part = replace(part, facts={**part.facts, "seconds": time.perf_counter() - self._clock})
        ran = Run.of(part, part.close(), vectors)
        if self._save_state is not None and rank == 0:
            ran.state.save(self._save_state)
        asked = {name: value for name, value in self._kept.items() if name != "keep_vectors"}
        asked |= {name: self.options.get(name) for name in ("token_budget", "threads", "shard_size")}
        asked |= {name: self.options.get(name, DEFAULTS[name]) for name in ("backend", "packed")} | dict(shared_by)
        options: Any = self.options
        return measurement_of(
            ran,
            asked,
            {"started": self._started.isoformat(timespec="seconds"), "load": 0.0},
            load=lambda: loaded or loaded_model(self._model, options),
            sentences=self.corpus,
            rank=rank,
        )


def require_openable(model: Any, corpus: Any, engine: str) -> None:
    """Refuses what other processes cannot open anew.

    Args:
        model, corpus: as in `measure`.
        engine: the option that asks for the processes.

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
            raise TypeError(f"{name}: got {got} beside {engine}; each opens it anew, so it must be a path or an id")


def merged(processes: Sequence[Mapping[str, Any]]) -> tuple[PartialRun, dict[int, SentenceVectors]]:
    """The parts that processes have written, as one: sums, and sentence vectors by layer number.

    Args:
        processes: the keywords of each.

    Raises:
        OSError, StateFileError: a part cannot be read.
        ValueError: they are not the parts of one whole.
    """
    from cone_kernels.runs.part import PartialRun
    from cone_kernels.runs.sentence_vectors import united
    from cone_kernels.runs.vector_keeper import opened

    parts = [PartialRun.load(one["save_state"]) for one in processes]
    whole = reduce(PartialRun.merge, parts)
    if not processes[0]["keep_vectors"]:
        return whole, {}
    beside = [one.get("checkpoint") or one["save_state"] for one in processes]
    kept = [opened(file, part.facts) for file, part in zip(beside, parts, strict=True)]
    vectors = {}
    for layer in sorted(set().union(*kept)):
        held = [one[layer] for one in kept if layer in one]
        headers = [one.header() for one in held]
        vectors[layer] = united(headers, whole.sentences, partial(_read, held))
    return whole, vectors


def _read(held: Sequence[SentenceVectors], which: int, first_id: int, n: int) -> Tensor:
    return held[which].read(first_id, n)
