"""The groups are the stretches that the docstring tells of, and their errors hold where neighbours are alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels import metrics, row_moments
from cone_kernels.state.moments import Moments
from cone_kernels.sums import cosine_of_sums, jackknife_groups, jackknife_stderr
from tests.support.moment_cases import GROUP_OF


def test_stretches_counted_one_by_one() -> None:
    assert jackknife_groups(torch.arange(len(GROUP_OF))).tolist() == GROUP_OF


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_any_ids_in_any_order(ids: list[int]) -> None:
    found = jackknife_groups(torch.tensor(ids)).tolist()
    assert found == [jackknife_groups(torch.tensor([one])).item() for one in ids]
    assert found == [GROUP_OF[one] if one < 240 else (one - 240) // 16 % 64 for one in ids]


def by_comparisons(ids: torch.Tensor) -> torch.Tensor:
    """The groups by asking of each length whether it has been reached."""
    shifted = ids + 16
    k = sum((shifted >= 16 * length).long() for length in (2, 4, 8, 16))
    return (16 * k + (shifted >> k) - 16) % 64


class Elsewhere(torch.Tensor):
    """Takes the way of a tensor on a GPU."""


def test_both_ways_of_counting_agree_for_any_id() -> None:
    generator = torch.Generator().manual_seed(0)
    around_powers = (2 ** torch.arange(63)[:, None] + torch.arange(-40, 41)).flatten()
    for ids in (
        torch.arange(20_000),
        around_powers[around_powers >= 0],
        torch.randint(2**62, (100_000,), generator=generator),
        torch.iinfo(torch.int64).max - torch.arange(100),
        torch.arange(24).reshape(2, 3, 4),
        torch.tensor(255),
        torch.empty(0, dtype=torch.int64),
    ):
        wanted = by_comparisons(ids)
        found = jackknife_groups(ids)
        assert (found.dtype, type(found)) == (torch.int64, torch.Tensor)
        assert torch.equal(found, wanted)
        assert torch.equal(jackknife_groups(ids.as_subclass(Elsewhere)).as_subclass(torch.Tensor), wanted)
    compiled = torch.compile(jackknife_groups, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.arange(999)), by_comparisons(torch.arange(999)))


def test_sums_are_by_these_groups() -> None:
    x = torch.randn(700, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.bincount(torch.tensor(GROUP_OF[:700]), minlength=64)
    assert torch.equal(row_moments(x)["count"], expected)
    moments = Moments.empty("sentence", [0], 5)
    moments.update(x[:100])
    moments.update(x[100:])
    assert torch.equal(moments.count[0], expected)


def test_the_error_is_of_the_groups_that_are_not_empty() -> None:
    left_out = torch.tensor([[1.0, 7.0, 2.0, 6.0], [1.0, 2.0, 3.0, 4.0], [1.0, math.nan, 3.0, 4.0]]).double()
    there = torch.tensor([[True, False, True, True], [False, True, False, False], [True, False, True, False]])
    # Of 1, 2 and 6 the mean is 3, of 1 and 3 it is 2; of one group no error is known.
    wanted = [math.sqrt(2 / 3 * (4 + 1 + 9)), math.nan, math.sqrt(1 / 2 * (1 + 1))]
    assert jackknife_stderr(left_out, there).tolist() == pytest.approx(wanted, nan_ok=True)


def test_of_one_row_there_is_no_pair_whatever_rounding_left() -> None:
    units, squares = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]).double(), torch.tensor([7.0, 0.999, 0.0])
    found = cosine_of_sums(units, squares.double(), torch.tensor([7, 1, 0]))
    assert found.tolist() == pytest.approx([18 / 42, math.nan, math.nan], nan_ok=True)


@pytest.mark.parametrize("families", [1, 4])
def test_the_error_is_the_spread_where_neighbours_are_alike(families: int) -> None:
    """Vectors of which `families` in a row share half of their variance, many corpora of them."""
    n, d, corpora = 1200, 24, 60
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(corpora, n // families, 1, d, generator=generator)
    own = torch.randn(corpora, n // families, families, d, generator=generator)
    vectors = (shared + own).reshape(corpora, n, d) + 0.7
    found = []
    for x in vectors:
        moments = Moments.empty("sentence", [0], d)
        moments.update(x)
        found.append((metrics.anisotropy(moments)[0], metrics.anisotropy_stderr(moments)[0]))
    values, errors = torch.tensor(found, dtype=torch.float64).T
    # The spread of 60 corpora is known to 9 %.
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=3 / math.sqrt(2 * corpora))
