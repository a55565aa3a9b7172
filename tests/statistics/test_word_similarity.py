"""Explained variance and intra-sentence similarity of drawn tokens, and means over words with their errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cone_kernels.statistics.word_similarity import (
    explained_variance,
    explained_variance_of_drawn,
    intra_sentence_similarity_of_drawn,
    over_words,
)


def test_explained_variance_is_that_of_the_singular_values() -> None:
    rows = torch.randn(4, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    wanted = [np.linalg.svd(one.numpy(), compute_uv=False) ** 2 for one in rows]
    assert explained_variance(rows).tolist() == pytest.approx([one[0] / one.sum() for one in wanted])
    assert float(explained_variance(rows[0, :1])) == pytest.approx(1)


def test_explained_variance_of_drawn_rows_covers_that_of_many_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(512, 16, dtype=torch.float64, generator=generator) + 0.3
    draws = torch.randn(20_000, 8, 16, dtype=torch.float64, generator=generator) + 0.3
    wanted, (found, stderr) = float(explained_variance(draws).mean()), explained_variance_of_drawn(pool, 8)
    assert abs(found - wanted) < 3 * stderr
    assert stderr == pytest.approx(float(explained_variance(draws).std()) / 64**0.5, rel=0.2)


def test_sentences_of_drawn_tokens() -> None:
    generator = torch.Generator().manual_seed(2)
    pool = torch.randn(500, 64, dtype=torch.float64, generator=generator)
    sizes = torch.tensor([2, 4, 9, 25] * 30)
    found = intra_sentence_similarity_of_drawn(pool, sizes)
    # Tokens that have nothing in common have a cosine of 1/√T with their mean.
    for size in (2, 4, 9, 25):
        assert float(found[sizes == size].mean()) == pytest.approx(size**-0.5, rel=0.03)
    alike = intra_sentence_similarity_of_drawn(torch.ones(30, 8, dtype=torch.float64), torch.tensor([3, 40]))
    assert alike.tolist() == pytest.approx([1, 1])


def test_means_over_words_have_the_error_of_their_draw() -> None:
    values = torch.tensor([[0.1, 0.5, 0.3, math.nan], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    found = over_words(values)
    assert found.values.tolist() == pytest.approx([0.3, 2.5])
    assert found.stderr.tolist() == pytest.approx([0.2 / 3**0.5, np.std([1, 2, 3, 4], ddof=1) / 2])
    assert found.degrees.tolist() == [2, 3]


def test_of_no_word_and_of_one_nothing_is_known() -> None:
    for values in (torch.empty(2, 0, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)):
        claims = over_words(values).claims()
        assert [claim.verdict for claim in claims] == ["undecided"] * 2
