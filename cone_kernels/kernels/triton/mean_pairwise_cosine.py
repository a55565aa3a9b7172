"""Triton's mean_pairwise_cosine: the sums of row_moments, and the cosine of them in torch."""

from __future__ import annotations

from torch import Tensor

from cone_kernels.kernels.cosine import CosineAndSums, cosine_by_row_moments
from cone_kernels.kernels.triton.row_moments import row_moments


def mean_pairwise_cosine(x: Tensor, alone: bool) -> CosineAndSums:
    """A (...) of x (..., n, d), how many rows were left out (...), s (..., d) and n (...)."""
    return cosine_by_row_moments(row_moments, x)
