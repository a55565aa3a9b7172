"""The sums of a run's tokens by what the tokens are: by class, by word, by sentence; and some of the tokens themselves.

A class is summed by jackknife group, so that each statistic of it has an error. Sums of shards add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cone_kernels.devices import to_device
from cone_kernels.names import TOKEN_DIVISIONS
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.token_plan import DRAWN, KEPT, Integers, TokenClasses, TokenPlan
from cone_kernels.state.sentence_batch import SentenceBatch
from cone_kernels.sums import COSINE_FIELDS, GROUPS, zero_sums

NORM_UNIT = 0.8
"""Times a power of two, where a class of norms begins. After a layer norm without weights all tokens have the length
√d, which must not be where a class begins, or rounding would divide them: 0.64·4^e is no whole number."""

CosineSums: TypeAlias = dict[str, Tensor]
"""Sums of some tokens by name, those of `COSINE_FIELDS`, of one layer: `unit_sum` is (1, G, d), the others (1, G)."""


@dataclass(eq=False)
class SentenceSums:
    """Sums over sentences by jackknife group, each (G,) float64, of the tokens of the text alone.

    Attributes:
        similarity: of each sentence the mean cosine of its tokens with their mean; of those with two tokens or more.
        sentences: how many those are.
        squares: Σ‖g‖², g = Σu of a sentence.
        size_squares: ΣT² of its T tokens.
    """

    similarity: Tensor
    sentences: Tensor
    squares: Tensor
    size_squares: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> SentenceSums:
        """Sums of nothing."""
        return cls(*torch.zeros(4, GROUPS, dtype=torch.float64, device=device).unbind(0))

    def add_(self, rows: Tensor, starts: Tensor, groups: Tensor) -> None:
        """Adds the tokens of some sentences; one that is zero or not finite is left out.

        Args:
            rows: (n, d), sentence after sentence.
            starts: (B + 1,) int64, where each sentence begins in them.
            groups: (B,) int64.
        """
        x = rows.double()
        squares = x.square().sum(1)
        used = squares.isfinite() & (squares >= torch.finfo(torch.float64).tiny)
        x = torch.where(used[:, None], x, 0.0)
        u = x / torch.where(used, squares, 1.0).sqrt()[:, None]
        t, g, size = (torch.segment_reduce(one, "sum", offsets=starts, axis=0) for one in (x, u, used.double()))
        length = t.norm(dim=1)
        several = (size > 1) & (length > 0)
        similarity = (t * g).sum(1) / torch.where(several, length * size, torch.inf)
        found = (similarity, several.double(), g.square().sum(1), size.square())
        for total, values in zip(vars(self).values(), found, strict=True):
            total += _by_group(values, groups)


@dataclass(eq=False)
class LayerTokens:
    """What is gathered of one layer.

    Attributes:
        divisions: for each name of `TOKEN_DIVISIONS` the sums of its classes by number: as in `TokenClasses`, and of
            "norm" the exponent e of norms from `NORM_UNIT`·2^(e−1) on and below `NORM_UNIT`·2^e.
        words: sums with the words in place of the groups.
        sentences: sums over sentences.
        kept: (W * `KEPT` + `DRAWN`, d) hidden states of single tokens; NaN where there is none.
    """

    divisions: dict[str, dict[int, CosineSums]]
    words: CosineSums
    sentences: SentenceSums
    kept: Tensor

    @classmethod
    def empty(cls, words: int, hidden: Tensor) -> LayerTokens:
        """Nothing yet, of hidden states (..., d) like these."""
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        kept = torch.full((words * KEPT + DRAWN, hidden.shape[-1]), torch.nan, dtype=dtype, device=hidden.device)
        divisions: dict[str, dict[int, CosineSums]] = {name: {} for name in TOKEN_DIVISIONS}
        return cls(divisions, _no_sums(hidden), SentenceSums.empty(hidden.device), kept)

    def add_(self, other: LayerTokens) -> None:
        """Adds what was gathered of the same layer elsewhere, of other sentences."""
        for name, classes in other.divisions.items():
            for number, sums in classes.items():
                _merge(self.divisions[name].setdefault(number, {}), sums)
        _merge(self.words, other.words)
        for name, total in vars(self.sentences).items():
            total += getattr(other.sentences, name)
        self.kept = torch.where(other.kept.isnan(), self.kept, other.kept)

    def on_cpu(self) -> LayerTokens:
        """The same on the CPU."""
        divisions = {
            name: {number: _on_cpu(sums) for number, sums in sorted(classes.items())}
            for name, classes in self.divisions.items()
        }
        sentences = SentenceSums(**_on_cpu(vars(self.sentences)))
        return LayerTokens(divisions, _on_cpu(self.words), sentences, self.kept.cpu())


class TokenSums:
    """Gathers the sums of every layer while a model runs, shard by shard; a shard may begin again.

    On a GPU the host waits for the norms of each layer, by which its tokens are told apart.

    Args:
        plan: of the corpus.
        backend: as in `ConeProbe`.
    """

    def __init__(self, plan: TokenPlan, backend: str = "auto") -> None:
        self.plan = plan
        self._backend = backend
        self._layers: dict[int, LayerTokens] = {}
        self._shard: dict[int, LayerTokens] = {}
        self._seen = self._seen_with_shard = plan.nothing_seen()
        self._classes: TokenClasses | None = None
        self._of_batch: TokenClasses | None = None
        self._batch: tuple[SentenceBatch, _Batch] | None = None

    @property
    def layers(self) -> dict[int, LayerTokens]:
        """What was gathered of the shards that are done, on the CPU, by the layers' numbers."""
        return {number: self._layers[number].on_cpu() for number in sorted(self._layers)}

    def begin_shard(self, shard: EncodedShard) -> None:
        """The next batches are of this shard; what was gathered of a shard that did not end is forgotten."""
        self._shard.clear()
        self._classes, self._seen_with_shard = self.plan.classes_of(shard, self._seen)

    def begin_batch(self, shard: EncodedShard, batch: list[int]) -> None:
        """The next hidden states are of these sentences, named by their positions in the shard."""
        assert self._classes is not None
        self._of_batch, self._batch = self._classes.at(shard.tokens_of(batch)), None

    def take(self, layer: int, hidden: Tensor, batch: SentenceBatch) -> None:
        """Takes one layer of the batch: (B, T, D), or packed (N, D)."""
        assert self._of_batch is not None
        if self._batch is None or self._batch[0] is not batch:
            self._batch = batch, _Batch.of(self._of_batch, batch, len(self.plan.words))
        if layer not in self._shard:
            self._shard[layer] = LayerTokens.empty(len(self.plan.words), hidden)
        tokens, gathered, rows = self._batch[1], self._shard[layer], hidden.flatten(0, -2)
        for name, classes in gathered.divisions.items():
            parts = tokens.by_norm(rows) if name == "norm" else tokens.by_class(name)
            ordered = rows[parts.rows]  # rows of one group, one after the other, are quick to add
            for number, start, end in parts.spans:
                self._add(ordered[start:end], parts.to[start:end], classes.setdefault(number, _no_sums(rows)))
        self._add(rows[tokens.words.rows], tokens.words.to, gathered.words)
        gathered.kept[tokens.kept.to] = rows[tokens.kept.rows].to(gathered.kept.dtype)
        gathered.sentences.add_(rows[tokens.own], tokens.starts, tokens.sentence_groups)

    def end_shard(self) -> None:
        """Adds the shard to those before."""
        for layer, gathered in self._shard.items():
            if layer in self._layers:
                self._layers[layer].add_(gathered)
            else:
                self._layers[layer] = gathered
        self._seen, self._shard = self._seen_with_shard, {}

    def _add(self, rows: Tensor, groups: Tensor, sums: CosineSums) -> None:
        if len(rows):
            row_moments_(rows[None], groups, list(sums.values()), self._backend)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows (n,) of the flattened hidden states, and for each (n,) the jackknife group, or the place, it is added to.

    `spans` are of each class its number, and where its rows begin and end.
    """

    rows: Tensor
    to: Tensor
    spans: Sequence[tuple[int, int, int]] = ()


@dataclass(frozen=True, eq=False)
class _Batch:
    """The tokens of a batch, and where they are in its hidden states; the same for all layers.

    Attributes:
        classes: of the tokens, in the order of the sentences.
        rows, groups: (n,) of each token.
        own: the tokens of the text; `starts` (B + 1,) and `sentence_groups` (B,) are of their sentences.
        words, kept: tokens with what they are added to, or kept at.
    """

    classes: TokenClasses
    rows: Tensor
    groups: Integers
    own: Tensor
    starts: Tensor
    sentence_groups: Tensor
    words: _Rows
    kept: _Rows
    _by_class: dict[str, _Rows] = field(default_factory=dict)

    @classmethod
    def of(cls, classes: TokenClasses, batch: SentenceBatch, words: int) -> _Batch:
        tokens = batch.tokens
        own = np.flatnonzero(classes.special == 0)
        sizes = np.bincount(tokens.sentence.cpu().numpy()[own], minlength=len(batch.groups))

        def chosen(at: Integers, to: Integers) -> _Rows:
            return _Rows(tokens.rows[_on(at, tokens.rows)], _on(to, tokens.rows))

        of_words, kept, drawn = (
            np.flatnonzero(column >= 0) for column in (classes.word, classes.kept_word, classes.kept_drawn)
        )
        places = np.concatenate([classes.kept_word[kept], words * KEPT + classes.kept_drawn[drawn]])
        return cls(
            classes,
            tokens.rows,
            batch.groups[tokens.sentence].cpu().numpy(),
            tokens.rows[_on(own, tokens.rows)],
            _on(np.concatenate([[0], np.cumsum(sizes)]), tokens.rows),
            batch.groups,
            chosen(of_words, classes.word[of_words]),
            chosen(np.concatenate([kept, drawn]), places),
        )

    def by_class(self, division: str) -> _Rows:
        """The tokens in the order of their classes, by what they are."""
        if division not in self._by_class:
            self._by_class[division] = self._ordered(getattr(self.classes, division))
        return self._by_class[division]

    def by_norm(self, hidden: Tensor) -> _Rows:
        """The tokens in the order of the exponents of their norms; those without one are in no class."""
        norms = torch.linalg.vector_norm(hidden[self.rows], dim=1, dtype=torch.float64).cpu()
        used = norms.isfinite() & (norms.square() >= torch.finfo(torch.float64).tiny)
        exponents = torch.frexp(norms / NORM_UNIT).exponent.numpy().astype(np.int64)
        return self._ordered(exponents, np.flatnonzero(used.numpy()))

    def _ordered(self, numbers: Integers, tokens: Integers | None = None) -> _Rows:
        tokens = np.arange(len(numbers)) if tokens is None else tokens
        tokens = tokens[np.lexsort((self.groups[tokens], numbers[tokens]))]
        found, starts = np.unique(numbers[tokens], return_index=True)
        ends = [*starts.tolist(), len(tokens)][1:]
        spans = list(zip(found.tolist(), starts.tolist(), ends, strict=True))
        return _Rows(self.rows[_on(tokens, self.rows)], _on(self.groups[tokens], self.rows), spans)


def _on(values: Integers, like: Tensor) -> Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(values)), like.device)


def _by_group(values: Tensor, groups: Tensor) -> Tensor:
    """(G,) the sums of values (B,) by group, the same bits each time on a GPU too."""
    chosen = torch.arange(GROUPS, device=groups.device)[:, None] == groups
    total: Tensor = torch.where(chosen, values, 0.0).sum(1)
    return total


def _no_sums(hidden: Tensor) -> CosineSums:
    return zero_sums(COSINE_FIELDS, 1, hidden.shape[-1], device=hidden.device)


def _merge(sums: CosineSums, others: Mapping[str, Tensor]) -> None:
    for name, total in others.items():
        sums[name] = sums[name] + total if name in sums else total


def _on_cpu(sums: Mapping[str, Tensor]) -> CosineSums:
    return {name: total.cpu() for name, total in sums.items()}
