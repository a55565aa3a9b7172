"""The plain sums that a state is made of: names, dtypes, shapes, and the jackknife group that a sentence adds to.

L layers, G jackknife groups, width d. u = x/‖x‖. The order of the names is the order in which ops take the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cone_kernels.devices import has_no_values

# A sentence belongs to one group (see `jackknife_groups`), so every statistic has a jackknife error.
GROUPS = 64
# The first stretches have 1, 2, 4 and 8 sentences, so that a small corpus fills many groups too; the rest have 16.
_STRETCHES = 16  # of each length
# Where the longer ones begin for sentences counted from 16 on; and how often the length has doubled for those from
# 0, 32, 64, ... and 256 on, four bits each, the first in the last place.
_LONGER_FROM = np.array([32, 64, 128, 256])
_DOUBLINGS = 0x4_3333_2210

COSINE_FIELDS = ("count", "n_zero", "n_nonfinite", "unit_sum", "unit_sq_total")
ROW_FIELDS = (*COSINE_FIELDS, "unit_sq_sum", "sum", "sq_sum", "norm_sum", "norm_sq_sum")
SENTENCE_SUM_FIELDS = ("sentence_sq_sum", "sentence_size_sq_sum", "n_sentences", "sentence_unit_sum", "n_cancelled")
TOKEN_FIELDS = (*ROW_FIELDS, *SENTENCE_SUM_FIELDS)
SENTENCE_FIELDS = (*ROW_FIELDS, "n_empty")
SECOND_MOMENT_FIELDS = ("second_moment", "unit_second_moment")
# Kept beside Σ x xᵀ: what its estimates need to hold for rows of any lengths, see `statistics.population`.
FOURTH_ORDER_FIELDS = ("cubic_sum", "quartic_sum")
PRODUCT_FIELDS = (*SECOND_MOMENT_FIELDS, *FOURTH_ORDER_FIELDS)

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
    "sentence_unit_sum": "LGd",  # Σ g/‖g‖ of the sentences that have a direction
    "n_cancelled": "LG",  # sentences with a token used but no direction: ‖g‖ is at most LEAST_MEAN_UNIT · T
    "n_empty": "LG",  # sentences without a token
    "second_moment": "Ldd",  # Σ x xᵀ, upper triangle
    "unit_second_moment": "Ldd",  # Σ u uᵀ, upper triangle
    "cubic_sum": "Ld",  # Σ ‖x‖² x
    "quartic_sum": "L",  # Σ ‖x‖⁴
}
_COUNTS = frozenset({"count", "n_zero", "n_nonfinite", "n_sentences", "n_cancelled", "n_empty"})
# What float32 leaves of a sentence's unit vectors that cancel is shorter than this share of their number; it points
# anywhere. kLeastMeanUnit in csrc/include/cone/moments.h is the same number.
LEAST_MEAN_UNIT = 2.0**-20


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

    Examples:
        >>> zero_sums(("count",), layers=2, dim=3)["count"].shape
        torch.Size([2, 64])
    """
    return {
        field: torch.zeros(field_shape(field, layers, dim, groups), dtype=field_dtype(field), device=device)
        for field in fields
    }


def symmetric(upper: Tensor) -> Tensor:
    """The whole matrix (..., d, d) from its upper triangle."""
    whole: Tensor = upper.triu() + upper.triu(1).mT
    return whole


def cosine_of_sums(unit_sum: Tensor, unit_sq_total: Tensor, count: Tensor) -> Tensor:
    """The mean pairwise cosine (...) of Σu (..., d), Σ‖u‖² (...) and n (...); NaN where there is no pair."""
    n = count.double()
    pairs = torch.where(n > 1, n * (n - 1), torch.nan)
    return (unit_sum.square().sum(-1) - unit_sq_total) / pairs


def jackknife_groups(sentence_ids: Tensor) -> Tensor:
    """The groups, in [0, 64), of sentences with these indices in the corpus.

    The corpus is cut into stretches, the first 16 of one sentence, 16 each of 2, 4 and 8, and from sentence 240 on all
    of 16; stretch s is in group s mod 64. If single sentences were dealt out, those that belong together (a premise
    and its hypotheses, the sentences of a document) would be in different groups, as if they were independent, and the
    standard error would come out too small (on SNLI by a quarter). For sentences in random order both ways agree.

    Args:
        sentence_ids: int64 of any shape, 0 or more.

    Examples:
        >>> jackknife_groups(torch.tensor([0, 1, 15, 16, 17, 18, 240, 255, 256]))
        tensor([ 0,  1, 15, 16, 16, 17,  0,  0,  1])
    """
    # Counted from 16 on, stretches of length 2^k are those of [16 * 2^k, 32 * 2^k): shifted by k they count up by one.
    if sentence_ids.device.type != "cpu" or has_no_values(sentence_ids):
        shifted = sentence_ids + _STRETCHES
        doublings = (_DOUBLINGS >> 4 * (shifted >> 5).clip(0, 8)) & 7
        return (shifted >> doublings) + _STRETCHES * (doublings - 1) & (GROUPS - 1)
    # The same in NumPy, whose operations on a few numbers take the host less time than torch's.
    numbers = sentence_ids.numpy() + _STRETCHES
    k = _LONGER_FROM.searchsorted(numbers, side="right")
    return torch.from_numpy(np.asarray((numbers >> k) + _STRETCHES * (k - 1) & (GROUPS - 1)))


def jackknife_blocks(rows: Tensor, least: int = 8) -> Tensor:
    """The block of each group: neighbouring groups joined until a block has `least` rows.

    Groups that follow each other hold stretches that do, so blocks are stretches too. In a corpus of less than 500
    sentences many groups have one to seven, and a premise is in another group than its hypotheses.

    Args:
        rows: (G,) rows of each group.
        least: rows of a block at least, where there are so many.

    Returns:
        (G,) int64, ascending from 0.

    Examples:
        >>> jackknife_blocks(torch.tensor([1, 1, 2, 4, 8, 3]), least=4)
        tensor([0, 0, 0, 1, 2, 2])
    """
    blocks, block, held = [], 0, 0
    for count in rows.tolist():
        blocks.append(block)
        held += count
        if held >= least:
            block, held = block + 1, 0
    last = max(block - 1, 0)
    return torch.tensor([min(one, last) for one in blocks])


def jackknife_stderr(left_out: Tensor, not_empty: Tensor) -> Tensor:
    """SE² = (G'−1)/G' · Σ_g (θ_(−g) − θ̄)² over the G' groups that are not empty.

    Args:
        left_out: (L, G) the statistic with group g left out.
        not_empty: (L, G) bool.

    Returns:
        (L,) float64; NaN where G' < 2.

    Examples:
        >>> jackknife_stderr(left_out, moments.count > 0)
    """
    groups = not_empty.sum(-1).double()
    values = torch.where(not_empty, left_out, 0.0)
    mean = values.sum(-1) / groups
    squares = torch.where(not_empty, (left_out - mean[:, None]).square(), 0.0).sum(-1)
    return torch.where(groups >= 2, ((groups - 1) / groups * squares).sqrt(), torch.nan)
