"""Mean pairwise cosine (anisotropy) in O(n·d), never O(n²)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.ops.arguments import ArrayLike, flatten_batch, float_tensor, like_input
from cone_kernels.sums import COSINE_FIELDS, zero_sums


def mean_pairwise_cosine(x: ArrayLike, *, strict: bool = False, backend: str = "auto") -> Any:
    """The mean cosine over all pairs of distinct rows of `x`, from one read of `x`.

    A = (‖Σu‖² − Σ‖u‖²) / (n(n−1)) with u = x/‖x‖ (Ethayarajh 2019, section 3.2, by the mean-vector identity). Not
    clamped: centred data has A ≈ −1/(n−1). Rows whose norm is zero or not finite are left out of n; `row_moments` says
    how many, and `strict` refuses them.

    Args:
        x: (..., n, d) float32, float64, bfloat16 or float16; leading dimensions are batch dimensions. Any strides.
        strict: raise where a row would be left out.
        backend: "auto", "cpu" or "reference".

    Returns:
        (...) float64, in [-1/(n-1), 1] up to rounding; NaN where fewer than two rows are left, for then there is no
        pair. A NumPy array for a NumPy array.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: the shape is not (..., n, d), or `strict` and a row is zero or not finite.
        BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor(0.7071, dtype=torch.float64)
    """
    rows = float_tensor("x", x, 2, "(..., n, d)")
    chosen = backends.resolve(backend, rows.device, "row_moments")
    cosine, left_out = _mean_pairwise_cosine(rows, chosen.value)
    if strict and bool(left_out.any()):
        raise ValueError(f"x: got {int(left_out.sum())} rows that are zero or not finite; strict wants none")
    return like_input(cosine, x)


@torch.library.custom_op("cone_kernels::mean_pairwise_cosine", mutates_args=())
def _mean_pairwise_cosine(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    flat, batch = flatten_batch(x, 2), x.shape[:-2]
    sums = zero_sums(COSINE_FIELDS, flat.shape[0], x.shape[-1], groups=1, device=x.device)
    backends.kernel("row_moments", backend)(flat, None, sums)
    count = sums["count"].sum(-1).double()
    unit_sum = sums["unit_sum"].sum(-2)  # (L, d)
    pairs = torch.where(count > 1, count * (count - 1), torch.nan)
    cosine = (unit_sum.square().sum(-1) - sums["unit_sq_total"].sum(-1)) / pairs
    left_out = (sums["n_zero"] + sums["n_nonfinite"]).sum(-1)
    return cosine.reshape(batch), left_out.reshape(batch)


@_mean_pairwise_cosine.register_fake
def _(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    batch = x.shape[:-2]
    return x.new_empty(batch, dtype=torch.float64), x.new_empty(batch, dtype=torch.int64)
