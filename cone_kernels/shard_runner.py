"""Runs a model over one shard of a corpus, in batches of one exact length, halved where memory is short."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch

from cone_kernels import backends
from cone_kernels.encoded_window import EncodedWindow
from cone_kernels.models import LoadedModel
from cone_kernels.moments import ConeState
from cone_kernels.probe import ConeProbe
from cone_kernels.vector_keeper import VectorKeeper


@dataclass
class Counts:
    """What a run has counted; `token_budget` is what out-of-memory errors have left of it."""

    token_budget: int
    sentences: int = 0
    tokens: int = 0
    truncated: int = 0
    no_token: int = 0
    batches: int = 0
    out_of_memory: int = 0
    positions: int = 0  # of all batches: tokens and padding

    def to_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


@dataclass
class ShardRunner:
    """Runs shards one after the other.

    Attributes:
        loaded, probe: the model, and the probe on it, which is reset for every shard.
        counts: of the shards that are done, and the batches of the one under way.
        special_tokens: whether the probe must know which tokens the tokenizer adds.
        batch_size: sentences of a batch at most.
        keeper: takes the sentence vectors.
        on_batch: called after every batch.
        under_way: sentences, tokens and positions of the shard that is not done; it may have to start again.
        backends: which backend ran each op.
        n_shards: how many have been run.
    """

    loaded: LoadedModel
    probe: ConeProbe
    counts: Counts
    special_tokens: bool
    batch_size: int | None
    keeper: VectorKeeper
    on_batch: Callable[[], None]
    under_way: Counts = field(default_factory=lambda: Counts(0))
    backends: dict[str, str] = field(default_factory=dict)
    n_shards: int = 0

    def run(self, first_id: int, texts: list[str]) -> ConeState:
        """The state of a shard, started again with a smaller budget as often as memory runs out.

        Args:
            first_id: the index of its first sentence in the corpus.
            texts: its sentences.

        Raises:
            RuntimeError: one sentence alone does not fit into memory.
        """
        encoded = EncodedWindow.of(self.loaded, texts, special_tokens=self.special_tokens)
        with self._recorded():
            while (failed := self._attempt(first_id, encoded)) is not None:
                self.counts.out_of_memory += 1
                self.counts.token_budget = len(failed) // 2 * encoded.lengths[failed[0]]
                if self.loaded.device.type == "cuda":
                    torch.cuda.empty_cache()
        self.n_shards += 1
        self.keeper.end_window()
        for name in ("sentences", "tokens", "positions"):
            setattr(self.counts, name, getattr(self.counts, name) + getattr(self.under_way, name))
        self.under_way = Counts(0)
        self.counts.truncated += encoded.truncated
        self.counts.no_token += sum(length == 0 for length in encoded.lengths)
        return self.probe.state

    def empty_state(self, text: str) -> ConeState:
        """The state of no sentence, laid out as one forward of `text` shows."""
        self.probe.reset()
        self.keeper.begin_window(0, 1)
        _forward(self.loaded, self.probe, EncodedWindow.of(self.loaded, [text], self.special_tokens), [0], 0)
        state = self.probe.state.emptied()
        self.probe.reset()
        self.keeper.begin_window(0, 0)
        return state

    def _attempt(self, first_id: int, encoded: EncodedWindow) -> list[int] | None:
        """Runs all batches from nothing; returns the one that did not fit into memory, or None."""
        self.probe.reset()
        self.keeper.begin_window(first_id, len(encoded.lengths))
        self.under_way = Counts(0)
        for batch in length_batches(encoded.lengths, self.counts.token_budget, self.batch_size):
            length = encoded.lengths[batch[0]]
            failed = False
            try:
                _forward(self.loaded, self.probe, encoded, batch, first_id)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    what = f"out of memory on sentence {first_id + batch[0]} alone ({length} tokens)"
                    raise RuntimeError(what) from error
                failed = True
            # Outside the handler the error no longer keeps the failed batch's tensors alive.
            if failed:
                return batch
            self.counts.batches += 1
            self.under_way.sentences += len(batch)
            self.under_way.tokens += len(batch) * length
            self.under_way.positions += len(batch) * max(1, length)
            self.on_batch()
        return None

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        with backends.record() as runs:
            yield
        self.backends.update((op, str(chosen)) for op, chosen in runs)


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


def _forward(loaded: LoadedModel, probe: ConeProbe, encoded: EncodedWindow, batch: list[int], offset: int) -> None:
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
