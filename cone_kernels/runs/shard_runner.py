"""Runs a model over one shard of a corpus, in batches without padding, halved where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain

import torch

from cone_kernels import backends
from cone_kernels.models.loading import LoadedModel
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.runs.batches import length_batches, packed_batches
from cone_kernels.runs.encoded_shard import EncodedWindow
from cone_kernels.runs.packing import refuse_mixing
from cone_kernels.runs.token_budget import find_token_budget, is_out_of_memory
from cone_kernels.runs.vector_keeper import VectorKeeper
from cone_kernels.state.cone_state import ConeState


@dataclass
class Counts:
    """What a run has counted; `token_budget` is what out-of-memory errors have left of it, 0 before it is found."""

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
        packed: the sentences of a batch follow each other in one row, whatever their lengths.
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
    packed: bool
    keeper: VectorKeeper
    on_batch: Callable[[], None]
    under_way: Counts = field(default_factory=lambda: Counts(0))
    backends: dict[str, str] = field(default_factory=dict)
    n_shards: int = 0

    def encode(self, texts: list[str]) -> EncodedWindow:
        """The sentences of a shard as token ids, as `run` takes them."""
        return EncodedWindow.of(self.loaded, texts, special_tokens=self.special_tokens)

    def run(self, first_id: int, encoded: EncodedWindow) -> ConeState:
        """The state of a shard, started again with a smaller budget as often as memory runs out.

        Args:
            first_id: the index of its first sentence in the corpus.
            encoded: its sentences.

        Raises:
            RuntimeError: one sentence alone does not fit into memory.
        """
        if self.n_shards == 0:
            self._try_out(encoded)
        with self._recorded():
            while (failed := self._attempt(first_id, encoded)) is not None:
                self.counts.out_of_memory += 1
                self.counts.token_budget = max(1, sum(encoded.lengths[index] for index in failed) // 2)
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
        _forward(self.loaded, self.probe, self.encode([text]), [0], 0, packed=False)
        state = self.probe.state.emptied()
        self.probe.reset()
        self.keeper.begin_window(0, 0)
        return state

    def _try_out(self, encoded: EncodedWindow) -> None:
        """What is to be known before the first shard: whether packing works, and how large batches are to be."""
        self.probe.pause()
        if self.packed:
            refuse_mixing(self.loaded, encoded)
        if self.counts.token_budget == 0:
            self.counts.token_budget = find_token_budget(self.loaded, encoded)
        self.probe.resume()

    def _attempt(self, first_id: int, encoded: EncodedWindow) -> list[int] | None:
        """Runs all batches from nothing; returns the one that did not fit into memory, or None."""
        self.probe.reset()
        self.keeper.begin_window(first_id, len(encoded.lengths))
        self.under_way = Counts(0)
        batches = packed_batches if self.packed else length_batches
        for batch in batches(encoded.lengths, self.counts.token_budget, self.batch_size):
            tokens = sum(encoded.lengths[index] for index in batch)
            failed = False
            try:
                _forward(self.loaded, self.probe, encoded, batch, first_id, packed=self.packed)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    what = f"out of memory on sentence {first_id + batch[0]} alone ({tokens} tokens)"
                    raise RuntimeError(what) from error
                failed = True
            # Outside the handler the error no longer keeps the failed batch's tensors alive.
            if failed:
                return batch
            self.counts.batches += 1
            self.under_way.sentences += len(batch)
            self.under_way.tokens += tokens
            self.under_way.positions += tokens or len(batch)
            self.on_batch()
        return None

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        with backends.record() as runs:
            yield
        self.backends.update((op, str(chosen)) for op, chosen in runs)


def _forward(
    loaded: LoadedModel, probe: ConeProbe, encoded: EncodedWindow, batch: list[int], offset: int, packed: bool
) -> None:
    ids = torch.tensor(batch) + offset
    length = encoded.lengths[batch[0]]
    special = None if encoded.special is None else [encoded.special[index] for index in batch]
    if packed and length > 0:
        inputs = encoded.packed_inputs(batch, loaded)
        probe.next_batch(ids, special=None if special is None else torch.tensor([list(chain.from_iterable(special))]))
    else:
        inputs = encoded.padded_inputs(batch, loaded)
        # bool: a mask of integers would be looked at, and the host would wait for the device.
        mask = torch.full_like(inputs["input_ids"], length > 0, dtype=torch.bool)
        rows = None if special is None else torch.tensor(special) if length > 0 else torch.zeros_like(mask)
        probe.next_batch(ids, mask=mask, special=rows)
    with torch.inference_mode():
        loaded.model(**inputs)
