"""Runs a model over a corpus, shard by shard, and gathers the state."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from cone_kernels.corpora import Corpus
from cone_kernels.devices import cpu_threads
from cone_kernels.models.loading import LoadedModel
from cone_kernels.names import pooling_names
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.runs.checkpoint import Checkpoint
from cone_kernels.runs.corpus_position import CorpusPosition
from cone_kernels.runs.encoded_shards import encoded_shards
from cone_kernels.runs.packing import refuse_unpackable
from cone_kernels.runs.part import PartialRun
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.sentence_vectors import SentenceVectors
from cone_kernels.runs.shard_runner import Counts, ShardRunner
from cone_kernels.runs.shard_tree import owner, parsed_shard
from cone_kernels.runs.vector_keeper import VectorKeeper
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.poolings import needs_special

# On a CPU throughput is level from 1,000 to 16,000 tokens (MiniLM, two cores); a GPU wants more at once.
TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}
WINDOW = 8192

# What of a corpus's settings decides which sentences come after those that a checkpoint has seen.
_CORPUS_SETTINGS = ("fields", "limit", "sample", "seed", "dedup", "errors", "malformed")


@dataclass(frozen=True, eq=False)
class Run:
    """What a run over a corpus gathered.

    Attributes:
        state: the sums of every layer at both levels; with `shard`, of this process's shards alone.
        layer_names: what each layer is, by module name.
        final_norm: whether the last layer is taken after a final norm.
        sentences, tokens: how many were run; tokens with the special ones.
        truncated: sentences cut at the model's longest input.
        no_token: sentences that the tokenizer made nothing of; counted in the state, in no sum.
        batches: forwards of the model.
        out_of_memory: how often a batch did not fit and was halved.
        token_budget: tokens of a batch at most, at the end of the run.
        backends: which backend ran each op.
        seconds: wall time, with that before an interruption.
        vectors: the sentence vectors of the layers that were kept, by layer number; with `shard`, of this process's
            shards alone.
        part: the sums by shard, which those of other processes can be merged with.
    """

    state: ConeState
    layer_names: tuple[str, ...]
    final_norm: bool
    sentences: int
    tokens: int
    truncated: int
    no_token: int
    batches: int
    out_of_memory: int
    token_budget: int
    backends: dict[str, str]
    seconds: float
    vectors: dict[int, SentenceVectors]
    part: PartialRun

    @classmethod
    def of(cls, part: PartialRun, state: ConeState, vectors: dict[int, SentenceVectors] | None = None) -> Run:
        """The run that a part tells of, whose sums are `state`."""
        counts: dict[str, Any] = {name: count for name, count in part.counts.items() if name != "positions"}
        facts = {name: part.facts[name] for name in ("final_norm", "backends", "seconds")}
        names = tuple(part.facts["layer_names"])
        return cls(state=state, layer_names=names, vectors=vectors or {}, part=part, **facts, **counts)


def run(
    loaded: LoadedModel,
    sentences: Iterable[str],
    *,
    token_budget: int | Literal["auto"] | None = None,
    batch_size: int | None = None,
    packed: bool = False,
    window: int = WINDOW,
    second_moment: bool = False,
    unit_second_moment: bool = False,
    before_final_norm: bool = False,
    poolings: str | Sequence[str] = (),
    keep_vectors: Sequence[int] = (),
    vectors_beside: str | os.PathLike[str] | None = None,
    strict: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    shard: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Runs every sentence once and returns the state of all layers at both levels.

    The corpus is cut into shards of `window` sentences. A shard is tokenized at once and cut into batches of one exact
    length, longest first, so that no batch carries padding. Each gives a state of its own, and the states merge along
    a fixed tree (`ShardTree`): the result is bitwise the same however many processes ran the shards and however often
    they were interrupted. The sums do not depend on the number of threads, but on a CPU the model's own forward does
    in its last bits (matrix products of few rows), so processes whose parts are to be merged need equal `threads`.
    Where a batch does not fit into memory, its shard starts again from nothing with a smaller budget, and no sentence
    counts twice; the last bits then depend on where that happened.

    Args:
        loaded: what `load_model` returns.
        sentences: a `Corpus`, or any iterable of strings; the index of a sentence decides its jackknife group.
        token_budget: tokens of a batch at most; None takes 4096 on a CPU and 65536 on a GPU; "auto" tries on the first
            sentences, and what it finds, so the last bits too, depends on the clock. A sentence longer than that is a
            batch of its own.
        batch_size: sentences of a batch at most; None leaves that to the budget.
        packed: fill batches up to the budget with sentences of any length, one after the other in one row; needs a
            model with flash attention, which the first sentences test.
        window: sentences of a shard, which are tokenized and grouped by length together.
        second_moment, unit_second_moment, before_final_norm, poolings, strict, backend: as in `ConeProbe`.
        keep_vectors: layers whose sentence vectors are kept in a temporary file; -1 is the last one.
        vectors_beside: write them to files that stay, those of layer 3 to FILE.layer-3, of which `part` tells what is
            in them; a checkpoint has them beside itself.
        threads: of the forward on a CPU; None leaves torch's number.
        shard: "i/n": run the shards of process i of n alone, i from 0, and only read the others.
        checkpoint: a file that the run so far is written to now and then, and at a KeyboardInterrupt.
        checkpoint_every: seconds between two checkpoints at least, None is 300; 0 writes one after every shard.
        resume: go on from the checkpoint, where there is one.
        progress: called after every batch.

    Raises:
        ValueError: an option is below 1, or there is no sentence; the checkpoint is of another model, corpus or option;
            the model cannot take packed sentences.
        FileExistsError: there is a checkpoint and `resume` is False.
        StateFileError: no checkpoint is whole.
        OSError: a checkpoint cannot be written.
        RuntimeError: one sentence alone does not fit into memory, or the model cannot be probed.
        Interrupted: in place of KeyboardInterrupt, once the checkpoint has been written.

    Example:
        >>> result = run(load_model("sentence-transformers/all-MiniLM-L6-v2"), Corpus("snli_dev.jsonl", limit=300))
        >>> metrics.anisotropy(result.state.sentence)
    """
    budget = TOKEN_BUDGET[loaded.device.type] if token_budget is None else token_budget
    least_one = {"token_budget": budget, "batch_size": batch_size, "window": window, "threads": threads}
    for name, value in least_one.items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}: got {value}; it must be at least 1")
    process, processes = parsed_shard(shard or "0/1")
    if budget == "auto" and processes > 1:
        raise ValueError("token_budget: got 'auto' for one of several processes, of which each would find its own")
    if resume and not checkpoint:
        raise ValueError("resume: got True without a checkpoint")
    if packed:
        refuse_unpackable(loaded)
    names = pooling_names(poolings)
    keeper = VectorKeeper(keep_vectors, checkpoint or vectors_beside)

    def keep(layer: int, sentence_ids: torch.Tensor, pooled: torch.Tensor) -> None:
        keeper.take(layer, len(probe.layer_names), sentence_ids, pooled)

    kept: dict[str, Any] = {
        "second_moment": second_moment,
        "unit_second_moment": unit_second_moment,
        "before_final_norm": before_final_norm,
        "poolings": names,
        "strict": strict,
        "backend": backend,
    }
    probe = ConeProbe(loaded.model, **kept, on_pooled=keep if keep_vectors else None)
    options = {**kept, "token_budget": budget, "batch_size": batch_size, "packed": packed, "shard_size": window}
    if loaded.device.type == "cpu":
        options["threads"] = threads or torch.get_num_threads()
    if keep_vectors:
        options["keep_vectors"] = list(keep_vectors)
    part = PartialRun.begin(_identity(loaded, sentences, options), shard or "0/1", window)
    file = Checkpoint(checkpoint, keeper, every=checkpoint_every, resume=resume) if checkpoint else None
    if file and resume:
        part = file.latest(part, loaded.device)
    done = part.sentences
    position = CorpusPosition(done, part.corpus_sha256, part.ended)
    clock = _Clock(part, probe, processes)

    def runs_here(number: int, end: int) -> bool:
        return owner(number, processes) == process and end > done

    def on_batch() -> None:
        if progress is not None:
            progress(clock.progress(runner, _expected(sentences)))

    counts = Counts(**part.counts) if part.counts else Counts(0 if budget == "auto" else budget)
    runner = ShardRunner(loaded, probe, counts, needs_special(names), batch_size, packed, keeper, on_batch)
    runner.backends.update(part.facts.get("backends", {}))
    first, empty = "", None
    try:
        shards = encoded_shards(sentences, window, runner.encode, runs_here)
        with probe, cpu_threads(threads), closing(shards):
            for current in shards:
                first = first or current.texts[0]
                position.pass_over(current.texts)
                if position.resuming:
                    continue
                tree = part.tree
                if owner(current.number, processes) == process:
                    state = runner.run(current.first_id, current.encoded)
                    state.info |= _info(loaded)
                    tree = tree.add(current.number, state)
                part = replace(
                    part,
                    tree=tree,
                    sentences=position.sentences,
                    corpus_sha256=position.sha256,
                    counts=runner.counts.to_dict(),
                    facts={"backends": dict(runner.backends), "seconds": clock.seconds(), **keeper.facts()},
                )
                if file:
                    file.shard_done(part, _expected(sentences))
            position.end()
            if not runner.n_shards:
                # No shard fell to this process, or none was left; one sentence shows what the layers are.
                empty = runner.empty_state(first)
                empty.info |= _info(loaded)
        part = replace(part, ended=True, facts={**part.facts, **_facts(loaded, sentences, probe)})
        if file:
            file.save(part)
    except KeyboardInterrupt:
        if file is None:
            raise
        raise file.interrupted(part) from None
    if processes == 1:
        return Run.of(part, part.close(), keeper.vectors)
    return Run.of(part, empty if empty and not part.tree.nodes else part.tree.folded(), keeper.vectors)


