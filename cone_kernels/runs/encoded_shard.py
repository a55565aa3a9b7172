"""Sentences as token ids, without padding: what a run gives to the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cone_kernels.devices import to_device
from cone_kernels.models.loaded import LoadedModel, first_position, unknown_token
from cone_kernels.models.transformers_names import (
    ATTENTION_MASK,
    LONGEST,
    POSITIONS,
    SPECIAL_TOKENS,
    STARTS,
    TOKEN_TYPES,
    encodes_as_library,
)

_PLAIN: dict[str, Any] = {"padding": False, "verbose": False}
_IDS = "input_ids"
# Of sentences that are tokenized by one call: enough for all cores, and some 50 MB until they are cut.
_BLOCK_CHARACTERS = 1 << 20
_SHORT = 100
# Another thread that uses the tokenizer sets it up for itself.
_TRIES = 8
# What an encoding of the tokenizers library calls the columns that transformers makes of it.
_OF_AN_ENCODING = {_IDS: "ids", TOKEN_TYPES: "type_ids", SPECIAL_TOKENS: "special_tokens_mask"}


def tokenized(loaded: LoadedModel, texts: list[str], **options: Any) -> Any:
    """What the tokenizer makes of sentences in a run: token ids without padding, cut at the model's longest input.

    Args:
        loaded: the model with its tokenizer, and the prompt that is put before every sentence.
        texts: sentences.
        options: further keywords of the tokenizer.
    """
    limit = loaded.max_length
    cut: dict[str, Any] = {"truncation": False} if limit is None else {"truncation": True, "max_length": limit}
    return loaded.tokenizer(_prompted(loaded, texts), **_PLAIN, **cut, **options)


def counted_tokens(loaded: LoadedModel, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids of sentences that a run counts, and for each token 1 where the tokenizer added it.

    Args:
        loaded, texts: as in `tokenized`.
    """
    found = tokenized(loaded, texts, return_special_tokens_mask=True)
    ids, added = found[_IDS], found[SPECIAL_TOKENS]
    if not loaded.drops_unknown:
        return ids, added
    unknown = unknown_token(loaded.tokenizer)
    known = [[token != unknown for token in row] for row in ids]

    def left(rows: list[list[int]]) -> list[list[int]]:
        return [list(itertools.compress(row, keep)) for row, keep in zip(rows, known, strict=True)]

    return left(ids), left(added)


def _prompted(loaded: LoadedModel, texts: list[str]) -> list[str]:
    return [loaded.prompt + text for text in texts] if loaded.prompt else texts


