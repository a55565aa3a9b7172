"""Rows near zero: their direction is that of rounding, and the gradient of x/‖x‖ grows as 1/‖x‖.

`torch.nn.functional.normalize` divides by max(‖x‖, eps), so a row shorter than eps becomes x/eps, which is shorter than
1 and goes to zero with the row. Kernels make unit vectors of all rows; what is here puts the short ones right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels.ops.arguments import read_is_free
from cone_kernels.sums import cosine_of_sums


def find_short_rows(x: Tensor, eps: float) -> Tensor | None:
    """Which rows of x (..., n, d) have 0 < ‖x‖ < eps, (..., n) bool; None where the host sees that there is none."""
    if eps <= 0 or x.numel() == 0:
        return None
    lengths = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    free = read_is_free(x)
    if free and float(lengths.min()) >= eps:  # nearly always; false for NaN
        return None
    short = (lengths > 0) & (lengths < eps)
    return None if free and not bool(short.any()) else short


def cosine_with_short_rows(
    x: Tensor, short: Tensor, eps: float, cosine: Tensor, unit_sum: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A (...), Σu (..., d) and n (...) of all rows.

    Args:
        x: (..., n, d).
        short, eps: what `find_short_rows` found.
        cosine, unit_sum, count: those of the rows that are not short.
    """
    divided = torch.where(short[..., None], x.double() / eps, 0.0)
    unit_sum, all_rows = unit_sum + divided.sum(-2), count + short.sum(-1)
    whole = cosine_of_sums(unit_sum, count.double() + divided.square().sum((-2, -1)), all_rows)
    return torch.where(short.any(-1), whole, cosine), unit_sum, all_rows


def gradient_with_short_rows(
    x: Tensor, short: Tensor, eps: float, unit_sum: Tensor, scale: Tensor, gradient: Tensor
) -> Tensor:
    """The gradient (..., n, d) with that of the short rows in it: scale · (s − x/eps)/eps.

    Args:
        x, short, eps: as in `cosine_with_short_rows`.
        unit_sum: (..., d) the sum s of all rows.
        scale: (...) as the backward kernel takes it.
        gradient: of the rows that are not short.
    """
    of_short = scale[..., None, None] * (unit_sum[..., None, :] - x.double() / eps) / eps
    return torch.where(short[..., None], of_short.to(gradient.dtype), gradient)
