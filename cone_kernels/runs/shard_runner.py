"""Runs a model over one shard of a corpus, batch by batch, in halves where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cone_kernels import backends
from cone_kernels.devices import to_device
from cone_kernels.models.loaded import LoadedModel
from cone_kernels.models.output import Output
from cone_kernels.names import OUTPUT
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.runs.batches import length_batches, packed_batches, padded_batches, padded_length
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.image_shard import ImageShard
from cone_kernels.runs.mixing import heeds_padding, refuse_mixing
from cone_kernels.runs.token_budget import find_token_budget, is_out_of_memory
from cone_kernels.runs.token_sums import TokenSums
from cone_kernels.runs.vector_keeper import VectorKeeper
from cone_kernels.state.cone_state import ConeState


@dataclass
class Counts:
    """What a run has counted.

    `token_budget` is what batches are cut by now: out-of-memory errors make it smaller, and 0 stands for one that has
    still to be found.
    """

    token_budget: int
    sentences: int = 0
    tokens: int = 0
    truncated: int = 0
    unknown_tokens: int = 0
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
        counts: of the shards that are done; its batches are also those of the shard under way.
        special_tokens: whether the probe must know which tokens the tokenizer adds.
        batch_size: sentences of a batch at most.
        packed: the sentences of a batch follow each other in one row, whatever their lengths.
        padded: batches are full and of few shapes, their sentences padded; else each is of one exact length. Set by
            the first shard: a GPU plans its attention anew for every shape, which a CPU does not.
        keeper: takes the sentence vectors.
        token_sums: gathers the tokens by class; None where that is not asked for.
        on_batch: called with this object after every batch.
        under_way: sentences, tokens and positions of the shard that is not done; it may have to start again.
        backends: which backend ran each op.
        n_shards: how many shards this object has run.
    """

    loaded: LoadedModel
    probe: ConeProbe
    counts: Counts
    special_tokens: bool
    batch_size: int | None
    packed: bool
    keeper: VectorKeeper
    on_batch: Callable[[ShardRunner], None]
    token_sums: TokenSums | None = None
    padded: bool = False
    under_way: Counts = field(default_factory=lambda: Counts(0))
    backends: dict[str, str] = field(default_factory=dict)
    n_shards: int = 0

    def encode(self, first_id: int, texts: list[str], groups: list[int] | None = None) -> EncodedShard | ImageShard:
        """The sentences of a shard as token ids, or the images as pixels, as `run_shard` takes them."""
        if self.loaded.image_processor is not None:
            return ImageShard.of(self.loaded, texts, first_id, groups=groups)
        return EncodedShard.of(self.loaded, texts, first_id, special_tokens=self.special_tokens, groups=groups)

    def run_shard(self, shard: EncodedShard | ImageShard) -> ConeState:
        """The state of a shard, started again with a smaller budget as often as memory runs out.

        Raises:
            RuntimeError: one sentence alone does not fit into memory.
        """
        if self.n_shards == 0:
            self._prepare(shard)
        with self._backends_noted():
            while (failed := self._attempt(shard)) is not None:
                self.counts.out_of_memory += 1
                self.counts.token_budget = max(1, self._positions(shard, failed) // 2)
                if self.loaded.device.type == "cuda":
                    torch.cuda.empty_cache()
        self.n_shards += 1
        self.keeper.end_shard()
        if self.token_sums is not None:
            self.token_sums.end_shard()
        self.counts.sentences += self.under_way.sentences
        self.counts.tokens += self.under_way.tokens
        self.counts.positions += self.under_way.positions
        self.under_way = Counts(0)
        self.counts.truncated += shard.truncated
        self.counts.unknown_tokens += shard.unknown
        self.counts.no_token += sum(length == 0 for length in shard.lengths)
        return self.probe.state

    def empty_state(self, text: str) -> ConeState:
        """The state of no sentence, with the layers and the width that a forward of `text` shows."""
        self.probe.reset()
        self.keeper.begin_shard(0, 1)
        self._forward(self.encode(0, [text]), [0], packed=False)
        state = self.probe.state.emptied()
        self.probe.reset()
        self.keeper.begin_shard(0, 0)
        return state

    def _prepare(self, shard: EncodedShard | ImageShard) -> None:
        """Tries out on the first shard, uncounted, how sentences can be batched, and how large batches should be."""
        self.probe.pause()
        if isinstance(shard, ImageShard):
            self.counts.token_budget = self.counts.token_budget or len(shard.lengths) * self.loaded.image_positions
        elif self.packed:
            refuse_mixing(self.loaded, shard)
        elif self.loaded.device.type == "cuda":
            self.padded = heeds_padding(self.loaded, shard)
        if self.counts.token_budget == 0 and isinstance(shard, EncodedShard):
            self.counts.token_budget = find_token_budget(self.loaded, shard)
        self.probe.resume()

    def _attempt(self, shard: EncodedShard | ImageShard) -> list[int] | None:
        """Runs all batches from nothing; returns the one that did not fit into memory, or None."""
        self.probe.reset()
        self.keeper.begin_shard(shard.first_id, len(shard.lengths))
        if self.token_sums is not None and isinstance(shard, EncodedShard):
            self.token_sums.begin_shard(shard)
        self.under_way = Counts(0)
        batches = packed_batches if self.packed else padded_batches if self.padded else length_batches
        for batch in batches(shard.lengths, self.counts.token_budget, self.batch_size):
            tokens = shard.n_tokens(batch)
            failed = False
            try:
                self._forward(shard, batch, packed=self.packed)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    what = f"out of memory on sentence {shard.first_id + batch[0]} alone ({tokens} tokens)"
                    raise RuntimeError(what) from error
                failed = True
            # The return is outside the handler: there the error would keep the failed batch's tensors alive.
            if failed:
                return batch
            self.counts.batches += 1
            self.under_way.sentences += len(batch)
            self.under_way.tokens += tokens
            self.under_way.positions += self._positions(shard, batch)
            self.on_batch(self)
        return None

    def _length(self, shard: EncodedShard | ImageShard, batch: list[int]) -> int:
        """T of a batch (B, T); 1 where it has no token."""
        longest = max(1, shard.lengths[batch[0]])
        if not self.padded:
            return longest
        most = self.loaded.max_length
        return padded_length(longest) if most is None else max(longest, min(padded_length(longest), most))

    def _positions(self, shard: EncodedShard | ImageShard, batch: list[int]) -> int:
        """What the model is given for a batch: tokens and padding."""
        tokens = shard.n_tokens(batch) if self.packed else 0
        return tokens or len(batch) * self._length(shard, batch)

    def _forward(self, shard: EncodedShard | ImageShard, batch: list[int], *, packed: bool) -> None:
        """Runs the model over some sentences of a shard, named by their positions in it; the probe counts them."""
        ids, groups = torch.tensor(batch) + shard.first_id, shard.groups_of(batch)
        if self.token_sums is not None and isinstance(shard, EncodedShard):
            self.token_sums.begin_batch(shard, batch)
        if isinstance(shard, ImageShard):
            inputs = shard.padded_inputs(batch, self.loaded)
            self.probe.next_batch(ids, groups=groups)
        elif packed and shard.lengths[batch[0]] > 0:
            inputs = shard.packed_inputs(batch, self.loaded)
            self.probe.next_batch(ids, special=shard.packed_special(batch), groups=groups)
        else:
            length = self._length(shard, batch)
            inputs = shard.padded_inputs(batch, self.loaded, length)
            # The probe looks at the values of a mask of integers, and the host would wait for the device; not at a
            # bool's.
            seen, special = shard.counted(batch, inputs), shard.special_rows(batch, length)
            self.probe.next_batch(ids, mask=seen, special=special, groups=groups)
        with torch.inference_mode():
            hidden = self.loaded.model(**inputs)[0]  # (B, T, D), or packed (1, N, D)
        if self.loaded.output is not None and isinstance(shard, EncodedShard):
            self._add_output(self.loaded.output, shard, batch, hidden)

    def _add_output(self, output: Output, shard: EncodedShard, batch: list[int], hidden: Tensor) -> None:
        """Adds what the model makes of its last hidden states to the state."""
        lengths = [shard.lengths[index] for index in batch]
        if hidden.shape[0] != len(batch):
            hidden = pad_sequence(list(torch.split(hidden[0], lengths)), batch_first=True)  # (B, T, D)
        mask = to_device(shard.token_mask(batch, hidden.shape[1]), hidden.device)
        with torch.inference_mode():
            vectors = output.vectors(hidden, mask)
        ids = torch.tensor(batch) + shard.first_id
        empty = None if all(lengths) else torch.tensor(lengths) == 0
        self.probe.state.add_output(vectors, ids, empty, shard.groups_of(batch))
        self.keeper.take(OUTPUT, len(self.probe.layer_names), ids, vectors)

    @contextmanager
    def _backends_noted(self) -> Iterator[None]:
        with backends.record() as runs:
            yield
        self.backends.update((op, str(chosen)) for op, chosen in runs)