@dataclass(frozen=True, eq=False)
class EncodedShard:
    """The tokenized sentences of a shard.

    Attributes:
        first_id: the index of its first sentence in the corpus.
        columns: for each input of the model by name, (N,) int64: those of the tokens of all sentences in order.
        lengths: tokens of each sentence.
        special: (N,) int64, 1 where the tokenizer added the token; None where that is not needed.
        truncated: sentences cut at the model's longest input.
        unknown: tokens that stand for a word that the tokenizer does not know.
        groups: (B,) int64 jackknife groups of the sentences; None where their indices decide them.
    """

    first_id: int
    columns: dict[str, NDArray[np.int64]]
    lengths: list[int] = field(repr=False)
    special: NDArray[np.int64] | None
    truncated: int
    unknown: int = 0
    groups: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        texts: list[str],
        first_id: int = 0,
        *,
        special_tokens: bool = False,
        groups: list[int] | None = None,
    ) -> EncodedShard:
        """The sentences as token ids, cut at the model's longest input.

        Args:
            loaded: the model with its tokenizer.
            texts: the sentences.
            first_id: the index of the first of them in the corpus.
            special_tokens: note which tokens the tokenizer added.
            groups: jackknife groups of the sentences; None where their indices decide them.
        """
        shuffled = loaded.info.get("baseline") == "shuffled-tokens"
        asked = special_tokens or shuffled
        blocks = [_EncodedBlock.of(loaded, block, special_tokens=asked) for block in text_blocks(texts)]
        lengths = list(itertools.chain.from_iterable(block.lengths for block in blocks))
        truncated = sum(block.truncated for block in blocks)
        flat = {name: np.concatenate([block.columns[name] for block in blocks]) for name in blocks[0].columns}
        special = flat.pop(SPECIAL_TOKENS, None)
        if shuffled and special is not None:
            own = np.flatnonzero(special == 0)
            flat[_IDS][own] = flat[_IDS][np.random.default_rng(first_id).permutation(own)]
            special = special if special_tokens else None
        unknown = unknown_token(loaded.tokenizer)
        is_unknown = flat[_IDS] == (-1 if unknown is None else unknown)
        n_unknown = int(np.count_nonzero(is_unknown))
        if loaded.drops_unknown and n_unknown:
            sentence = np.repeat(np.arange(len(lengths)), lengths)[~is_unknown]
            lengths = np.bincount(sentence, minlength=len(lengths)).tolist()
            flat = {name: column[~is_unknown] for name, column in flat.items()}
            special = None if special is None else special[~is_unknown]
        given = None if groups is None else np.array(groups, dtype=np.int64)
        return cls(first_id, flat, lengths, special, truncated, n_unknown, given)

    def beginnings(self, sentence: int, lengths: list[int]) -> EncodedShard:
        """The first tokens of one sentence as sentences of these lengths.

        Args:
            sentence: its position in the shard.
            lengths: of what is made of it; none is longer than the sentence.
        """
        start = self._starts[sentence]
        columns = {
            name: np.concatenate([column[start : start + length] for length in lengths])
            for name, column in self.columns.items()
        }
        return EncodedShard(0, columns, lengths, None, 0)

    def padded_inputs(
        self, batch: list[int], loaded: LoadedModel, length: int | None = None
    ) -> dict[str, torch.Tensor]:
        """The model's inputs for sentences of at most T tokens, padded on the right, each (B, T).

        Args:
            batch: their positions in the shard; none of them has a token, or all have.
            loaded: the model.
            length: T; None is the length of the longest.
        """
        pads = {_IDS: loaded.tokenizer.pad_token_id or 0}
        longest = int(self._lengths[batch].max())
        width = max(1, longest) if length is None else length
        tokens = self.tokens_of(batch)
        mask = self._mask(batch, width)
        rows = {name: _padded(column[tokens], mask, pads.get(name, 0)) for name, column in self.columns.items()}
        if longest == 0:
            # One token stands in for none: the model must be given something, and the probe's mask leaves it out.
            rows = {_IDS: rows[_IDS]}
        if ATTENTION_MASK in loaded.input_names:
            seen = torch.from_numpy(mask) if longest > 0 else torch.ones_like(rows[_IDS])
            rows[ATTENTION_MASK] = seen.to(torch.int64)
        return _moved(rows, loaded.device)

    def groups_of(self, batch: list[int]) -> torch.Tensor | None:
        """(B,) int64 jackknife groups of these sentences; None where their indices decide them."""
        return None if self.groups is None else torch.from_numpy(self.groups[batch])

    def n_tokens(self, batch: list[int]) -> int:
        """Tokens of these sentences together."""
        return int(self._lengths[batch].sum())

    def token_mask(self, batch: list[int], length: int) -> torch.Tensor:
        """(B, T) bool on the CPU: which places of sentences padded to this length T are their tokens."""
        return torch.from_numpy(self._mask(batch, length))

    def counted(self, batch: list[int], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """`token_mask` of the inputs that `padded_inputs` gave for these sentences, where they are."""
        if ATTENTION_MASK in inputs and self.lengths[batch[0]] > 0:
            return inputs[ATTENTION_MASK].to(torch.bool)
        return to_device(self.token_mask(batch, inputs[_IDS].shape[1]), inputs[_IDS].device)

    def special_rows(self, batch: list[int], length: int) -> torch.Tensor | None:
        """(B, T) on the CPU: 1 where the tokenizer added the token, in sentences padded to this length T with 0."""
        if self.special is None:
            return None
        return _padded(self.special[self.tokens_of(batch)], self._mask(batch, length), 0)

    def packed_special(self, batch: list[int]) -> torch.Tensor | None:
        """(1, N) on the CPU: 1 where the tokenizer added the token, in sentences that follow each other in one row."""
        return None if self.special is None else torch.from_numpy(self.special[self.tokens_of(batch)])[None]

    def packed_inputs(self, batch: list[int], loaded: LoadedModel) -> dict[str, Any]:
        """The model's inputs for sentences that follow each other in one row of N tokens, each (1, N).

        Positions begin anew with every sentence. `cu_seq_lens_q` (B + 1,), where each sentence begins, and the like
        make flash attention keep the sentences apart.

        Args:
            batch: their positions in the shard.
            loaded: the model.
        """
        lengths, tokens = self._lengths[batch], self.tokens_of(batch)
        rows = {name: torch.from_numpy(column[tokens])[None] for name, column in self.columns.items()}
        rows[POSITIONS] = torch.from_numpy(first_position(loaded.model) + _counted(lengths))[None]
        starts = torch.tensor([0, *itertools.accumulate(lengths.tolist())], dtype=torch.int32)
        moved = dict.fromkeys(STARTS, to_device(starts, loaded.device))
        return _moved(rows, loaded.device) | moved | dict.fromkeys(LONGEST, int(lengths.max()))

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array(self.lengths, dtype=np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where the tokens of each sentence begin in a column."""
        return np.cumsum(self._lengths) - self._lengths

    def tokens_of(self, batch: list[int]) -> NDArray[np.int64]:
        """(n,) where the tokens of these sentences, one sentence after the other, are in a column."""
        lengths = self._lengths[batch]
        return np.repeat(self._starts[batch], lengths) + _counted(lengths)

    def _mask(self, batch: list[int], length: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = np.arange(length) < self._lengths[batch][:, None]
        return mask


@dataclass(frozen=True, eq=False)
class _EncodedBlock:
    """Some sentences of a shard, tokenized by one call."""

    columns: dict[str, NDArray[np.int64]]
    lengths: list[int]
    truncated: int

    @classmethod
    def of(cls, loaded: LoadedModel, texts: list[str], *, special_tokens: bool) -> _EncodedBlock:
        """What the tokenizer gives of the model's inputs, and the special tokens if asked."""
        names = [name for name in loaded.input_names if name != ATTENTION_MASK]
        names += [SPECIAL_TOKENS] if special_tokens else []
        asks_library = encodes_as_library(loaded.tokenizer)
        encode = _by_library if asks_library else _by_transformers
        found, truncated = encode(loaded, texts, names, special_tokens=special_tokens)
        lengths = [len(ids) for ids in found[_IDS]]
        return cls({name: _flat(rows, sum(lengths)) for name, rows in found.items()}, lengths, truncated)


def _by_transformers(
    loaded: LoadedModel, texts: list[str], names: list[str], *, special_tokens: bool
) -> tuple[dict[str, Sequence[list[int]]], int]:
    """The columns of these names, integers for each sentence, and how many sentences were cut."""
    found = tokenized(loaded, texts, return_special_tokens_mask=special_tokens)
    limit = loaded.max_length
    # A sentence that fills the limit may have been cut; whether it was shows when it is tokenized whole.
    full = [text for text, ids in zip(texts, found[_IDS], strict=True) if len(ids) == limit]
    whole = loaded.tokenizer(_prompted(loaded, full), truncation=False, **_PLAIN)[_IDS] if full else []
    truncated = sum(limit is not None and len(ids) > limit for ids in whole)
    return {name: found[name] for name in names if name in found}, truncated


def _by_library(
    loaded: LoadedModel, texts: list[str], names: list[str], *, special_tokens: bool
) -> tuple[dict[str, Sequence[list[int]]], int]:
    """As `_by_transformers`, which makes lists of all that its library knows of a sentence.

    That takes as long as to tokenize it; the library itself is asked for these alone.
    """
    for _ in range(_TRIES):
        # A call with a short sentence leaves the library set up for all.
        given = tokenized(loaded, [text[:_SHORT] for text in texts[:1]], return_special_tokens_mask=special_tokens)
        ready = _is_set_up(loaded)
        encodings = loaded.tokenizer.backend_tokenizer.encode_batch_fast(_prompted(loaded, texts))
        if ready and _is_set_up(loaded):
            break
    else:
        raise RuntimeError(
            "tokenizer: its settings changed while it was at work; it must not be used by another thread meanwhile"
        )
    columns: dict[str, Sequence[list[int]]] = {
        name: [getattr(encoding, _OF_AN_ENCODING[name]) for encoding in encodings] for name in names if name in given
    }
    # What is cut off of a sentence follows its encoding, and none has that but one that fills the limit.
    limit = loaded.max_length
    truncated = sum(
        bool(encoding.overflowing) for encoding, ids in zip(encodings, columns[_IDS], strict=True) if len(ids) == limit
    )
    return columns, truncated


def text_blocks(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, some at a time: a tokenizer takes some 50 bytes for each character until it has cut them.

    Args:
        texts: sentences; one that is longer than a block is a block of its own.

    Examples:
        >>> [len(block) for block in text_blocks(["a" * 900_000, "b" * 900_000, "c"])]
        [1, 2]
    """
    start, held = 0, 0
    for index, text in enumerate(texts):
        if held and held + len(text) > _BLOCK_CHARACTERS:
            yield texts[start:index]
            start, held = index, 0
        held += len(text)
    yield texts[start:]


def _is_set_up(loaded: LoadedModel) -> bool:
    """Whether the library cuts sentences at the model's longest input and pads none."""
    library = loaded.tokenizer.backend_tokenizer
    cut = library.truncation
    return library.padding is None and (None if cut is None else cut["max_length"]) == loaded.max_length


def _flat(rows: Iterable[list[int]], number: int) -> NDArray[np.int64]:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64, count=number)


def _counted(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... anew for each of these lengths."""
    ends = np.cumsum(lengths)
    counted: NDArray[np.int64] = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    return counted


def _padded(tokens: NDArray[np.int64], mask: NDArray[np.bool_], pad: int) -> torch.Tensor:
    """(B, T) int64: the tokens in the places that the mask has for them."""
    rows = np.full(mask.shape, pad, dtype=np.int64)
    rows[mask] = tokens
    return torch.from_numpy(rows)


def _moved(rows: dict[str, torch.Tensor], device: torch.device) -> dict[str, Any]:
    """Rows of one shape on a device, all by one copy."""
    if device.type == "cpu":
        return dict(rows)
    return dict(zip(rows, to_device(torch.stack(list(rows.values())), device).unbind(0), strict=True))
