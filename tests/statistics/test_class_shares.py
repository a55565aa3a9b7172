"""Shares of classes in a cone: against all pairs, their errors, and how often random classes are told apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cone_kernels.statistics.class_shares import ClassShares, class_shares
from cone_kernels.statistics.estimates import joined

GROUPS = 64


def sums_of(u: Tensor, number: Tensor, group: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Σu, Σ‖u‖² and rows by class and group."""
    slot, n = number * GROUPS + group, classes * GROUPS
    total = torch.zeros(n, u.shape[1], dtype=torch.float64).index_add_(0, slot, u)
    squares = torch.zeros(n, dtype=torch.float64).index_add_(0, slot, u.square().sum(1))
    count = torch.bincount(slot, minlength=n)
    return total.reshape(classes, GROUPS, -1), squares.reshape(classes, -1), count.reshape(classes, -1)


def corpus(sentences: int, shares: list[float], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that are alike within a sentence, in classes drawn by chance: units, classes, groups."""
    sizes = torch.randint(5, 20, (sentences,), generator=generator)
    sentence = torch.repeat_interleave(torch.arange(sentences), sizes)
    x = 0.7 * torch.randn(sentences, 8, generator=generator)[sentence]
    x += torch.randn(len(sentence), 8, generator=generator)
    x[:, 0] += 1.7
    number = torch.multinomial(torch.tensor(shares), len(sentence), replacement=True, generator=generator)
    return torch.nn.functional.normalize(x.double(), dim=1), number, sentence % GROUPS


@pytest.mark.parametrize("shares", [pytest.param([0.2] * 5, marks=pytest.mark.slow), [0.5, 0.3, 0.15, 0.05]])
def test_classes_drawn_by_chance_are_seldom_told_apart(shares: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    false, times = 0, 300
    for _ in range(times):
        u, number, group = corpus(250, shares, generator)
        noisy = [
            torch.nn.functional.normalize(u + 0.1 * torch.randn(u.shape, generator=generator), dim=1) for _ in "ab"
        ]
        found = [class_shares(*sums_of(one, number, group, len(shares))).excess for one in (u, *noisy)]
        false += any(claim.differs for claim in joined(found).claims())
    assert 0.03 <= false / times <= 0.07


def test_a_class_that_points_along_the_cone_is_told() -> None:
    generator = torch.Generator().manual_seed(1)
    u, number, group = corpus(400, [0.8, 0.2], generator)
    u[number == 1, 0] += 1.0
    found = class_shares(*sums_of(torch.nn.functional.normalize(u, dim=1), number, group, 2))
    assert [claim.verdict for claim in found.excess.claims()] == ["less", "greater"]


def test_against_all_pairs_and_each_group_left_out() -> None:
    generator = torch.Generator().manual_seed(2)
    u, number, group = corpus(80, [0.6, 0.3, 0.1], generator)
    found = class_shares(*sums_of(u, number, group, 3))
    whole = pairs(u, number, 3)
    left_out = [pairs(u[group != one], number[group != one], 3) for one in range(GROUPS)]
    for name, values in whole.items():
        estimates = getattr(found, name)
        assert estimates.values.tolist() == pytest.approx(values)
        spread = torch.tensor([one[name] for one in left_out], dtype=torch.float64)
        wanted = ((GROUPS - 1) * spread.var(0, correction=0)).sqrt()
        assert estimates.stderr.tolist() == pytest.approx(wanted.tolist())
    assert float(found.share.values.sum()) == pytest.approx(1, abs=1e-14)
    assert found.rows.tolist() == torch.bincount(number).tolist()


def pairs(u: Tensor, number: Tensor, classes: int) -> dict[str, list[float]]:
    cosines = u @ u.T
    cosines.fill_diagonal_(0)
    of_class = torch.nn.functional.one_hot(number, classes).double()
    total = of_class.T @ cosines @ of_class  # (classes, classes) over all pairs of a row of each
    n, found = len(u), []
    for one in range(classes):
        k = int((number == one).sum())
        own, across = total[one, one], total[one].sum() - total[one, one]
        rest = (total.sum() - own - 2 * across) / ((n - k) * (n - k - 1))
        share = (own + across) / total.sum()
        across, within = across / (k * (n - k)), own / (k * (k - 1))
        found.append([share, share - k / n, within, across, rest, total.sum() / (n * (n - 1)) - rest])
    names = ("share", "excess", "within", "across", "without", "opens")
    return {name: [float(row[at]) for row in found] for at, name in enumerate(names)}


def verdicts(found: ClassShares) -> list[str]:
    return [claim.verdict for claim in found.excess.claims()]


@pytest.mark.parametrize(("groups", "verdict"), [(7, "undecided"), (9, "greater")])
def test_a_class_of_few_groups_or_of_no_row_is_undecided(groups: int, verdict: str) -> None:
    """However plain it is: the rows of the rare class all point along the cone."""
    generator = torch.Generator().manual_seed(3)
    u, number, group = corpus(300, [0.5, 0.5], generator)
    rare = (group < groups) & (number == 1)
    u[rare] = torch.nn.functional.normalize(u.mean(0), dim=0)
    total, squares, count = sums_of(u, torch.where(rare, 2, number), group, 4)
    found = class_shares(total, squares, count)
    assert verdicts(found)[2:] == [verdict, "undecided"]
    assert found.rows.tolist()[3] == 0
    assert math.isnan(found.within.values[3])
    assert float(found.share.values[3]) == 0


def test_a_class_has_as_many_degrees_as_groups_of_one_size_that_vary_like_it() -> None:
    """Of 64 groups the first eight have rows of the second class, as many each; the third has more in one of eight."""
    count = torch.zeros(4, GROUPS, dtype=torch.int64)
    count[0], count[1, :8], count[2, :8], count[3, :7] = 9, 3, torch.tensor([2] * 7 + [3]), 3
    generator = torch.Generator().manual_seed(4)
    total = torch.randn(4, GROUPS, 3, dtype=torch.float64, generator=generator) * (count > 0)[:, :, None]
    found = class_shares(total, count.double(), count)
    rows = count.sum(0).double()
    most = float(rows.sum() ** 2 / rows.square().sum()) - 1  # no more than all classes together have
    for estimates in (found.share, found.excess, found.opens):
        assert estimates.degrees.tolist() == pytest.approx([most, 7, 0, 0])
    assert most < 63
    assert found.rows_share.tolist() == pytest.approx([576 / 638, 24 / 638, 17 / 638, 21 / 638])


def test_without_a_cone_shares_are_not_defined() -> None:
    flat = torch.zeros(2, GROUPS, 4, dtype=torch.float64)
    found = class_shares(flat, torch.zeros(2, GROUPS, dtype=torch.float64), torch.ones(2, GROUPS, dtype=torch.int64))
    assert found.share.values.isnan().all()
    assert verdicts(found) == ["undecided"] * 2
