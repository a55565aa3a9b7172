"""Streamed extremes, correlations and token counts: the same as computed at once, however the rows are cut."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cone_kernels.experiments.corpus_tokens import CorpusTokens
from cone_kernels.statistics.correlation import Correlation
from cone_kernels.statistics.extremes import Extreme, Extremes, block_rows, project
from tests.support.moment_cases import normal

CUTS = st.lists(st.integers(0, 40), max_size=6).map(sorted)


def streamed(projections: torch.Tensor, count: int, cuts: list[int]) -> Extremes:
    extremes = Extremes(count, projections.shape[1])
    ids = torch.arange(len(projections)).tensor_split(cuts)
    for block, rows in zip(ids, projections.tensor_split(cuts), strict=True):
        extremes.add(block, rows)
    return extremes


@pytest.mark.parametrize("dim", [1, 384, 4096, 1 << 20, 1 << 30])
def test_a_block_of_rows_takes_tens_of_megabytes_or_is_one_row(dim: int) -> None:
    taken = 8 * dim * block_rows(dim)  # bytes of float64
    assert block_rows(dim) == 1 if dim > 1 << 23 else 10e6 < taken < 100e6


@settings(max_examples=150, deadline=None)
@given(
    # Few values, so that ties are the rule.
    st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e300, 1e300)), max_size=40),
    st.integers(1, 12),
    CUTS,
)
def test_extremes_are_those_of_a_full_sort(rows: list[tuple[float, float]], count: int, cuts: list[int]) -> None:
    extremes = streamed(torch.tensor(rows, dtype=torch.float64).reshape(-1, 2), count, cuts)
    for axis in range(2):
        values = [float(row[axis]) for row in rows]
        descending = sorted(range(len(rows)), key=lambda i: (-values[i], i))[:count]
        ascending = sorted(range(len(rows)), key=lambda i: (values[i], i))[:count]
        assert extremes.highest(axis) == tuple(Extreme(i, values[i]) for i in descending)
        assert extremes.lowest(axis) == tuple(Extreme(i, values[i]) for i in ascending)


def test_order_of_blocks_is_nothing() -> None:
    projections = torch.tensor([[1.0], [2.0], [2.0], [1.0], [2.0]], dtype=torch.float64)
    extremes = Extremes(2, 1)
    for block in (torch.tensor([4, 3]), torch.tensor([2]), torch.tensor([1, 0])):
        extremes.add(block, projections[block])
    assert [one.index for one in extremes.highest(0)] == [1, 2]
    assert [one.index for one in extremes.lowest(0)] == [0, 3]


def test_extremes_refuse_what_has_no_order() -> None:
    with pytest.raises(ValueError, match="count: got 0; it must be at least 1"):
        Extremes(0, 1)
    with pytest.raises(ValueError, match="axes: got 0; it must be at least 1"):
        Extremes(1, 0)
    with pytest.raises(ValueError, match="projections: got values that are not finite"):
        Extremes(1, 1).add(torch.tensor([0]), torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match=r"projections: got shape \(2, 1\); it must be \(n, k\) = \(2, 3\)"):
        Extremes(1, 3).add(torch.tensor([0, 1]), torch.zeros(2, 1))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 3, 17, 384, 1000]), st.sampled_from([torch.float32, torch.bfloat16]), CUTS)
def test_projections_are_bitwise_the_same_in_any_blocks(dim: int, dtype: torch.dtype, cuts: list[int]) -> None:
    rows, axes = normal(1, 40, dim, dtype=dtype, shift=0.5)[0], normal(1, 2, dim, dtype=torch.float64, shift=0.0)[0]
    origin = axes[0] / 3
    whole = project(rows, axes, origin)
    assert torch.equal(torch.cat([project(block, axes, origin) for block in rows.tensor_split(cuts)]), whole)
    expected = (rows.double().numpy() - origin.numpy()) @ axes.numpy().T
    np.testing.assert_allclose(whole.numpy(), expected, rtol=1e-12, atol=1e-12 * dim)
    assert torch.equal(project(rows, axes), project(rows, axes, torch.zeros_like(origin)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 1e6]), CUTS)
def test_correlation_is_that_of_numpy(seed: int, mean: float, cuts: list[int]) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(40, 3)) @ generator.normal(size=(3, 3)) + mean
    correlation = Correlation(2)
    for block in torch.from_numpy(rows).tensor_split(cuts):
        correlation.add(block[:, :2], block[:, 2])
    expected = np.corrcoef(rows.T)[2, :2]
    # A mean of 1e6 leaves ten digits of the rows themselves.
    np.testing.assert_allclose(correlation.r.numpy(), expected, atol=1e-12 if mean < 1e6 else 1e-8)
    assert correlation.count == 40


@settings(max_examples=30, deadline=None)
@given(CUTS)
def test_a_constant_has_no_correlation(cuts: list[int]) -> None:
    x = torch.arange(40.0, dtype=torch.float64)
    correlation = Correlation(2)
    for block in x.tensor_split(cuts):
        correlation.add(torch.stack([block, torch.full_like(block, 0.1)], 1), block.square())
    assert float(correlation.r[0]) == pytest.approx(np.corrcoef(x, x**2)[0, 1], abs=1e-12)
    assert math.isnan(correlation.r[1])


def test_rounding_is_no_variation() -> None:
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    lengths = 8 + 8e-7 * x  # what counts is the share of the mean
    for resolution, varies in ((0.0, True), (1e-8, True), (1e-6, False)):
        correlation = Correlation(1, resolution)
        correlation.add(x[:, None], lengths)
        assert math.isfinite(correlation.r[0]) == varies


def test_correlation_leaves_out_what_is_not_defined() -> None:
    correlation = Correlation(1)
    correlation.add(torch.tensor([[1.0], [9.0], [2.0]]), torch.tensor([5.0, math.nan, 7.0]))
    correlation.add(torch.tensor([[4.0]]), torch.tensor([6.0]))
    assert float(correlation.r) == pytest.approx(np.corrcoef([1, 2, 4], [5, 7, 6])[0, 1], abs=1e-12)
    assert correlation.count == 3
    assert math.isnan(Correlation(1).r[0])


SENTENCES = st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=8), max_size=40)


@settings(max_examples=60, deadline=None)
@given(SENTENCES, CUTS)
def test_token_frequencies_are_those_of_the_whole_corpus(
    sentences: list[list[tuple[int, bool]]], cuts: list[int]
) -> None:
    tokens = CorpusTokens()
    for block in torch.arange(len(sentences)).tensor_split(cuts):
        window = [sentences[index] for index in block]
        tokens.append(
            [[token for token, _ in one] for one in window], [[int(added) for _, added in one] for one in window]
        )
    own = [[token for token, added in one if not added] for one in sentences]
    counts = Counter(token for one in own for token in one)
    lengths, frequencies = (torch.cat(parts).tolist() for parts in zip(*tokens.windows(), strict=True))
    assert lengths == [len(one) for one in sentences]
    assert {token: int(count) for token, count in enumerate(tokens.counts) if count} == counts
    for one, frequency in zip(own, frequencies, strict=True):
        if one:
            expected = sum(math.log(counts[token] / counts.total()) for token in one) / len(one)
            assert frequency == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(frequency)
