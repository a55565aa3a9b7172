"""The distance of two means against chance: by hand, by all turns of few groups, and how often it is wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from cone_kernels.statistics.mean_distance import distance_of_means, long_stretches
from cone_kernels.statistics.mean_products import GroupedSums


def grouped(rows: np.ndarray, sizes: list[int]) -> GroupedSums:
    """Rows cut into groups of these sizes, empty ones among them."""
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    return GroupedSums(torch.tensor(np.stack([part.sum(0) for part in parts])), torch.tensor(sizes).double())


def test_by_all_turns_of_few_groups() -> None:
    random = np.random.default_rng(0)
    samples = [(random.normal(size=(9, 3)), [4, 0, 2, 3]), (random.normal(size=(7, 3)) + 1, [3, 1, 3])]
    deviations = []
    for rows, sizes in samples:
        group = np.repeat(range(len(sizes)), sizes)
        left = np.stack([rows[group != one].mean(0) for one in np.unique(group)])
        deviations += list((left - left.mean(0)) * math.sqrt(2 / 3))
    lengths = sorted(
        float(np.linalg.norm(np.asarray(signs) @ np.stack(deviations)))
        for signs in itertools.product((-1, 1), repeat=6)
    )
    found = distance_of_means(*(grouped(*sample) for sample in samples))
    (a, _), (b, _) = samples
    assert found.estimate == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), rel=1e-12)
    assert found.null == pytest.approx(math.sqrt(np.mean(np.square(lengths))), rel=1e-12)
    # Every turn and its opposite have one length: of the 32 that differ the second largest leaves 1 in 20.
    assert found.null + found.bound == pytest.approx(lengths[-3], rel=1e-12)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        ([1] * 64, [8] * 8),  # eight at least
        ([0, 20, 15, *[10] * 60, 5], [45, *[40] * 13, 75]),  # of 640 a sixteenth, 40, at least
        ([39, 38, 1, 40] * 5 + [40, 10], [*[77, 41] * 4, 77, 41, 50]),
        ([5, 0, 2], [7]),
    ],
)
def test_neighbouring_groups_are_joined(rows: list[int], sizes: list[int]) -> None:
    sums = torch.randn(len(rows), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = long_stretches(GroupedSums(sums, torch.tensor(rows).double()))
    assert found.rows.tolist() == sizes
    ends = [next(at for at, sum_ in enumerate(itertools.accumulate(rows), 1) if sum_ >= end)
            for end in itertools.accumulate(sizes)]  # fmt: skip
    wanted = [sums[begin:end].sum(0) for begin, end in itertools.pairwise([0, *ends[:-1], len(rows)])]
    torch.testing.assert_close(found.sums, torch.stack(wanted))


def test_it_is_wrong_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((16,), 8.0, dtype=torch.float64)
    wrong = 0
    for _ in range(60):
        rows = torch.randn(2, 16, 8, 5, dtype=torch.float64, generator=generator) + torch.tensor([3.0, 0, 0, 0, 0])
        a, b = (GroupedSums(one.sum(1), sizes) for one in rows)
        wrong += distance_of_means(a, b).verdict == "greater"
        moved = GroupedSums(a.sums + 8 * torch.tensor([0.0, 0, 0, 1, 0]), sizes)
        assert distance_of_means(moved, b).verdict == "greater"
    assert wrong <= 8  # of 60 at 1 in 20 more than 8 come once in 300 seeds


def test_two_groups_are_enough_and_as_many_turns_as_the_rate_needs() -> None:
    """Of two groups and two there are eight turns, of which the longest leaves 1 in 8."""
    random = np.random.default_rng(1)
    a, b = (GroupedSums(torch.from_numpy(random.normal(size=(2, 3))) / 100, torch.ones(2).double()) for _ in "ab")
    ends = [float((one.sums[0] - one.sums[1]).norm()) / 2 for one in (a, b)]
    null = math.sqrt(ends[0] ** 2 + ends[1] ** 2)
    for alpha, known in ((0.125, True), (0.1, False)):
        found = distance_of_means(a, b, alpha)
        assert found.null == pytest.approx(null)
        assert math.isfinite(found.bound) == known
    halves = [sign * (one.sums[0] - one.sums[1]) / 2 for one in (a, b) for sign in (1, -1)]
    longest = max(
        float(sum(sign * half for sign, half in zip(signs, halves, strict=True)).norm()) / math.sqrt(2)
        for signs in itertools.product((-1, 1), repeat=4)
    )
    found = distance_of_means(a, b, 0.125)
    assert found.null + found.bound == pytest.approx(longest)


@pytest.mark.parametrize("sizes", [([5], [2] * 9), ([2, 0, 3], [1, 0, 0]), ([2, 2], [2, 2])])
def test_of_few_groups_it_is_undecided(sizes: tuple[list[int], list[int]]) -> None:
    a, b = (grouped(np.full((sum(one), 2), float(at)), one) for at, one in enumerate(sizes))
    found = distance_of_means(a, b)
    assert found.estimate == pytest.approx(math.sqrt(2))
    assert found.verdict == "undecided"
    assert math.isnan(found.bound)
