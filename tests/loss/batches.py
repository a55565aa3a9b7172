"""Batches that the tests of the losses share: a mask, and the same sentences packed and padded."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.moment_cases import normal

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]])

STARTS = torch.tensor([0, 3, 7, 8, 10], dtype=torch.int32)


def packed_and_padded(dtype: torch.dtype = torch.float64, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (10, 9) of the sentences that begin at `STARTS`, the same padded (4, 4, 9), and the mask (4, 4)."""
    packed = normal(10, 9, dtype=dtype, seed=seed)
    mask = torch.arange(4) < STARTS.diff()[:, None]
    padded = torch.zeros(4, 4, 9, dtype=dtype)
    padded[mask] = packed
    return packed.requires_grad_(), padded.requires_grad_(), mask
