"""The mean pairwise cosine by a backend's `row_moments`, for backends without a kernel that finishes it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cone_kernels.sums import COSINE_FIELDS, cosine_of_sums, zero_sums


def cosine_by_row_moments(
    row_moments: Callable[[Tensor, Tensor | None, dict[str, Tensor]], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the op `mean_pairwise_cosine` gives for x (L, n, d): A (L,), rows left out (L,), s (L, d) and n (L,)."""
    sums = zero_sums(COSINE_FIELDS, x.shape[0], x.shape[-1], groups=1, device=x.device)
    row_moments(x, None, sums)
    count, unit_sum = sums["count"][:, 0], sums["unit_sum"][:, 0]
    left_out = (sums["n_zero"] + sums["n_nonfinite"])[:, 0]
    return cosine_of_sums(unit_sum, sums["unit_sq_total"][:, 0], count), left_out, unit_sum, count