class _Clock:
    """The progress of a run, and its time with that before an interruption."""

    def __init__(self, before: PartialRun, probe: ConeProbe, processes: int) -> None:
        self._started = time.perf_counter()
        self._before, self._probe, self._processes = before, probe, processes

    def seconds(self) -> float:
        """Wall time of the run, with that before an interruption."""
        return float(self._before.facts.get("seconds", 0.0)) + time.perf_counter() - self._started

    def progress(self, runner: ShardRunner, expected: int | None) -> Progress:
        """How far this process is; of a corpus for several it expects its share."""
        done, under_way, before = runner.counts, runner.under_way, self._before.counts
        tokens, positions = done.tokens + under_way.tokens, done.positions + under_way.positions
        elapsed = time.perf_counter() - self._started
        return Progress(
            sentences=done.sentences + under_way.sentences,
            tokens=tokens,
            expected=None if expected is None else round(expected / self._processes),
            elapsed=elapsed,
            padding=1 - tokens / positions,
            statistics=self._probe.seconds / elapsed,
            resumed_sentences=before.get("sentences", 0),
            resumed_tokens=before.get("tokens", 0),
        )


def _info(loaded: LoadedModel) -> dict[str, Any]:
    """What a state says of its model, wherever its files are: two states of one model agree in it."""
    keys = ("architecture", "model_type", "n_layers", "hidden_size", "dtype", "weights_sha256")
    return {"model": {key: loaded.info[key] for key in keys}, "max_length": loaded.max_length}


