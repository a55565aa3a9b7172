"""The product of two mean vectors from sums by group, free of the bias that a mean has with itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class GroupedSums:
    """Vectors added up by group.

    Attributes:
        sums: (G, d) float64.
        rows: (G,) float64 how many.
    """

    sums: Tensor
    rows: Tensor


def mean_product(
    a: GroupedSums, b: GroupedSums, *, same: bool, without_a: bool = False, without_b: bool = False
) -> Tensor:
    """The mean of x·y over vectors x of a and y of b: over those of different groups, where the groups are the same.

    Two vectors of one group may be of one sentence, or of neighbours, and alike for that.

    Args:
        a, b: of one width.
        same: whether group g of the one has the same sentences as group g of the other; then both have as many.
        without_a, without_b: leave each group in turn out of a, of b, or of both.

    Returns:
        () float64, or (G,) with a group left out.

    Examples:
        >>> mean_product(a, a, same=True)  # the mean cosine of vectors at length 1, over pairs of different groups
    """
    total_a, total_b = (one.sums.sum(0) - (one.sums if out else 0) for one, out in ((a, without_a), (b, without_b)))
    rows_a, rows_b = (one.rows.sum() - (one.rows if out else 0) for one, out in ((a, without_a), (b, without_b)))
    product: Tensor = (total_a * total_b).sum(-1)
    pairs = rows_a * rows_b
    if same:
        own, own_pairs = (a.sums * b.sums).sum(1), a.rows * b.rows
        out = without_a or without_b
        product = product - (own.sum() - (own if out else 0))
        pairs = pairs - (own_pairs.sum() - (own_pairs if out else 0))
    return product / pairs
