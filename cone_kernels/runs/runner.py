"""Runs a model over a corpus in this process, shard by shard, and gathers the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sized
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cone_kernels.corpora import Corpus
from cone_kernels.devices import cpu_threads
from cone_kernels.models.loaded import LoadedModel, evaluation
from cone_kernels.models.names import measured_layer
from cone_kernels.names import OUTPUT, Layer, pooling_names
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.runs.corpus_position import CorpusPosition
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.encoded_shards import encoded_shards
from cone_kernels.runs.growing_part import GrowingPart
from cone_kernels.runs.image_shard import ImageShard
from cone_kernels.runs.mixing import refuse_unpackable
from cone_kernels.runs.options import RunOptions
from cone_kernels.runs.part import RunPart
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.sentence_vectors import SentenceVectors
from cone_kernels.runs.shard_runner import Counts, ShardRunner
from cone_kernels.runs.vector_keeper import VectorKeeper
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.poolings import needs_special

# On a CPU throughput is level from 1,000 to 16,000 tokens (MiniLM, two cores); a GPU wants more at once.
TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}
# Sorted by length, 8192 sentences of SNLI make batches of 2,151 tokens without padding, enough for a CPU; 65,536 make
# batches of 54,608 tokens with 11 % of padding in 11 shapes, for a GPU.
SHARD_SIZE = {"cpu": 8192, "cuda": 65536}
# The pixels of a shard are in memory, and those of the next: 154 MB of 224 x 224 in float32.
SHARD_IMAGES = 256
# What a state says of its model beside what it says of every one.
_OWN_INFO = ("prompt", "output", "baseline", "gguf_file")

# What of a corpus's settings decides which sentences come after those that a checkpoint has seen.
_CORPUS_SETTINGS = (
    *("fields", "limit", "sample", "shuffle", "seed", "group_by", "dedup"),
    *("delimiter", "encoding", "errors", "malformed"),
)


@dataclass(frozen=True, eq=False)
class Run:
    """What a run over a corpus gathered.

    Attributes:
        state: the sums of every layer at both levels; with `shard`, of this process's shards alone.
        layer_names: what each layer is, by module name.
        final_norm: whether the last layer is taken after a final norm.
        sentences, tokens: how many were run; tokens with the special ones.
        truncated: sentences cut at the model's longest input.
        unknown_tokens: tokens that stand for a word that the tokenizer does not know.
        no_token: sentences that the tokenizer made nothing of; counted in the state, in no sum.
        batches: forwards of the model.
        out_of_memory: how often a batch did not fit and was halved.
        token_budget: tokens of a batch at most, at the end of the run.
        backends: which backend ran each op.
        seconds: wall time, with that before an interruption.
        vectors: the sentence vectors of the layers that were kept, by layer; with `shard`, of this process's shards
            alone.
        part: the sums by shard, which those of other processes can be merged with.
    """

    state: ConeState
    layer_names: tuple[str, ...]
    final_norm: bool
    sentences: int
    tokens: int
    truncated: int
    unknown_tokens: int
    no_token: int
    batches: int
    out_of_memory: int
    token_budget: int
    backends: dict[str, str]
    seconds: float
    vectors: dict[Layer, SentenceVectors]
    part: RunPart

    @classmethod
    def of(cls, part: RunPart, state: ConeState, vectors: dict[Layer, SentenceVectors] | None = None) -> Run:
        """The run that a finished part describes.

        Args:
            part: of the run.
            state: the sums of the part as one state.
            vectors: the sentence vectors that were kept, by layer.
        """
        counts: dict[str, Any] = {name: count for name, count in part.counts.items() if name != "positions"}
        facts = {name: part.facts[name] for name in ("final_norm", "backends", "seconds")}
        names = tuple(part.facts["layer_names"])
        return cls(state=state, layer_names=names, vectors=vectors or {}, part=part, **facts, **counts)


def run(loaded: LoadedModel, sentences: Iterable[str], **options: Any) -> Run:
    """Runs every sentence once and returns the state of all layers at both levels.

    The corpus is cut into shards of `shard_size` sentences. A shard is tokenized at once and cut into batches, longest
    sentences first: on a CPU of one exact length, so that no batch carries padding; on a GPU full ones of few shapes,
    as it plans its attention anew for each shape, unless padding changes what the model makes of a sentence. Each shard
    gives a state of its own, and the states merge along a fixed tree (`ShardTree`): the result is bitwise the same
    however many processes ran the shards and however often they were interrupted. The sums do not depend on the number
    of threads, but on a CPU the model's own forward does in its last bits (matrix products of few rows), so processes
    whose parts are to be merged need equal `threads`. Where a batch does not fit into memory, its shard starts again
    from nothing with a smaller budget, and no sentence counts twice; the last bits then depend on where that happened.

    Args:
        loaded: what `load_model` returns.
        sentences: a `Corpus`, or any iterable of strings; the index of a sentence decides its jackknife group.
        options: the fields of `RunOptions`.

    Raises:
        TypeError: an option is unknown.
        ValueError: as `RunOptions`; there is no sentence; the checkpoint is of another model, corpus or option; the
            model cannot take packed sentences.
        FileExistsError: there is a checkpoint and `resume` is False.
        FileNotFoundError: there is no folder for the checkpoint.
        StateFileError: there are checkpoints, and none of them is whole.
        OSError: a checkpoint cannot be written.
        RuntimeError: one sentence alone does not fit into memory, or the model cannot be probed.
        Interrupted: in place of KeyboardInterrupt, once the checkpoint has been written.

    Examples:
        >>> result = run(load_model("sentence-transformers/all-MiniLM-L6-v2"), Corpus("snli_dev.jsonl", limit=300))
        >>> metrics.anisotropy(result.state.sentence)
    """
    corpus_pass = _CorpusPass(loaded, sentences, RunOptions(**options))
    with corpus_pass.growing.checkpointed():
        corpus_pass.pass_over()
        return corpus_pass.finish()


class _CorpusPass:
    """One pass over a corpus: what it has gathered so far, and what runs the next shard.

    Attributes:
        growing: the shards that are done, and their checkpoint.
    """

    def __init__(self, loaded: LoadedModel, sentences: Iterable[str], options: RunOptions) -> None:
        """Begins: checks that the model can be run so, and finds where an interrupted run stopped."""
        if options.packed:
            refuse_unpackable(loaded)
        self._loaded, self._sentences, self._threads = loaded, sentences, options.threads
        self._keeper = keeper = VectorKeeper(options.keep_vectors, options.checkpoint or options.vectors_prefix)

        def keep(layer: int, sentence_ids: Tensor, pooled: Tensor) -> None:
            keeper.take(layer, len(probe.layer_names), sentence_ids, pooled)

        gathered = _gathered(options)
        layers = [measured_layer(layer, loaded.info) for layer in options.keep_vectors]
        of_layers = keep if any(layer != OUTPUT for layer in layers) else None
        on_hidden = None if options.token_sums is None else options.token_sums.take
        self._probe = probe = ConeProbe(loaded.model, **gathered, on_pooled=of_layers, on_hidden=on_hidden)
        budget = TOKEN_BUDGET[loaded.device.type] if options.token_budget is None else options.token_budget
        self.growing = self._begun(options, gathered, budget)
        before = self.growing.part
        self._position = CorpusPosition(before.sentences, before.corpus_sha256, before.ended)
        self._clock = _Clock(before, probe, sentences, options.process[1], options.progress)
        self._runner = ShardRunner(
            loaded,
            probe,
            Counts(**before.counts) if before.counts else Counts(0 if budget == "auto" else budget),
            special_tokens=needs_special([gathered["pooling"], *gathered["poolings"]])
            or options.token_sums is not None,
            batch_size=options.batch_size,
            packed=options.packed,
            keeper=keeper,
            on_batch=self._clock.report,
            token_sums=options.token_sums,
        )
        self._runner.backends.update(before.facts.get("backends", {}))
        self._empty: ConeState | None = None

    def _begun(self, options: RunOptions, gathered: dict[str, Any], budget: int | Literal["auto"]) -> GrowingPart:
        """The part before its first sentence, or that of the checkpoint that the run goes on from."""
        usual = SHARD_SIZE[self._loaded.device.type] if self._loaded.image_processor is None else SHARD_IMAGES
        shard_size = usual if options.shard_size is None else options.shard_size
        asked = {**gathered, "token_budget": budget, "batch_size": options.batch_size, "packed": options.packed}
        identity = _identity(self._loaded, self._sentences, {**asked, "shard_size": shard_size}, options)
        return GrowingPart(
            RunPart.begin(identity, options.shard or "0/1", shard_size),
            checkpoint=options.checkpoint,
            every=options.checkpoint_every,
            resume=options.resume,
            keeper=self._keeper,
            device=self._loaded.device,
        )

    def pass_over(self) -> None:
        """Reads the corpus to its end, and runs the shards that fall to this process and are not done."""
        first, size = "", self.growing.part.shard_size
        sentences = self._sentences
        group = (lambda: sentences.group) if isinstance(sentences, Corpus) and sentences.group_by else None
        shards = encoded_shards(sentences, size, self._runner.encode, self.growing.runs_here, group)
        modules = (self._loaded.model, *(self._loaded.output.steps if self._loaded.output else ()))
        with evaluation(*modules), self._probe, cpu_threads(self._threads), closing(shards):
            for number, (texts, encoded) in enumerate(shards):
                first = first or texts[0]
                self._position.pass_over(texts)  # while the first shard is tokenized
                if not self._position.resuming:
                    self._take(number, None if encoded is None else encoded.result())
            self._position.end(_why_nothing(self._sentences))
            if not self._runner.n_shards:
                # No shard fell to this process, or none was left; one sentence shows what the layers are.
                self._empty = self._with_info(self._runner.empty_state(first))

    def finish(self) -> Run:
        """Writes the last checkpoint and makes one state of the shards."""
        described = {
            "layer_names": list(self._probe.layer_names),
            "final_norm": self._probe.final_norm,
            "device": str(self._loaded.device),
            "model": self._loaded.info,
            "corpus": self._sentences.summary.to_dict() if isinstance(self._sentences, Corpus) else None,
        }
        part = self.growing.end(**described)
        return Run.of(part, self.growing.state(self._empty), self._keeper.vectors)

    def _take(self, number: int, shard: EncodedShard | ImageShard | None) -> None:
        """Adds one more shard to the part: run here, or, where it is None, passed over for another process."""
        self.growing.take(
            number,
            None if shard is None else self._with_info(self._runner.run_shard(shard)),
            _expected_sentences(self._sentences),
            sentences=self._position.sentences,
            corpus_sha256=self._position.sha256,
            counts=self._runner.counts.to_dict(),
            facts={"backends": dict(self._runner.backends), "seconds": self._clock.seconds(), **self._keeper.facts()},
        )

    def _with_info(self, state: ConeState) -> ConeState:
        state.info |= _model_info(self._loaded)
        return state


class _Clock:
    """Times a run, and reports its progress after every batch.

    Args:
        before: the part of the run that was done before an interruption.
        probe: of the run.
        sentences: of the corpus.
        processes: how many share the corpus.
        progress: takes the reports; None where nothing does.
    """

    def __init__(
        self,
        before: RunPart,
        probe: ConeProbe,
        sentences: Iterable[str],
        processes: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._started = time.perf_counter()
        self._counts_before, self._seconds_before = before.counts, float(before.facts.get("seconds", 0.0))
        self._probe, self._sentences, self._processes, self._progress = probe, sentences, processes, progress

    def seconds(self) -> float:
        """Wall time of the run, with that before an interruption."""
        return self._seconds_before + time.perf_counter() - self._started

    def report(self, runner: ShardRunner) -> None:
        """Reports how far this process is; where several share the corpus, each expects an equal share of it."""
        if self._progress is None:
            return
        done, under_way = runner.counts, runner.under_way
        expected = _expected_sentences(self._sentences)
        tokens, positions = done.tokens + under_way.tokens, done.positions + under_way.positions
        elapsed = time.perf_counter() - self._started
        self._progress(
            Progress(
                sentences=done.sentences + under_way.sentences,
                tokens=tokens,
                expected=None if expected is None else round(expected / self._processes),
                elapsed=elapsed,
                padding=1 - tokens / positions,
                statistics=self._probe.seconds / elapsed,
                resumed_sentences=self._counts_before.get("sentences", 0),
                resumed_tokens=self._counts_before.get("tokens", 0),
            )
        )


def _gathered(options: RunOptions) -> dict[str, Any]:
    """The keywords of `ConeProbe`; all of them decide the bits of a run."""
    return {
        "second_moment": options.second_moment,
        "unit_second_moment": options.unit_second_moment,
        "before_final_norm": options.before_final_norm,
        "pooling": options.pooling,
        "poolings": pooling_names(options.poolings),
        "strict": options.strict,
        "backend": options.backend,
    }


def _model_info(loaded: LoadedModel) -> dict[str, Any]:
    """What a state says of its model, wherever its files are: two states of one model agree in it."""
    keys = ("architecture", "model_type", "n_layers", "hidden_size", "dtype", "weights_sha256")
    # A plain model has none of these, and its states merge with those of before there were such.
    own = {key: loaded.info[key] for key in _OWN_INFO if loaded.info.get(key) is not None}
    return {"model": {key: loaded.info[key] for key in keys} | own, "max_length": loaded.max_length}


def _identity(
    loaded: LoadedModel, sentences: Iterable[str], asked: dict[str, Any], options: RunOptions
) -> dict[str, Any]:
    """All that decides the bits of a run but the sentences themselves, as flat JSON."""
    model = {**_model_info(loaded)["model"], "max_length": loaded.max_length}
    model |= {key: loaded.info[key] for key in ("attention", "compiled")}
    settings = {name: getattr(sentences, name, None) for name in _CORPUS_SETTINGS}
    corpus = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    chosen = {**asked, "poolings": list(asked["poolings"])}
    if loaded.device.type == "cpu":
        chosen["threads"] = options.threads or torch.get_num_threads()
    if options.keep_vectors:
        chosen["keep_vectors"] = list(options.keep_vectors)
    chosen["device"] = loaded.device.type
    groups = {"model": model, "corpus": corpus, "options": chosen}
    return {f"{group}.{name}": value for group, found in groups.items() for name, value in found.items()}


def _why_nothing(sentences: Iterable[str]) -> str:
    """What a corpus has left out, with the first reasons, to follow an error."""
    if not isinstance(sentences, Corpus):
        return ""
    summary = sentences.summary
    dropped = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in summary.dropped.items() if count]
    return "; ".join([f": {', '.join(dropped)}" if dropped else "", *summary.examples[:3]])


def _expected_sentences(sentences: Iterable[str]) -> int | None:
    """How many sentences there will be, where that can be estimated."""
    if isinstance(sentences, Corpus):
        return sentences.expected_sentences()
    return len(sentences) if isinstance(sentences, Sized) else None
