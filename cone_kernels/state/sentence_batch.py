"""One batch of sentences: which tokens count and in which groups, checked once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cone_kernels.devices import to_device
from cone_kernels.ops.arguments import ArrayLike, as_tensor, given_groups, read_is_free, sentence_numbers, token_mask
from cone_kernels.ops.masked_mean_pool import token_selection
from cone_kernels.sums import GROUPS, jackknife_groups


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The tokens of each sentence, as rows of the flattened hidden states: (B * T, D), or packed (N, D)."""

    rows: Tensor  # (n,) int64, sentence after sentence
    starts: Tensor  # (B + 1,) int64, where each sentence begins in `rows`
    sentence_ids: Tensor  # (B,) int64

    @cached_property
    def sizes(self) -> Tensor:
        """(B,) int64: tokens of each sentence."""
        return self.starts.diff()

    @cached_property
    def sentence(self) -> Tensor:
        """(n,) int64: the sentence that each token is of."""
        return torch.repeat_interleave(self.sizes)

    @cached_property
    def ranks(self) -> Tensor:
        """(n,) int64: 1 for the first token of a sentence, T for its last."""
        return torch.arange(1, len(self.rows) + 1, device=self.rows.device) - self.starts[self.sentence]

    @cached_property
    def empty(self) -> Tensor | None:
        """(B,) bool: the sentences without a token; None where there is none."""
        without = self.sizes == 0
        return without if bool(without.any()) else None

    @cached_property
    def length(self) -> int | None:
        """T where every sentence has T tokens, else None."""
        sizes = torch.unique(self.sizes)
        return int(sizes[0]) if len(sizes) == 1 else None


@dataclass(frozen=True, eq=False)
class SentenceBatch:
    """What every layer of a batch shares; made by `of`."""

    mask: Tensor | None  # (B, T) bool
    cu_seqlens: Tensor | None  # (B + 1,) int64
    sentence_ids: Tensor  # (B,) int64
    groups: Tensor  # (B,) int64
    special: Tensor | None = None  # (B, T) bool, or packed (N,)

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        sentence_ids: Tensor | None,
        first_id: int = 0,
        special: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> SentenceBatch:
        """The batch of which `hidden` (B, T, D), or (N, D) with `cu_seqlens`, is a layer.

        Args:
            hidden: a layer.
            mask, cu_seqlens: as in `pool_moments`.
            sentence_ids: (B,) int64; without them the ids count up from `first_id`.
            first_id: the first id where none are given.
            special: (B, T), or packed (N,): 1 = a token that the tokenizer adds, such as [CLS].
            groups: (B,) int64, 0 to 63, the jackknife groups; without them the ids decide.

        Raises:
            TypeError, ValueError: an argument does not fit, as in `pool_moments`.
        """
        mask, cu_seqlens = token_selection(hidden, mask, cu_seqlens)
        n_sentences = len(mask) if mask is not None else len(cu_seqlens) - 1 if cu_seqlens is not None else 0
        if sentence_ids is None:
            sentence_ids = torch.arange(n_sentences, device=hidden.device) + first_id
        ids = sentence_numbers("sentence_ids", sentence_ids, n_sentences)
        groups = jackknife_groups(ids) if groups is None else given_groups(groups, n_sentences)
        if ids.device != hidden.device:
            ids, groups = to_device(torch.stack([ids, groups]), hidden.device).unbind(0)  # one copy for both
        checked = None if special is None else _special_tokens(special, hidden)
        return cls(mask, cu_seqlens, ids, groups, checked)

    @cached_property
    def tokens(self) -> TokenRows:
        """The tokens that count."""
        if self.mask is None:
            assert self.cu_seqlens is not None
            rows = torch.arange(int(self.cu_seqlens[-1]), device=self.groups.device)
            return TokenRows(rows, self._packed_starts, self._ids)
        return TokenRows(self.mask.flatten().nonzero().flatten(), _starts(self.mask.sum(1)), self._ids)

    @cached_property
    def plain_tokens(self) -> TokenRows:
        """The tokens that count and are not special. Needs `special`."""
        assert self.special is not None
        plain = ~self.special.flatten()[self.tokens.rows]
        sizes = torch.bincount(self.tokens.sentence[plain], minlength=len(self.groups))
        return TokenRows(self.tokens.rows[plain], _starts(sizes), self._ids)

    @property
    def _ids(self) -> Tensor:
        return to_device(self.sentence_ids, self.groups.device)

    @cached_property
    def _packed_starts(self) -> Tensor:
        assert self.cu_seqlens is not None
        return to_device(self.cu_seqlens, self.groups.device)

    @cached_property
    def _empty(self) -> Tensor:  # (B,) bool
        return ~self.mask.any(1) if self.mask is not None else self._packed_starts.diff() == 0

    @cached_property
    def empty_by_group(self) -> Tensor | None:
        """(G,) int64: the sentences without a token; None where the host can see that there is none."""
        return self.by_group(self._empty) if not read_is_free(self._empty) or bool(self._empty.any()) else None

    @cached_property
    def groups_of_pooled(self) -> Tensor:
        """(B,) int64: the groups, -1 for a sentence without a token, which has no vector."""
        return self.groups if self.empty_by_group is None else torch.where(self._empty, -1, self.groups)

    def by_group(self, sentences: Tensor) -> Tensor:
        """(G,) int64: how many of these sentences (B,) bool are in each group."""
        return self.groups.new_zeros(GROUPS).index_add_(0, self.groups, sentences.to(self.groups.dtype))


def _starts(sizes: Tensor) -> Tensor:
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def _special_tokens(value: ArrayLike, hidden: Tensor) -> Tensor:
    """`special` as bool, (B, T) or (N,) as the tokens of `hidden`."""
    if hidden.dim() == 3:
        return token_mask("special", value, hidden.shape[0], hidden.shape[1], hidden.device)
    special = as_tensor("special", value)
    if tuple(special.shape) != (len(hidden),):
        raise ValueError(f"special: got shape {tuple(special.shape)}; it must be (N,) = {(len(hidden),)}")
    return token_mask("special", special[None], 1, len(hidden), hidden.device)[0]
