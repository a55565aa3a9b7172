"""Names, dtypes and shapes of the plain sums that a state is made of: kernels add to them, merging adds them.

L layers, G jackknife groups, width d. u = x/‖x‖. The order of the names is the order in which ops take the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A sentence belongs to one group (see `jackknife_groups`), so every statistic has a jackknife error.
GROUPS = 64

COSINE_FIELDS = ("count", "n_zero", "n_nonfinite", "unit_sum", "unit_sq_total")
ROW_FIELDS = (*COSINE_FIELDS, "unit_sq_sum", "sum", "sq_sum", "norm_sum", "norm_sq_sum")
SENTENCE_SIZE_FIELDS = ("sentence_sq_sum", "sentence_size_sq_sum", "n_sentences")
TOKEN_FIELDS = (*ROW_FIELDS, *SENTENCE_SIZE_FIELDS)
SENTENCE_FIELDS = (*ROW_FIELDS, "n_empty")
SECOND_MOMENT_FIELDS = ("second_moment", "unit_second_moment")

_SHAPES = {
    "count": "LG",  # rows used
    "n_zero": "LG",  # rows left out: ‖x‖² is zero (float64 rows: below the smallest normal number)
    "n_nonfinite": "LG",  # rows left out: ‖x‖² is not finite in float64
    "unit_sum": "LGd",  # Σ u
    "unit_sq_total": "LG",  # Σ ‖u‖²
    "unit_sq_sum": "Ld",  # Σ u_j²
    "sum": "Ld",  # Σ x
    "sq_sum": "Ld",  # Σ x_j²
    "norm_sum": "L",  # Σ ‖x‖
    "norm_sq_sum": "L",  # Σ ‖x‖²
    "sentence_sq_sum": "LG",  # Σ ‖g‖², g = Σ u over the tokens of one sentence
    "sentence_size_sq_sum": "LG",  # Σ T², T = the tokens of one sentence that were used
    "n_sentences": "LG",  # sentences with at least one token used
    "n_empty": "LG",  # sentences without a token
    "second_moment": "Ldd",  # Σ x xᵀ, upper triangle
    "unit_second_moment": "Ldd",  # Σ u uᵀ, upper triangle
}
_COUNTS = frozenset({"count", "n_zero", "n_nonfinite", "n_sentences", "n_empty"})


def field_dtype(field: str) -> torch.dtype:
    """int64 for counts, float64 for sums."""
    return torch.int64 if field in _COUNTS else torch.float64


def field_shape(field: str, layers: int, dim: int, groups: int = GROUPS) -> tuple[int, ...]:
    """The shape of `field` for so many layers, groups and columns."""
    sizes = {"L": layers, "G": groups, "d": dim}
    return tuple(sizes[axis] for axis in _SHAPES[field])


def zero_sums(
    fields: Sequence[str],
    layers: int,
    dim: int,
    *,
    groups: int = GROUPS,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Sums of nothing, by name.

    Example:
        >>> zero_sums(("count",), layers=2, dim=3)["count"].shape
        torch.Size([2, 64])
    """
    return {
        field: torch.zeros(field_shape(field, layers, dim, groups), dtype=field_dtype(field), device=device)
        for field in fields
    }
