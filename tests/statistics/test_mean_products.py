"""The product of two means, against every pair of vectors one by one."""

from __future__ import annotations

import itertools

import pytest
import torch

from cone_kernels.statistics.mean_products import GroupedSums, mean_product
from tests.support.moment_cases import normal

# Of each of three groups, of one sample and of the other: where groups are the same they have the same sentences.
SIZES = [2, 1, 3]


def grouped(rows: torch.Tensor) -> GroupedSums:
    return GroupedSums(
        torch.stack([part.sum(0) for part in rows.split(SIZES)]), torch.tensor(SIZES, dtype=torch.float64)
    )


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("without_a", [True, False])
@pytest.mark.parametrize("without_b", [True, False])
def test_it_is_the_mean_over_pairs(same: bool, without_a: bool, without_b: bool) -> None:
    a, b = (normal(6, 4, dtype=torch.float64, seed=seed) for seed in (0, 1))
    number = [group for group, size in enumerate(SIZES) for _ in range(size)]

    def mean_without(left_out: int | None) -> float:
        products = [
            float(a[i] @ b[j])
            for i, j in itertools.product(range(6), repeat=2)
            if not (same and number[i] == number[j])
            and not (without_a and number[i] == left_out)
            and not (without_b and number[j] == left_out)
        ]
        return sum(products) / len(products)

    found = mean_product(grouped(a), grouped(b), same=same, without_a=without_a, without_b=without_b)
    if without_a or without_b:
        assert found.tolist() == pytest.approx([mean_without(group) for group in range(3)])
    else:
        assert float(found) == pytest.approx(mean_without(None))
        assert torch.equal(mean_product(grouped(a), grouped(b), same=same), found)  # by default none is left out
