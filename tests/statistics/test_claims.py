"""Claims: their verdicts, bounds that hold for a whole family at the rate they say, and a common direction by turns."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from cone_kernels.statistics.claims import Claim, Verdict
from cone_kernels.statistics.estimates import Estimates, common_direction, turns
from cone_kernels.sums import jackknife_blocks


@pytest.mark.parametrize(
    ("estimate", "bound", "margin", "verdict"),
    [
        (0.3, 0.1, 0.0, "greater"),
        (-0.3, 0.1, 0.0, "less"),
        (0.3, 0.4, 0.0, "undecided"),
        (0.3, 0.1, 0.5, "equal"),
        (0.3, 0.25, 0.5, "undecided"),  # more than nothing, and perhaps more than the margin
        (0.0, 0.0, 0.0, "equal"),
        (0.5, 0.1, 0.5, "greater"),  # at least the margin
        (0.25, 0.25, 0.5, "equal"),  # no more than the margin
        (0.3, math.nan, 0.0, "undecided"),
        (math.nan, 0.1, 0.0, "undecided"),
    ],
)
def test_verdicts(estimate: float, bound: float, margin: float, verdict: Verdict) -> None:
    claim = Claim(estimate + 1, null=1.0, bound=bound, margin=margin)
    assert claim.verdict == verdict
    assert claim.differs == (verdict in ("greater", "less"))


def test_how_many_would_decide() -> None:
    assert Claim(0.6, null=0.5, bound=0.2).needed(100) == 400  # the bound must fall to the distance of 0.1
    assert Claim(0.4, null=0.5, bound=0.2).needed(100) == 400
    assert Claim(0.1, 0.0, bound=0.2).needed(100) == 400
    assert Claim(0.1, 0.0, bound=0.1, margin=0.3).needed(100) == 100
    assert Claim(0.1, 0.0, bound=0.4, margin=0.3).needed(100) == 400
    assert Claim(0.25, 0.0, bound=0.5, margin=0.25).needed(100) == 400  # at the margin: the bound must fall below it
    assert Claim(0.0, 0.0, bound=0.2).needed(100) is None
    for unknown in (Claim(0.1, 0.0, math.nan), Claim(0.1, 0.0, math.inf), Claim(math.nan, 0.0, 0.2)):
        assert unknown.needed(100) is None


def of_rows(rows: Tensor) -> Estimates:
    """The means of m variables (m, n), every row a group."""
    n = rows.shape[1]
    left_out = (rows.sum(1, keepdim=True) - rows) / (n - 1)
    return Estimates.of_jackknife(rows.mean(1), left_out, torch.ones_like(rows))


def test_the_error_of_a_mean_is_the_textbook_one() -> None:
    rows = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = of_rows(rows)
    assert found.stderr.tolist() == pytest.approx((rows.std(dim=1) / math.sqrt(40)).tolist(), rel=1e-12)
    assert found.degrees.tolist() == pytest.approx([39] * 3)
    wanted = [float(scipy.stats.ttest_1samp(row, 0).pvalue) for row in rows.numpy()]
    assert found.p_values().tolist() == pytest.approx(wanted, rel=1e-9)
    paired = found.at(torch.tensor([0])).less(found.at(torch.tensor([1])))
    assert float(paired.stderr) == pytest.approx(float((rows[0] - rows[1]).std()) / math.sqrt(40), rel=1e-12)
    apart = of_rows(rows[:1]).less_apart(of_rows(rows[1:2, :25]))
    welch = scipy.stats.ttest_ind(rows[0].numpy(), rows[1, :25].numpy(), equal_var=False)
    assert float(apart.p_values()) == pytest.approx(float(welch.pvalue), rel=1e-9)
    assert found.pairs().values.tolist() == pytest.approx(
        [float(rows[i].mean() - rows[j].mean()) for i, j in ((1, 0), (2, 0), (2, 1))]
    )


def test_bounds_of_one_of_copies_and_of_independent_ones() -> None:
    rows = torch.randn(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = float(scipy.stats.t.ppf(0.975, 11) * of_rows(rows).stderr)
    for copies in (1, 20):
        assert of_rows(rows.expand(copies, -1)).bounds().tolist() == pytest.approx([alone] * copies, rel=0.04)
    errors = torch.linspace(1, 2, 10)
    sidak = scipy.stats.norm.ppf(1 - (1 - 0.95**0.1) / 2)
    found = Estimates.of_errors(torch.zeros(10), errors)
    assert found.bounds().tolist() == pytest.approx((sidak * errors).tolist(), rel=0.02)
    # Without an error nothing is known; without a spread all is.
    mixed = Estimates.of_errors(torch.full((3,), 0.5), torch.tensor([0.1, 0.0, math.nan]))
    assert [claim.verdict for claim in mixed.claims()] == ["greater", "greater", "undecided"]


def test_of_two_groups_no_error_is_known() -> None:
    for groups, known in ((2, False), (3, True)):
        found = of_rows(torch.tensor([[1.0, 1.1, 0.9][:groups]], dtype=torch.float64))
        assert bool(found.bounds().isfinite()) == bool(found.p_values().isfinite()) == known
        if known:
            wanted = scipy.stats.ttest_1samp([1.0, 1.1, 0.9], 0).pvalue
            assert float(found.p_values()) == pytest.approx(float(wanted), rel=1e-9)
    # Groups without rows are none.
    left_out, empty = torch.tensor([[0.9, 9.0, 1.0, 1.1]], dtype=torch.float64), torch.tensor([[5, 0, 5, 5]])
    found = Estimates.of_jackknife(torch.ones(1).double(), left_out, empty)
    assert float(found.stderr) == pytest.approx(math.sqrt(2 / 3 * 0.02))
    two = Estimates.of_jackknife(torch.ones(1).double(), left_out[:, ::2], empty[:, ::2])
    assert float(two.stderr) == pytest.approx(math.sqrt(1 / 2 * 0.005))  # shown, but no claim rests on it
    alone = Estimates.of_jackknife(torch.ones(1).double(), left_out[:, :1], empty[:, :1])
    assert bool(alone.stderr.isnan())
    # Nor is it of three of which one is nearly all.
    left_out = torch.tensor([[0.9, 1.0, 1.1]], dtype=torch.float64)
    found = Estimates.of_jackknife(torch.ones(1).double(), left_out, torch.tensor([[90, 5, 5]]))
    assert bool(found.bounds().isnan())


def test_p_values_agree_with_the_bounds_and_stay_between_one_test_and_many() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(6, 30, dtype=torch.float64, generator=generator) + torch.linspace(0, 1.2, 6)[:, None]
    found = of_rows(rows)
    alone, together = found.p_values(), found.adjusted_p_values()
    assert bool((alone <= together).all())
    assert bool((together <= 6 * alone).all())
    for alpha in (0.01, 0.05, 0.2):
        assert (found.bounds(alpha) < found.values.abs()).tolist() == (together <= alpha).tolist()


def test_what_is_zero_is_no_difference_and_what_has_no_value_is_not_of_the_family() -> None:
    found = Estimates.of_errors(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0]))
    for p_values in (found.p_values(), found.adjusted_p_values()):
        assert p_values[:2].tolist() == [1, 1]
        assert 0.3 < float(p_values[2]) < 0.8  # a t of 1
    for values, errors in (([1.0, math.nan], [1.0, 1.0]), ([1.0, 1.0], [1.0, math.nan])):
        of_both = Estimates.of_errors(torch.tensor(values), torch.tensor(errors))
        assert float(of_both.bounds()[0]) == float(of_both.at(torch.tensor([0])).bounds())
        assert bool(of_both.bounds()[1].isnan())
    assert [claim.verdict for claim in Estimates.of_errors(torch.zeros(2), torch.zeros(2)).claims()] == ["equal"] * 2


def test_sizes_and_fewer_parts_keep_the_errors_and_what_goes_together() -> None:
    rows = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = of_rows(rows - rows.mean(1, keepdim=True) + torch.tensor([[-2.0], [1.0], [3.0]]))
    together = found.deviations @ found.deviations.mT
    sizes, condensed = found.sizes(), found.condensed()
    assert sizes.values.tolist() == pytest.approx([2, 1, 3])
    assert torch.equal(sizes.deviations, torch.stack([-found.deviations[0], *found.deviations[1:]]))
    assert condensed.deviations.shape == (3, 3)
    torch.testing.assert_close(condensed.deviations @ condensed.deviations.mT, together)
    for one in (sizes, condensed):
        assert one.degrees.tolist() == found.degrees.tolist()
    assert torch.equal(condensed.values, found.values)


def test_without_a_spread_a_difference_has_the_fewer_degrees() -> None:
    one, other = of_rows(torch.ones(1, 5).double()), of_rows(torch.ones(1, 4).double())
    for difference in (one.less_apart(other), other.less_apart(one)):
        assert difference.degrees.tolist() == pytest.approx([3])


def test_a_family_has_the_degrees_of_the_one_that_has_fewest() -> None:
    def of_degrees(*degrees: float) -> Estimates:
        m = len(degrees)
        return Estimates(torch.ones(m).double(), torch.eye(m).double(), torch.tensor(degrees).double())

    few = of_degrees(5, 5).bounds().tolist()
    assert few > of_degrees(50, 50).bounds().tolist()
    for degrees in ((5, 50), (50, 5)):
        assert of_degrees(*degrees).bounds().tolist() == few
        one, other = (of_degrees(each) for each in degrees)
        assert one.less(other).degrees.tolist() == [5]


def test_p_values_beyond_every_draw() -> None:
    """Of 8,192 draws none goes as far: one of 8,193 does, counted with what was found; further out Bonferroni's."""
    for t, degrees in ((4.5, math.inf), (20.0, 5.0)):
        each = ((50,), t), ((50, 1), 1.0), ((50,), degrees)
        copies = Estimates(*(torch.full(shape, value, dtype=torch.float64) for shape, value in each))
        assert copies.adjusted_p_values().tolist() == pytest.approx([1 / 8193] * 50, rel=1e-12)
    # What has no value is no test: the other one stands alone.
    one = Estimates.of_errors(torch.tensor([8.0, math.nan]), torch.ones(2)).adjusted_p_values()
    assert float(one[0]) == pytest.approx(2 * scipy.stats.norm.sf(8), rel=1e-4, abs=0)
    assert bool(one[1].isnan())


