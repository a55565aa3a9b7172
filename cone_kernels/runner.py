"""Runs a model over sentences and gathers the state, in batches of one exact length, halved where memory is short."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from cone_kernels import backends
from cone_kernels.corpora import Corpus
from cone_kernels.models import LoadedModel
from cone_kernels.moments import ConeState
from cone_kernels.poolings import pooling_names
from cone_kernels.probe import ConeProbe
from cone_kernels.progress import Progress
from cone_kernels.sentence_vectors import SentenceVectors, VectorKeeper

# On a CPU throughput is level from 1,000 to 16,000 tokens (MiniLM, two cores); a GPU wants more at once.
TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}
WINDOW = 8192

_PLAIN: dict[str, Any] = {"padding": False, "verbose": False}


@dataclass(frozen=True, eq=False)
class Run:
    """What a run over a corpus gathered.

    Attributes:
        state: the sums of every layer at both levels.
        layer_names: what each layer is, by module name.
        final_norm: whether the last layer is taken after a final norm.
        sentences, tokens: how many were run; tokens with the special ones.
        truncated: sentences cut at the model's longest input.
        no_token: sentences that the tokenizer made nothing of; counted in the state, in no sum.
        batches: forwards of the model.
        out_of_memory: how often a batch did not fit and was halved.
        token_budget: tokens of a batch at most, at the end of the run.
        backends: which backend ran each op.
        seconds: wall time.
        vectors: the sentence vectors of the layers that were kept, by layer number.
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


