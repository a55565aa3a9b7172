"""Measures of contextualised words where nothing, or little, was gathered."""

from __future__ import annotations

import math

import numpy as np
import torch

from cone_kernels.experiments.contextual_words import contextual_words, listed
from cone_kernels.runs.token_plan import TokenPlan
from cone_kernels.runs.token_sums import LayerTokens
from cone_kernels.statistics.estimates import Estimates
from cone_kernels.sums import GROUPS


def test_of_no_tokens_nothing_is_known() -> None:
    none = np.zeros(0, np.int64)
    plan = TokenPlan(none, none, none, none, none, 0, none, none)
    layers = [LayerTokens.empty(0, torch.zeros(1, 4)) for _ in range(2)]
    rows, change = contextual_words(layers, plan, torch.zeros(GROUPS, dtype=torch.int64))
    assert len(rows) == 2
    for row in rows:
        assert all(
            math.isnan(one.value) for one in (row.baseline, row.self_similarity, row.intra_sentence, row.explained)
        )
        assert math.isnan(row.intra_of_drawn)
    assert change.verdict == "undecided"


def test_an_error_of_no_degrees_of_freedom_is_not_known() -> None:
    degrees = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = listed(Estimates(torch.tensor([0.5, 0.25]).double(), torch.tensor([[0.1], [0.125]]).double(), degrees))
    assert [one.value for one in found] == [0.5, 0.25]
    assert math.isnan(found[0].stderr)
    assert found[1].stderr == 0.125
