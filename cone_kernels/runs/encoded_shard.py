"""Sentences as token ids, without padding: what a run gives to the model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch

from cone_kernels.devices import to_device
from cone_kernels.models.loaded import LoadedModel, first_position
from cone_kernels.models.transformers_names import ATTENTION_MASK, LONGEST, POSITIONS, STARTS

_PLAIN: dict[str, Any] = {"padding": False, "verbose": False}


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


def _prompted(loaded: LoadedModel, texts: list[str]) -> list[str]:
    return [loaded.prompt + text for text in texts] if loaded.prompt else texts


@dataclass(frozen=True)
class EncodedShard:
    """The tokenized sentences of a shard.

    Attributes:
        first_id: the index of its first sentence in the corpus.
        columns: for each input of the model by name, a list of integers for each sentence.
        lengths: tokens of each sentence.
        special: for each sentence, 1 where the tokenizer added the token; None where that is not needed.
        truncated: sentences cut at the model's longest input.
    """

    first_id: int
    columns: dict[str, list[list[int]]]
    lengths: list[int] = field(repr=False)
    special: list[list[int]] | None
    truncated: int

    @classmethod
    def of(
        cls, loaded: LoadedModel, texts: list[str], first_id: int = 0, *, special_tokens: bool = False
    ) -> EncodedShard:
        """The sentences as token ids, cut at the model's longest input.

        Args:
            loaded: the model with its tokenizer.
            texts: the sentences.
            first_id: the index of the first of them in the corpus.
            special_tokens: note which tokens the tokenizer added.
        """
        limit = loaded.max_length
        found = tokenized(loaded, texts, return_special_tokens_mask=special_tokens)
        lengths = [len(ids) for ids in found["input_ids"]]
        # A sentence that fills the limit may have been cut; whether it was shows when it is tokenized whole.
        full = [texts[index] for index, length in enumerate(lengths) if length == limit]
        whole = loaded.tokenizer(_prompted(loaded, full), truncation=False, **_PLAIN)["input_ids"] if full else []
        truncated = sum(limit is not None and len(ids) > limit for ids in whole)
        columns = {name: found[name] for name in loaded.input_names if name in found and name != ATTENTION_MASK}
        return cls(first_id, columns, lengths, found["special_tokens_mask"] if special_tokens else None, truncated)

    def padded_inputs(
        self, batch: list[int], loaded: LoadedModel, length: int | None = None
    ) -> dict[str, torch.Tensor]:
        """The model's inputs for sentences of at most T tokens, padded on the right, each (B, T).

        Args:
            batch: their positions in the shard; none of them has a token, or all have.
            loaded: the model.
            length: T; None is the length of the longest.
        """
        pads = {"input_ids": loaded.tokenizer.pad_token_id or 0}
        longest = max(self.lengths[i] for i in batch)
        width = max(1, longest) if length is None else length
        rows = {name: self._rows(column, batch, width, pads.get(name, 0)) for name, column in self.columns.items()}
        if longest == 0:
            # One token stands in for none: the model must be given something, and the probe's mask leaves it out.
            rows = {"input_ids": rows["input_ids"]}
        if ATTENTION_MASK in loaded.input_names:
            mask = self.token_mask(batch, width) if longest > 0 else torch.ones_like(rows["input_ids"])
            rows[ATTENTION_MASK] = mask.to(torch.int64)
        return {name: to_device(row, loaded.device) for name, row in rows.items()}

    def token_mask(self, batch: list[int], length: int) -> torch.Tensor:
        """(B, T) bool on the CPU: which places of sentences padded to this length T are their tokens."""
        return torch.arange(length) < torch.tensor([self.lengths[i] for i in batch])[:, None]

    def special_rows(self, batch: list[int], length: int) -> torch.Tensor | None:
        """(B, T) on the CPU: 1 where the tokenizer added the token, in sentences padded to this length T with 0."""
        return None if self.special is None else self._rows(self.special, batch, length, 0)

    @staticmethod
    def _rows(column: list[list[int]], batch: list[int], length: int, pad: int) -> torch.Tensor:
        return torch.tensor([column[i] + [pad] * (length - len(column[i])) for i in batch])

    def packed_inputs(self, batch: list[int], loaded: LoadedModel) -> dict[str, Any]:
        """The model's inputs for sentences that follow each other in one row of N tokens, each (1, N).

        Positions begin anew with every sentence. `cu_seq_lens_q` (B + 1,), where each sentence begins, and the like
        make flash attention keep the sentences apart.

        Args:
            batch: their positions in the shard.
            loaded: the model.
        """
        lengths = [self.lengths[i] for i in batch]
        rows: dict[str, Any] = {
            name: torch.tensor([list(itertools.chain.from_iterable(column[i] for i in batch))])
            for name, column in self.columns.items()
        }
        first = first_position(loaded.model)
        rows[POSITIONS] = torch.cat([torch.arange(first, first + length) for length in lengths])[None]
        starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        rows |= dict.fromkeys(STARTS, starts)
        rows = {name: to_device(row, loaded.device) for name, row in rows.items()}
        return rows | dict.fromkeys(LONGEST, max(lengths))
