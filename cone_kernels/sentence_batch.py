"""One batch of sentences: which tokens count and in which groups, checked once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cone_kernels.ops.arguments import groups_of
from cone_kernels.ops.masked_mean_pool import token_selection
from cone_kernels.sums import GROUPS


@dataclass(frozen=True, eq=False)
class SentenceBatch:
    """What every layer of a batch shares; made by `of`."""

    mask: Tensor | None  # (B, T) bool
    cu_seqlens: Tensor | None  # (B + 1,) int64
    sentence_ids: Tensor  # (B,) int64
    groups: Tensor  # (B,) int64

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        sentence_ids: Tensor | None,
        first_id: int = 0,
    ) -> SentenceBatch:
        """The batch of which `hidden` (B, T, D), or (N, D) with `cu_seqlens`, is a layer.

        Without `sentence_ids` the ids count up from `first_id`.

        Raises:
            TypeError, ValueError: an argument does not fit, as in `pool_moments`.
        """
        mask, cu_seqlens = token_selection(hidden, mask, cu_seqlens)
        n_sentences = len(mask) if mask is not None else len(cu_seqlens) - 1 if cu_seqlens is not None else 0
        if sentence_ids is None:
            sentence_ids = torch.arange(n_sentences, device=hidden.device) + first_id
        groups = groups_of("sentence_ids", sentence_ids, n_sentences, hidden.device)
        assert groups is not None
        return cls(mask, cu_seqlens, sentence_ids.to(hidden.device), groups)

    @cached_property
    def _empty(self) -> Tensor:  # (B,) bool
        if self.mask is not None:
            return ~self.mask.any(1)
        assert self.cu_seqlens is not None
        return self.cu_seqlens.diff() == 0

    @cached_property
    def empty_by_group(self) -> Tensor | None:
        """(G,) int64: the sentences without a token; None where there is none."""
        return torch.bincount(self.groups[self._empty], minlength=GROUPS) if bool(self._empty.any()) else None

    @cached_property
    def groups_of_pooled(self) -> Tensor:
        """(B,) int64: the groups, -1 for a sentence without a token, which has no vector."""
        return self.groups if self.empty_by_group is None else torch.where(self._empty, -1, self.groups)