def run(
    loaded: LoadedModel,
    sentences: Iterable[str],
    *,
    token_budget: int | None = None,
    batch_size: int | None = None,
    window: int = WINDOW,
    second_moment: bool = False,
    unit_second_moment: bool = False,
    before_final_norm: bool = False,
    poolings: str | Sequence[str] = (),
    keep_vectors: Sequence[int] = (),
    strict: bool = False,
    backend: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Runs every sentence once and returns the state of all layers at both levels.

    A window of sentences is tokenized at once and cut into batches of one exact length, longest first, so that no
    batch carries padding. Each window gives a state of its own, and the states are merged in order: where a batch does
    not fit into memory, its window starts again from nothing with a smaller budget, and no sentence counts twice.

    Args:
        loaded: what `load_model` returns.
        sentences: a `Corpus`, or any iterable of strings; the index of a sentence decides its jackknife group.
        token_budget: tokens of a batch at most; None takes 4096 on a CPU and 65536 on a GPU. A sentence longer than
            that is a batch of its own.
        batch_size: sentences of a batch at most; None leaves that to the budget.
        window: sentences that are tokenized and grouped by length together.
        second_moment, unit_second_moment, before_final_norm, poolings, strict, backend: as in `ConeProbe`.
        keep_vectors: layers whose sentence vectors are kept in a temporary file; -1 is the last one.
        progress: called after every batch.

    Raises:
        ValueError: an option is below 1, or there is no sentence.
        RuntimeError: one sentence alone does not fit into memory, or the model cannot be probed.

    Example:
        >>> result = run(load_model("sentence-transformers/all-MiniLM-L6-v2"), Corpus("snli_dev.jsonl", limit=300))
        >>> metrics.anisotropy(result.state.sentence)
    """
    for name, value in {"token_budget": token_budget, "batch_size": batch_size, "window": window}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}; it must be at least 1")
    started = time.perf_counter()
    tally = _Tally(token_budget or TOKEN_BUDGET[loaded.device.type], batch_size, started)
    state: ConeState | None = None
    ran: dict[str, str] = {}
    names = pooling_names(poolings)
    keeper = VectorKeeper(keep_vectors)

    def keep(layer: int, sentence_ids: torch.Tensor, pooled: torch.Tensor) -> None:
        keeper.take(layer, len(probe.layer_names), sentence_ids, pooled)

    probe = ConeProbe(
        loaded.model,
        second_moment=second_moment,
        unit_second_moment=unit_second_moment,
        before_final_norm=before_final_norm,
        poolings=names,
        strict=strict,
        backend=backend,
        on_pooled=keep if keep_vectors else None,
    )
    stream = iter(sentences)
    first = list(itertools.islice(stream, window))
    if not first:
        raise ValueError("corpus: there is no sentence to run")
    with probe:
        for texts in itertools.chain([first], _windows(stream, window)):
            encoded = _Encoded.of(loaded, texts, special_tokens="mean_without_special" in names)
            with _recorded(ran):
                report = partial(_report, progress, tally, sentences, probe)
                gathered = _run_window(loaded, probe, encoded, tally, keeper, report)
            state = gathered if state is None else state.merge(gathered)
            keeper.end_window()
            tally.close_window(encoded)
    assert state is not None
    state.info |= {"model": _identity(loaded), "max_length": loaded.max_length}
    return Run(
        state=state,
        layer_names=probe.layer_names,
        final_norm=probe.final_norm,
        sentences=tally.sentences,
        tokens=tally.tokens,
        truncated=tally.truncated,
        no_token=tally.no_token,
        batches=tally.batches,
        out_of_memory=tally.out_of_memory,
        token_budget=tally.token_budget,
        backends=ran,
        vectors=keeper.vectors,
        seconds=time.perf_counter() - started,
    )


def length_batches(lengths: Sequence[int], token_budget: int, batch_size: int | None = None) -> Iterator[list[int]]:
    """Cuts sentences into batches of one exact length within the budget: lists of indices, longest sentences first.

    Example:
        >>> list(length_batches([3, 5, 3, 3], token_budget=6))
        [[1], [0, 2], [3]]
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for length, group in itertools.groupby(order, key=lambda index: lengths[index]):
        size = max(1, token_budget // max(1, length))
        size = size if batch_size is None else min(size, batch_size)
        while batch := list(itertools.islice(group, size)):
            yield batch


def tokenized(loaded: LoadedModel, texts: list[str], **options: Any) -> Any:
    """What the tokenizer makes of the texts in a run: lists of token ids without padding, cut at the longest input.

    Args:
        loaded: the model with its tokenizer.
        texts: sentences.
        options: further keywords of the tokenizer.
    """
    limit = loaded.max_length
    cut: dict[str, Any] = {"truncation": False} if limit is None else {"truncation": True, "max_length": limit}
    return loaded.tokenizer(texts, **_PLAIN, **cut, **options)


@dataclass
class _Tally:
    """The counts of a run, with those of the window under way apart: it may have to start again."""

    token_budget: int
    batch_size: int | None
    started: float
    sentences: int = 0
    tokens: int = 0
    truncated: int = 0
    no_token: int = 0
    batches: int = 0
    out_of_memory: int = 0
    positions: int = 0  # of all batches: tokens and padding
    window_sentences: int = 0
    window_tokens: int = 0
    window_positions: int = 0

    def close_window(self, encoded: _Encoded) -> None:
        self.sentences += self.window_sentences
        self.tokens += self.window_tokens
        self.truncated += encoded.truncated
        self.no_token += sum(length == 0 for length in encoded.lengths)
        self.positions += self.window_positions
        self.window_sentences = self.window_tokens = self.window_positions = 0


@dataclass(frozen=True)
class _Encoded:
    """A window of tokenized sentences."""

    columns: dict[str, list[list[int]]]  # input name -> one list of integers a sentence
    lengths: list[int] = field(repr=False)
    special: list[list[int]] | None  # 1 = a token that the tokenizer added
    truncated: int

    @classmethod
    def of(cls, loaded: LoadedModel, texts: list[str], special_tokens: bool = False) -> _Encoded:
        """The texts as token ids, cut at the model's longest input and counted where they were."""
        limit = loaded.max_length
        found = tokenized(loaded, texts, return_special_tokens_mask=special_tokens)
        lengths = [len(ids) for ids in found["input_ids"]]
        # Whether a sentence that fills the limit was longer shows when it is tokenized whole.
        full = [texts[index] for index, length in enumerate(lengths) if length == limit]
        whole = loaded.tokenizer(full, truncation=False, **_PLAIN)["input_ids"] if full else []
        truncated = sum(limit is not None and len(ids) > limit for ids in whole)
        columns = {name: found[name] for name in loaded.input_names if name in found and name != "attention_mask"}
        return cls(columns, lengths, found["special_tokens_mask"] if special_tokens else None, truncated)

    def inputs(self, batch: list[int], loaded: LoadedModel) -> dict[str, torch.Tensor]:
        """The model's inputs for sentences of one length T, each (B, T)."""
        device = loaded.device
        rows = {name: torch.tensor([column[i] for i in batch]) for name, column in self.columns.items()}
        if self.lengths[batch[0]] == 0:
            # One token stands in for none: the model must be given something, and the probe's mask leaves it out.
            stand_in = loaded.tokenizer.pad_token_id or 0
            rows = {"input_ids": torch.full((len(batch), 1), stand_in)}
        if "attention_mask" in loaded.input_names:
            rows["attention_mask"] = torch.ones_like(rows["input_ids"])
        return {name: row.to(device) for name, row in rows.items()}


def _run_window(
    loaded: LoadedModel,
    probe: ConeProbe,
    encoded: _Encoded,
    tally: _Tally,
    keeper: VectorKeeper,
    report: Callable[[], None],
) -> ConeState:
    """The state of one window, started again with a smaller budget as often as memory runs out."""
    while True:
        probe.reset()
        keeper.begin_window(tally.sentences, len(encoded.lengths))
        tally.window_sentences = tally.window_tokens = tally.window_positions = 0
        failed: list[int] | None = None
        for batch in length_batches(encoded.lengths, tally.token_budget, tally.batch_size):
            try:
                _forward(loaded, probe, encoded, batch, tally.sentences)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    length, index = encoded.lengths[batch[0]], tally.sentences + batch[0]
                    raise RuntimeError(f"out of memory on sentence {index} alone ({length} tokens)") from error
                failed = batch
            # Outside the handler the error no longer keeps the failed batch's tensors alive.
            if failed is not None:
                break
            tally.batches += 1
            tally.window_sentences += len(batch)
            tally.window_tokens += len(batch) * encoded.lengths[batch[0]]
            tally.window_positions += len(batch) * max(1, encoded.lengths[batch[0]])
            report()
        if failed is None:
            return probe.state
        tally.out_of_memory += 1
        tally.token_budget = len(failed) // 2 * encoded.lengths[failed[0]]
        if loaded.device.type == "cuda":
            torch.cuda.empty_cache()


def _forward(loaded: LoadedModel, probe: ConeProbe, encoded: _Encoded, batch: list[int], offset: int) -> None:
    inputs = encoded.inputs(batch, loaded)
    length = encoded.lengths[batch[0]]
    mask = torch.zeros_like(inputs["input_ids"]) if length == 0 else torch.ones_like(inputs["input_ids"])
    special = None
    if encoded.special is not None:
        special = torch.tensor([encoded.special[i] for i in batch]) if length else torch.zeros_like(mask)
    probe.next_batch(torch.tensor(batch) + offset, mask=mask, special=special)
    with torch.inference_mode():
        loaded.model(**inputs)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _identity(loaded: LoadedModel) -> dict[str, Any]:
    """What tells one model from another wherever its files are: two states of one model agree in it."""
    keys = ("architecture", "model_type", "n_layers", "hidden_size", "dtype", "weights_sha256")
    return {key: loaded.info[key] for key in keys}


@contextmanager
def _recorded(ran: dict[str, str]) -> Iterator[None]:
    with backends.record() as runs:
        yield
    ran.update((op, str(chosen)) for op, chosen in runs)


def _windows(stream: Iterator[str], size: int) -> Iterator[list[str]]:
    while texts := list(itertools.islice(stream, size)):
        yield texts


def _report(
    progress: Callable[[Progress], None] | None, tally: _Tally, sentences: Iterable[str], probe: ConeProbe
) -> None:
    if progress is None:
        return
    expected: int | None = None
    if isinstance(sentences, Corpus):
        expected = sentences.expected_sentences()
    elif isinstance(sentences, Sized):
        expected = len(sentences)
    tokens, positions = tally.tokens + tally.window_tokens, tally.positions + tally.window_positions
    elapsed = time.perf_counter() - tally.started
    progress(
        Progress(
            sentences=tally.sentences + tally.window_sentences,
            tokens=tokens,
            expected=expected,
            elapsed=elapsed,
            padding=1 - tokens / positions,
            statistics=probe.seconds / elapsed,
        )
    )