@pytest.mark.parametrize("groups", [8, 40])
def test_a_family_of_correlated_claims_has_the_rate_it_says(groups: int) -> None:
    generator, rounds = torch.Generator().manual_seed(groups), 200
    false = 0
    for _ in range(rounds):
        common = torch.randn(1, groups, dtype=torch.float64, generator=generator)
        rows = common + 0.7 * torch.randn(7, groups, dtype=torch.float64, generator=generator)
        false += any(claim.differs for claim in of_rows(rows).claims())
    low, high = scipy.stats.binom.ppf([0.001, 0.999], rounds, 0.05) / rounds
    assert low <= false / rounds <= high


def test_blocks_join_neighbours_until_they_are_long_enough() -> None:
    assert jackknife_blocks(torch.tensor([1, 1, 2, 4, 8, 3]), least=4).tolist() == [0, 0, 0, 1, 2, 2]
    assert jackknife_blocks(torch.tensor([9, 8, 8])).tolist() == [0, 1, 2]
    assert jackknife_blocks(torch.tensor([1, 1, 1])).tolist() == [0, 0, 0]
    assert jackknife_blocks(torch.zeros(3, dtype=torch.int64)).tolist() == [0, 0, 0]


def units(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows + shift, dim=-1)


def test_a_common_direction_is_judged_by_every_turn_of_the_groups() -> None:
    sums = units(2, 7, 5, 6, shift=0.3).sum(2)  # (m, G, d) of five units each
    sums[1] *= 3  # of another size: what is compared is measured by its own spread
    found = common_direction(sums, torch.full((2, 7), 5))
    turned = []
    for signs in itertools.product((1.0, -1.0), repeat=7):
        rows = sums * torch.tensor(signs, dtype=torch.float64)[:, None]
        products = rows @ rows.mT
        between = products.sum((1, 2)) - products.diagonal(dim1=1, dim2=2).sum(1)
        off = products - products.diagonal(dim1=1, dim2=2).diag_embed()
        turned.append(between / (2 * off.square().sum((1, 2))).sqrt())
    largest = torch.stack(turned).amax(1)
    off = sums @ sums.mT * (1 - torch.eye(7, dtype=torch.float64))
    bounds = largest.sort().values[math.ceil(0.95 * 127)] * (2 * off.square().sum((1, 2))).sqrt() / (35**2 - 7 * 25)
    assert [claim.bound for claim in found] == pytest.approx(bounds.tolist())
    for claim, t in zip(found, turned[0], strict=True):
        more = float((largest >= t - 1e-12).double().mean())
        assert (claim.verdict == "greater") == (more <= 0.05)
    between = sums.sum(1).square().sum(1) - sums.square().sum((1, 2))
    assert [claim.estimate for claim in found] == pytest.approx((between / (35**2 - 7 * 25)).tolist())
    # A family in which nothing goes together adds nothing to the others' bound.
    across = torch.eye(7, 6).double()[None] * torch.arange(1, 8)[:, None]
    with_it = common_direction(torch.cat([sums, across]), torch.full((3, 7), 5))
    assert with_it == [*found, Claim(0.0, 0.0, 0.0)]
    few = common_direction(sums[:, :4], torch.full((2, 4), 5))
    assert [claim.verdict for claim in few] == ["undecided"] * 2
    # Of five groups 16 turns differ, one without rows among them or not: too few for 1 in 20, enough for 1 in 16.
    counts = torch.tensor([[5] * 5 + [0] * 2] * 2)
    for alpha, known in ((0.05, False), (1 / 16, True)):
        claims = common_direction(sums * (counts > 0)[:, :, None], counts, alpha)
        assert [math.isfinite(claim.bound) for claim in claims] == [known] * 2


