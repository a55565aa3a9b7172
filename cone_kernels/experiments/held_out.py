"""A centering judged on rows that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.result import finite
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.centering import Centering
    from cone_kernels.state.cone_state import Moments

# Three quarters of the rows fit a centering that is judged on the fourth, in turn.
FOLDS = 4
# By how much, for each row, sums of the same rows may differ: another processor rounds otherwise.
_SAME_ROWS = 1e-3


@dataclass(frozen=True)
class Judged:
    """What a centering does to rows that it was not fitted on.

    Attributes:
        value, stderr: their mean cosine after it, over pairs of rows that one fit maps; of several fits without those
            of neighbours, which are alike.
        before: the mean cosine of the same pairs before it.
        change: after less before, with the paired error.
        folds: how many fits there are; 1 of one that was fitted elsewhere.
        fitted_on: rows of the smallest fit.
    """

    value: float
    stderr: float
    before: float
    change: Claim
    folds: int
    fitted_on: int

    def to_dict(self) -> dict[str, Any]:
        """The judgement as JSON data."""
        numbers = {"value": finite(self.value), "stderr": finite(self.stderr), "before": finite(self.before)}
        return {**numbers, "folds": self.folds, "fitted_on": self.fitted_on}


Blocks = Callable[[], Iterable[tuple["Tensor", "Tensor"]]]
"""Gives, at every call, the rows (n, d) that count and their jackknife groups (n,), block by block."""


def of_same_rows(a: Moments, b: Moments) -> bool:
    """Whether the sums of two layers are of the same rows: group for group as many, with the same sum at length 1.

    Args:
        a, b: sums of one layer each, whatever second moments they have.
    """
    if a.dim != b.dim:
        return False
    counts, others = a.count.cpu(), b.count.cpu()
    apart = (a.unit_sum.cpu() - b.unit_sum.cpu()).norm(dim=-1)
    return bool((counts == others).all()) and bool((apart <= _SAME_ROWS * counts).all())


def cross_fitted(blocks: Blocks, moments: Moments, fit: dict[str, Any]) -> Judged | str:
    """The centering fitted on three quarters of the rows and judged on the fourth, four times; or why it is not.

    A quarter is every fourth block of neighbouring groups.

    Args:
        blocks: gives the rows.
        moments: their sums, which say how many each group has.
        fit: keywords of `Centering.fit`.
    """
    from cone_kernels.centering import Centering
    from cone_kernels.state.cone_state import Moments
    from cone_kernels.sums import jackknife_blocks

    block_of = jackknife_blocks(moments.count[0])
    if int(block_of.max()) + 1 < 2 * FOLDS:
        return f"there are too few rows to judge it on others than those it is fitted on: {int(moments.count.sum())}"
    keep: dict[str, Any] = {"second_moment": fit["method"] != "mean"}
    folds = [Moments.empty("sentence", [0], moments.dim, **keep) for _ in range(FOLDS)]
    for rows, groups in blocks():
        fold = block_of[groups] % FOLDS
        for number, part in enumerate(folds):
            part.add_rows(slice(None), rows[fold == number][None], groups[fold == number], "auto")
    try:
        fits = [Centering.fit(_all_but(folds, number), **fit) for number in range(FOLDS)]
    except ValueError as error:
        return f"it cannot be fitted on three quarters of the rows ({error})"
    return judged(blocks, moments, fits)


def judged(blocks: Blocks, moments: Moments, fits: Sequence[Centering]) -> Judged:
    """The rows of fold f, every f-th block of neighbouring groups, mapped by fit f.

    Args:
        blocks: gives the rows.
        moments: their sums.
        fits: one for each fold, none of whose rows it was fitted on.
    """
    import torch

    from cone_kernels.statistics.estimates import Estimates
    from cone_kernels.sums import jackknife_blocks

    block_of = jackknife_blocks(moments.count[0])
    size, dim = int(block_of.max()) + 1, moments.dim
    sums, count = torch.zeros(2, size, dim, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for rows, groups in blocks():
        own = block_of[groups]
        opened = torch.empty_like(rows)
        for number, fit in enumerate(fits):
            mine = own % len(fits) == number
            opened[mine] = fit(rows[mine])
        # A row that is mapped to zero has no direction, before or after.
        there = (rows.norm(dim=1) > 0) & (opened.norm(dim=1) > 0)
        count.index_add_(0, own[there], torch.ones(int(there.sum()), dtype=torch.float64))
        for at, side in enumerate((rows, opened)):
            units = torch.nn.functional.normalize(side[there], dim=1)
            sums[at].index_add_(0, own[there], units)
    values, left_out = _within(sums, count, torch.arange(size) % len(fits), between_blocks=len(fits) > 1)
    found = Estimates.of_jackknife(values, left_out, count.expand(2, -1))
    change = found.at(torch.tensor([1])).less(found.at(torch.tensor([0]))).claims()[0]
    before, after = values.tolist()
    return Judged(after, float(found.stderr[1]), before, change, len(fits), min(fit.count for fit in fits))


def _within(sums: Tensor, count: Tensor, fold: Tensor, *, between_blocks: bool) -> tuple[Tensor, Tensor]:
    """The mean cosine of pairs of one fold, (2,), and that with each block left out, (2, B).

    Args:
        sums: (2, B, d) Σ u of each block.
        count: (B,) its rows.
        fold: (B,) its fold.
        between_blocks: only pairs of two blocks: neighbours are alike, and of a fold they are a large share.
    """
    import torch

    folds = int(fold.max()) + 1
    total = sums.new_zeros(2, folds, sums.shape[2]).index_add_(1, fold, sums)
    n = count.new_zeros(folds).index_add_(0, fold, count)
    # What pairs of a row with itself, or of rows of one block, add.
    own = sums.square().sum(2) if between_blocks else count.expand(2, -1)  # (2, B)
    own_pairs = count.square() if between_blocks else count
    all_own = own.new_zeros(2, folds).index_add_(1, fold, own)
    all_pairs = count.new_zeros(folds).index_add_(0, fold, own_pairs)
    cosines, pairs = total.square().sum(2) - all_own, n.square() - all_pairs  # (2, F), (F,)
    left = (total[:, fold] - sums).square().sum(2) - (all_own[:, fold] - own)  # (2, B)
    left_pairs = (n[fold] - count).square() - (all_pairs[fold] - own_pairs)
    of_others = cosines.sum(1, keepdim=True) - cosines[:, fold]
    values = cosines.sum(1) / torch.where(pairs.sum() > 0, pairs.sum(), torch.nan)
    return values, (of_others + left) / (pairs.sum() - pairs[fold] + left_pairs)


def _all_but(folds: Sequence[Moments], number: int) -> Moments:
    first, *others = (part for at, part in enumerate(folds) if at != number)
    for part in others:
        first = first.merge(part)
    return first
