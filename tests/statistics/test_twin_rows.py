"""Errors of twins' cosines: the jackknife over the groups that have rows."""

from __future__ import annotations

import math

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
