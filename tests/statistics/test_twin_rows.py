"""Twins: errors by the jackknife over the groups that have rows, and what is kept of pairs that stream by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cone_kernels.statistics.twin_rows import TwinRows
from tests.support.moment_cases import normal


@pytest.mark.parametrize("n", [2, 5, 16])
def test_groups_without_rows_are_no_groups_of_the_error(n: int) -> None:
    a, b = normal(n, 6), normal(n, 6, seed=1)
    twins = TwinRows(6, 6)
    twins.add(a, b, first=0)
    cosines = torch.nn.functional.cosine_similarity(a.double(), b.double())
    # The first sixteen rows are a group each, so the jackknife is that of single rows.
    wanted = float(cosines.std()) / math.sqrt(n)
    assert twins.cosine() == pytest.approx((float(cosines.mean()), wanted), rel=1e-6)


def test_what_is_kept_of_pairs() -> None:
    a, b = normal(9, 3, dtype=torch.float64), normal(9, 3, dtype=torch.float64, seed=1)
    a[1], b[4, 0], a[5, 2] = 0, math.nan, math.inf
    twins = TwinRows(3, 3)
    used = [*twins.add(a[:6], b[:6], first=14).tolist(), *twins.add(a[6:8], b[6:8], 20), *twins.add(a[8:], b[8:], 22)]
    kept = [0, 2, 3, 6, 7, 8]
    assert [at for at, one in enumerate(used) if one] == kept
    assert (twins.count, twins.n_left_out) == (6, 3)
    u, v = (torch.nn.functional.normalize(rows[kept]) for rows in (a, b))
    cosines = (u * v).sum(1)
    torch.testing.assert_close(twins.cosines, cosines.float())
    # With the twin of another row of the block, half of its used rows further; a block of one has none.
    others = [(0, 2), (1, 0), (2, 1), (3, 4), (4, 3)]
    torch.testing.assert_close(twins.permuted, torch.stack([u[i] @ v[j] for i, j in others]).float())
    order = cosines.argsort().tolist()
    numbers = [14, 16, 17, 20, 21, 22]
    for count in (2, 6, 9):
        least = twins.furthest(count)
        assert [row for row, _ in least] == [numbers[at] for at in order[:count]]
        assert [one for _, one in least] == pytest.approx([float(cosines[at]) for at in order[:count]])
    logs = (b[kept].norm(dim=1) / a[kept].norm(dim=1)).log().numpy()
    # Rows 16 and 17 are of one group, as are 20 and 21.
    left_out = [logs[list(rest)].mean() for rest in ((1, 2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 2, 5), (0, 1, 2, 3, 4))]
    stderr = math.sqrt(3 * np.var(left_out))
    assert twins.log_ratio() == pytest.approx((logs.mean(), stderr, logs.std(ddof=1)))


def test_ratios_that_are_all_alike_have_no_spread_and_one_has_none_that_is_known() -> None:
    rows = normal(7, 3, dtype=torch.float64)
    twins = TwinRows(3, 3)
    twins.add(rows, 3 * rows, first=0)
    assert twins.log_ratio() == pytest.approx((math.log(3), 0, 0), abs=1e-7)
    one = TwinRows(3, 3)
    one.add(rows[:1], rows[:1].exp(), first=0)
    assert one.log_ratio()[1:] == pytest.approx((math.nan, math.nan), nan_ok=True)


def test_of_two_widths_there_is_no_cosine() -> None:
    twins = TwinRows(3, 4)
    twins.add(normal(7, 3), normal(7, 4), first=0)
    assert (len(twins.cosines), len(twins.permuted), twins.furthest(2)) == (0, 0, [])
    assert twins.count == 7
    assert math.isfinite(twins.log_ratio()[0])


@pytest.mark.parametrize(
    ("wide", "blocks", "determined"),
    [
        (3, [(0, 4)], True),  # three rows in three folds
        (4, [(0, 4)], False),
        (3, [(0, 3), (4, 3)], False),  # none in the fourth fold
    ],
)
def test_a_rotation_takes_as_many_rows_as_dimensions(
    wide: int, blocks: list[tuple[int, int]], determined: bool
) -> None:
    twins = TwinRows(3, wide)
    for first, n in blocks:
        twins.add(normal(n, 3, seed=first), normal(n, wide, seed=first + 1), first)
    assert (twins.rotation() is not None) == determined
