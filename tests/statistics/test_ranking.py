"""AUC, Spearman, MRR and recall@k against other libraries and plain computation; influences against leaving out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cone_kernels.statistics import ranking
from cone_kernels.statistics.estimates import Estimates

N = 60
GENERATOR = np.random.default_rng(7)
SCORES = torch.from_numpy(GENERATOR.normal(size=(3, N)).round(1))  # with ties
GRADES = torch.from_numpy((SCORES[0].numpy() + GENERATOR.normal(size=N)).round(0))
Statistic = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@pytest.mark.parametrize("ties", [True, False])
def test_auc_is_scikit_learns(ties: bool) -> None:
    scores = SCORES if ties else SCORES + torch.linspace(0, 1e-3, N)
    found = ranking.auc(scores, GRADES > 0)[0]
    wanted = [roc_auc_score(GRADES > 0, row) for row in scores]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("ties", [True, False])
def test_spearman_is_scipys(ties: bool) -> None:
    scores = SCORES if ties else SCORES + torch.linspace(0, 1e-3, N)
    found = ranking.spearman(scores, GRADES)[0]
    wanted = [spearmanr(row, GRADES).statistic for row in scores]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("statistic", "labels"), [(ranking.auc, GRADES > 0), (ranking.spearman, GRADES)])
def test_influences_are_what_leaving_an_item_out_changes(statistic: Statistic, labels: Tensor) -> None:
    value, own = statistic(SCORES, labels)
    torch.testing.assert_close(own.sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)
    for item in range(0, N, 7):
        others = torch.arange(N) != item
        left_out = statistic(SCORES[:, others], labels[others])[0]
        torch.testing.assert_close(value - left_out, own[:, item], rtol=0.12, atol=4e-4)


def test_the_error_of_a_mean_is_the_textbook_one() -> None:
    value, own = ranking.mean(SCORES)
    torch.testing.assert_close(value, SCORES.mean(1))
    found = Estimates.of_influences(value, own, torch.arange(N))
    torch.testing.assert_close(found.stderr, SCORES.std(1) / N**0.5)


def test_what_has_no_order_is_not_defined() -> None:
    for value, own in (
        ranking.auc(SCORES, torch.ones(N, dtype=torch.bool)),
        ranking.spearman(torch.ones(1, N, dtype=torch.float64), GRADES),
        ranking.spearman(SCORES, torch.ones(N, dtype=torch.float64)),
    ):
        assert value.isnan().all()
        assert not own.any()


def test_ranks_mrr_and_recall_by_plain_sorting() -> None:
    similar = torch.from_numpy(GENERATOR.normal(size=(5, 30)))
    query, relevant = torch.tensor([0, 0, 1, 2, 3, 4, 4, 4]), torch.tensor([3, 9, 0, 29, 4, 1, 2, 3])
    ranks = ranking.ranks_of(similar[query], relevant)
    asked = list(zip(query.tolist(), relevant.tolist(), strict=True))
    wanted = [1 + sorted(similar[q].tolist(), reverse=True).index(float(similar[q, r])) for q, r in asked]
    assert ranks.tolist() == wanted
    own = [[rank for (q, _), rank in zip(asked, wanted, strict=True) if q == one] for one in range(5)]
    assert ranking.of_queries("mrr", ranks, query, 5).tolist() == [1 / min(one) for one in own]
    for k in (1, 10):
        shares = [np.mean([rank <= k for rank in one]) for one in own]
        assert ranking.of_queries(f"recall@{k}", ranks, query, 5).tolist() == shares
    tied = torch.tensor([[0.5, 0.5, 0.5, 0.1]])
    assert ranking.ranks_of(tied, torch.tensor([1])).tolist() == [2.0]


def test_errors_of_groups_are_those_of_their_sums() -> None:
    value, own = ranking.auc(SCORES, GRADES > 0)
    group = torch.arange(N) // 4
    # What all groups have in common says nothing of how they vary.
    found = Estimates.of_influences(value, own + 0.5, group)
    sums = own.reshape(3, -1, 4).sum(2)
    torch.testing.assert_close(found.stderr, (sums.var(1) * sums.shape[1]).sqrt())
    difference = found.at(torch.tensor([1])).less(found.at(torch.tensor([0])))
    torch.testing.assert_close(difference.stderr, ((sums[1] - sums[0]).var(keepdim=True) * sums.shape[1]).sqrt())
    assert found.degrees.tolist() == [14.0] * 3
    undefined = Estimates.of_influences(torch.tensor([float("nan"), 0.5], dtype=torch.float64), own[:2], group)
    assert undefined.bounds().isnan().tolist() == [True, False]
    assert float(undefined.stderr[0]) == 0
    # Groups need not be numbered one after the other; of two the error is that of two, of one it is none.
    apart = Estimates.of_influences(value, own, 3 * group + 2)
    torch.testing.assert_close(apart.stderr, found.stderr)
    assert apart.degrees.tolist() == [14.0] * 3
    two, one = (Estimates.of_influences(value, own, torch.arange(N) // size) for size in (N // 2, N))
    sums = own.reshape(3, 2, -1).sum(2)
    torch.testing.assert_close(two.stderr, (sums[:, 1] - sums[:, 0]).abs())
    assert one.stderr.tolist() == [0.0] * 3