def _identity(loaded: LoadedModel, sentences: Iterable[str], options: dict[str, Any]) -> dict[str, Any]:
    """All that decides the bits of a run but the sentences themselves, as flat JSON."""
    model = {**_info(loaded)["model"], "max_length": loaded.max_length}
    model |= {key: loaded.info[key] for key in ("attention", "compiled")}
    settings = {name: getattr(sentences, name, None) for name in _CORPUS_SETTINGS}
    corpus = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    chosen = {**options, "poolings": list(options["poolings"]), "device": loaded.device.type}
    groups = {"model": model, "corpus": corpus, "options": chosen}
    return {f"{group}.{name}": value for group, found in groups.items() for name, value in found.items()}


def _facts(loaded: LoadedModel, sentences: Iterable[str], probe: ConeProbe) -> dict[str, Any]:
    """What describes a finished run beside its sums."""
    return {
        "layer_names": list(probe.layer_names),
        "final_norm": probe.final_norm,
        "device": str(loaded.device),
        "model": loaded.info,
        "corpus": sentences.summary.to_dict() if isinstance(sentences, Corpus) else None,
    }


def _expected(sentences: Iterable[str]) -> int | None:
    """How many sentences there are, where that can be judged."""
    if isinstance(sentences, Corpus):
        return sentences.expected_sentences()
    return len(sentences) if isinstance(sentences, Sized) else None
