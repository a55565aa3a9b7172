"""Triton's mean_pairwise_cosine: the sums of row_moments, and the cosine of them in torch."""

from __future__ import annotations

from torch import Tensor

from cone_kernels.kernels.cosine import cosine_by_row_moments
from cone_kernels.kernels.triton.row_moments import row_moments


def mean_pairwise_cosine(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (L,) of x (L, n, d), how many rows were left out (L,), and the sums s (L, d) and n (L,) that A is made of."""
    return cosine_by_row_moments(row_moments, x)
