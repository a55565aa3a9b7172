"""How far apart the means of two samples lie, against how far apart chance alone would put them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cone_kernels.statistics.claims import ALPHA, Claim
from cone_kernels.statistics.estimates import turns
from cone_kernels.statistics.mean_products import GroupedSums
from cone_kernels.sums import jackknife_blocks

_BLOCKS, _LEAST_ROWS = 16, 8


def distance_of_means(a: GroupedSums, b: GroupedSums, alpha: float = ALPHA) -> Claim:
    """The distance of two means against that of two samples of one population, which is never 0.

    What each group adds to its mean is turned around by chance (a wild bootstrap, Wu 1986): where both populations have
    one mean, the distance is the length of such a sum. Its null is the root of the mean square of that length, which is
    the jackknife variance of both means over all directions; its bound reaches up to the quantile 1 − alpha. Rows that
    are alike over longer stretches than a group has make both too small.

    Args:
        a, b: of independent samples of one width, groups without rows among them.
        alpha: how often the claim may be "greater" by chance.

    Returns:
        A claim that is greater, or undecided; undecided where one sample has fewer than two groups, or both together
        have too few for this rate.

    Examples:
        >>> distance_of_means(GroupedSums(images, n), GroupedSums(texts, m)).verdict
        'greater'
    """
    means = [one.sums.sum(0) / one.rows.sum() for one in (a, b)]
    distance = float((means[0] - means[1]).norm())
    if min(int((one.rows > 0).sum()) for one in (a, b)) < 2:
        return Claim(distance, null=math.nan, bound=math.nan)
    parts = torch.cat([_deviations(one) for one in (a, b)])  # (G, d)
    null = float(parts.norm())
    signs = turns(len(parts))
    if len(signs) * alpha < 1:
        return Claim(distance, null=null, bound=math.nan)
    lengths = ((signs @ (parts @ parts.mT)) * signs).sum(1).clamp_min(0).sqrt()
    return Claim(distance, null=null, bound=float(lengths.quantile(1 - alpha, interpolation="higher")) - null)


def long_stretches(sample: GroupedSums) -> GroupedSums:
    """Neighbouring jackknife groups joined into sixteen or so, each of eight rows or more, for `distance_of_means`.

    A distance adds up what all directions vary, so it shows even the little that is lost where alike neighbours, as
    five captions of an image, fall into two groups. Samples of one population, 200 and 1000 rows of width 64 that are
    alike in fives, were called "greater" at a rate of 0.31 by all groups and of 0.11 by sixteen; independent rows at
    0.05 by both (150 draws each).

    Examples:
        >>> len(long_stretches(GroupedSums(moments.unit_sum[0], moments.count[0].double())).rows)
        16
    """
    blocks = jackknife_blocks(sample.rows, max(_LEAST_ROWS, math.ceil(float(sample.rows.sum()) / _BLOCKS)))
    count = int(blocks[-1]) + 1
    sums, rows = (field.new_zeros(count, *field.shape[1:]) for field in (sample.sums, sample.rows))
    return GroupedSums(sums.index_add_(0, blocks, sample.sums), rows.index_add_(0, blocks, sample.rows))


def _deviations(sample: GroupedSums) -> Tensor:
    """(G', d): what each group with rows adds to the mean; the squares add up to its jackknife variance."""
    there = sample.rows > 0
    sums, rows = sample.sums[there], sample.rows[there]
    left_out = (sums.sum(0) - sums) / (rows.sum() - rows)[:, None]
    return (left_out - left_out.mean(0)) * math.sqrt((len(rows) - 1) / len(rows))
