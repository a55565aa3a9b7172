"""The mean pairwise cosine by a backend's `row_moments`, for backends without a kernel that finishes it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from cone_kernels.sums import COSINE_FIELDS, cosine_of_sums, zero_sums

# A, how many rows were left out, s = Σu and n; None for what was not wanted.
CosineAndSums = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def cosine_by_row_moments(
    row_moments: Callable[[Tensor, Tensor | None, dict[str, Tensor]], Tensor], x: Tensor
) -> CosineAndSums:
    """A (...) of x (..., n, d), how many rows were left out (...), and what A is made of: s (..., d) and n (...)."""
    *batch, n, d = x.shape
    layers = math.prod(batch)
    sums = zero_sums(COSINE_FIELDS, layers, d, groups=1, device=x.device)
    row_moments(x.reshape(layers, n, d), None, sums)
    count, unit_sum = sums["count"].reshape(batch), sums["unit_sum"].reshape(*batch, d)
    cosine = cosine_of_sums(unit_sum, sums["unit_sq_total"].reshape(batch), count)
    return cosine, (sums["n_zero"] + sums["n_nonfinite"]).reshape(batch), unit_sum, count