@pytest.mark.parametrize(("groups", "number"), [(0, 1), (1, 1), (2, 2), (5, 16), (12, 2048), (14, 4096)])
def test_all_turns_of_few_groups_and_as_many_as_are_drawn_of_more(groups: int, number: int) -> None:
    found = turns(groups)
    assert found.shape == (number, groups)
    assert bool((found.abs() == 1).all())
    assert bool((found[0] == 1).all())  # it turns nothing around
    if groups > 12:
        assert 0.45 < float((found > 0).double().mean()) < 0.55
    elif groups:  # no two are alike, nor each other's opposite, which turns the same
        assert len({tuple(one) for one in [*found.tolist(), *(-found).tolist()]}) == 2 * number


@pytest.mark.parametrize(("dim", "n"), [(64, 6), (8, 40)])
def test_no_direction_is_seen_where_there_is_none(dim: int, n: int) -> None:
    rounds, false, found = 50, 0, 0
    for seed in range(rounds):
        counts = torch.ones(3, n)
        false += any(one.verdict == "greater" for one in common_direction(units(3, n, dim, seed=seed), counts))
        shifted = units(3, n, dim, seed=seed, shift=0.5)
        found += any(one.verdict == "greater" for one in common_direction(shifted, counts))
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], rounds, 0.05) / rounds
    assert low <= false / rounds <= high
    assert found > 0.9 * rounds
