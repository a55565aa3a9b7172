"""What a layer changes of the one before: where it is known, against plain loops, and errors against other samples."""

from __future__ import annotations

import json
import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from cone_kernels import ConeState
from cone_kernels.experiments.layer_steps import ChangedDimension, LayerStep, _estimates, layer_steps, steps_in_words
from cone_kernels.experiments.layers import layers_of
from cone_kernels.report import fragment
from cone_kernels.runs.measurement import from_state
from cone_kernels.statistics.claims import Claim
from cone_kernels.statistics.estimates import Estimates
from cone_kernels.statistics.subspaces import Overlap
from cone_kernels.sums import jackknife_blocks, jackknife_groups
from tests.experiments.test_compare import state_of
from tests.support.moment_cases import normal

N, D = 600, 12


def rows(seed: int = 0, n: int = N) -> Tensor:
    """(4, n, d): layer 1 changes dimension 0 a little, layer 2 nothing but noise, layer 3 turns mean and axis."""
    base = normal(n, D, dtype=torch.float64, seed=seed, shift=0)
    base[:, 1] *= 4
    base[:, 2] += 5
    first, last = base.clone(), base.clone()
    first[:, 0] += 1
    last[:, 1] /= 4
    last[:, 5] *= 4
    last[:, 2] -= 5
    last[:, 7] += 5
    noise = normal(n, D, dtype=torch.float64, seed=seed + 1000, shift=0) * 0.02
    return torch.stack([base, first, first + noise, last])


def state(hidden: Tensor) -> ConeState:
    return state_of(hidden[:, :, None], second_moment=True)


@pytest.fixture(scope="module")
def steps() -> tuple[LayerStep, ...]:
    of_rows = state(rows())
    return layer_steps(of_rows.sentence, of_rows.layers)


def test_each_step_is_called_what_it_does(steps: tuple[LayerStep, ...]) -> None:
    assert [(step.start, step.end) for step in steps] == [(0, 1), (1, 2), (2, 3)]
    assert [step.share.verdict for step in steps] == ["less", "less", "greater"]
    assert [step.mean_verdict for step in steps] == ["keeps", "keeps", "turns"]
    assert [step.axes_verdict for step in steps] == ["keeps", "keeps", "turns"]
    assert steps[0].dimensions[0].dimension == 0
    assert {one.dimension for one in steps[2].dimensions[:2]} == {2, 7}
    assert sum(step.share.estimate for step in steps) == pytest.approx(1)
    assert sum(step.largest for step in steps) == pytest.approx(1)
    assert abs(steps[1].share.estimate) < 1e-3


def test_numbers_are_those_of_plain_means(steps: tuple[LayerStep, ...]) -> None:
    hidden = rows()
    of_rows = state(hidden)
    blocks = jackknife_blocks(of_rows.sentence.count[0])[jackknife_groups(torch.arange(N))]
    other = blocks[:, None] != blocks
    units = torch.nn.functional.normalize(hidden, dim=2)

    def product(i: int, j: int) -> float:
        return float((units[i] @ units[j].mT)[other].mean())

    squares = [product(i, i) + product(i + 1, i + 1) - 2 * product(i, i + 1) for i in range(3)]
    means = units.mean(1)
    most = means.diff(dim=0).abs().argmax(0)
    for at, step in enumerate(steps):
        assert step.share.estimate == pytest.approx(squares[at] / sum(squares), rel=1e-8, abs=1e-12)
        cosine = product(at, at + 1) / (product(at, at) * product(at + 1, at + 1)) ** 0.5
        assert step.mean.estimate == pytest.approx(cosine, rel=1e-10)
        # An even share of three, by half of it; one direction, by 0.9.
        assert (step.share.null, step.share.margin, step.mean.null) == pytest.approx((1 / 3, 1 / 6, 0.9))
        assert len(step.dimensions) == 3
        assert step.largest == pytest.approx(float((most == at).double().mean()))
        j = step.dimensions[0].dimension
        assert step.dimensions[0].change == pytest.approx(float(means[at + 1, j] - means[at, j]), abs=1e-12)
        covariances = [torch.cov(x.mT) for x in hidden[at : at + 2]]
        drawn = (covariances[0] * covariances[1]).sum() / (covariances[0].trace() * covariances[1].trace())
        assert step.axes_random == pytest.approx(float(drawn), rel=1e-6)
        assert step.axes is not None  # three steps are judged together (Šidák)
        judged = scipy.stats.t.ppf(0.5 + 0.95 ** (1 / 3) / 2, step.axes.degrees)
        assert step.axes_bound == pytest.approx(step.axes.stderr * judged, rel=1e-9)


def test_what_is_drawn_from_the_covariances_is_that_mean(steps: tuple[LayerStep, ...]) -> None:
    first, second = (torch.linalg.cholesky(torch.cov(x.mT)) for x in rows()[2:])
    draws = [normal(20_000, D, dtype=torch.float64, seed=seed, shift=0) for seed in (5, 6)]
    x, y = draws[0] @ first.mT, draws[1] @ second.mT
    weighted = (x * y).sum(1).square().mean() / (x.square().sum(1).mean() * y.square().sum(1).mean())
    assert float(weighted) == pytest.approx(steps[2].axes_random, rel=0.15)


def test_errors_are_those_of_other_samples() -> None:
    found = []
    for seed in range(40):
        of_rows = state_of(rows(seed, 250)[:, :, None])
        found.append(layer_steps(of_rows.sentence, of_rows.layers)[2])
    shares = torch.tensor([[step.share.estimate, step.mean.estimate] for step in found])
    stated = torch.tensor([[step.share_stderr, step.mean_stderr] for step in found]).mean(0)
    assert (stated / shares.std(0)).tolist() == pytest.approx([1, 1], abs=0.35)
    assert found[0].axes is None
    assert found[0].to_dict()["axes_overlap"] is None


def test_words_json_and_report_say_it(steps: tuple[LayerStep, ...]) -> None:
    said = " ".join(steps_in_words(steps, D))
    assert "is changed from layer 2 to 3, where an even share would be 33%" in said
    assert "Layers keep the mean direction of the layer before at 2 of 3 steps" in said
    assert "The mean direction turns at 1 of 3 steps, most from layer 2 to 3" in said
    assert "The space of the top axes turns most from layer 2 to 3" in said
    assert said.isascii()
    data = json.loads(json.dumps(layers_of(from_state(state(rows()))).to_dict(), allow_nan=False))
    assert [step["mean_cosine"]["verdict"] for step in data["steps"]] == ["keeps", "keeps", "turns"]
    assert "What each layer changes of the one before" in fragment(data)
    assert data["published"] is None  # no other curve is asked for


def step(start: int, share: float, mean: float, axes: float | None) -> LayerStep:
    """One of four; everything is known to 0.03."""
    return LayerStep(
        start=start,
        end=start + 1,
        share=Claim(share, 0.25, 0.03, margin=0.125),
        share_stderr=0.013,
        largest=share / 2,
        largest_stderr=0.021,
        dimensions=(ChangedDimension(start, 0.5), ChangedDimension(start + 4, -0.25)),
        mean=Claim(mean, 0.9, 0.03),
        mean_stderr=0.004,
        axes=None if axes is None else Overlap(2, axes - 0.01, axes, 0.02, 0.04, 9),
        axes_bound=0.03,
        axes_random=0.25,
    )


def test_the_step_that_changes_most_is_named_of_each_kind() -> None:
    four = (step(0, 0.4, 0.99, 0.85), step(1, 0.6, 0.97, 0.77), step(2, 0.05, 0.5, 0.2), step(3, -0.05, 0.6, None))
    changed = (
        "Of what the layers change in the mean vector, dimension by dimension, 60% (s.e. 1.3%) is changed from layer 1 "
        "to 2, where an even share would be 25%; 30% of the 3 dimensions change most there, and of all 1 and 5."
    )
    kept = "Layers keep the mean direction of the layer before at 2 of 4 steps: cosines of 0.970 and more."
    # In three dimensions |cos| of random directions is even from 0 to 1.
    turned = (
        "The mean direction turns at 2 of 4 steps, most from layer 2 to 3: a cosine of 0.500 (s.e. 0.004), where "
        "random directions have 0.950 or more once in twenty."
    )
    axes = (
        "The space of the top axes turns most from layer 2 to 3: overlap 0.20 (give or take 0.03), of directions drawn "
        "from the covariances 0.25"
    )
    assert steps_in_words(four, 3) == [changed, kept, turned, f"{axes}; at 1 of 4 steps it stays."]
    assert steps_in_words(four[1:3], 3)[-1] == f"{axes}."


def test_where_nothing_turns_it_is_said_of_every_step_or_not_at_all() -> None:
    stays = "The space of the top axes stays at every step."
    always = "Layers keep the mean direction of the layer before at every step: cosines of 0.970 and more."
    assert steps_in_words((step(0, 0.26, 0.97, 0.9), step(1, 0.24, 0.99, 0.9)), 3) == [always, stays]
    undecided = step(0, 0.3, 0.91, 0.8)
    assert (undecided.mean_verdict, undecided.axes_verdict) == ("undecided",) * 2
    for other in (undecided, step(0, 0.3, 0.91, None)):
        assert steps_in_words((other, step(1, 0.24, 0.97, 0.9)), 3) == [always.replace("every step", "1 of 2 steps")]


def test_as_json_data() -> None:
    wanted = {
        "start": 1,
        "end": 2,
        "change_share": {"value": 0.6, "stderr": 0.013, "bound": 0.03, "even": 0.25, "verdict": "greater"},
        "changed_most": {"value": 0.3, "stderr": 0.021},
        "dimensions": [{"dimension": 1, "change": 0.5}, {"dimension": 5, "change": -0.25}],
        "mean_cosine": {"value": None, "stderr": 0.004, "bound": 0.03, "verdict": "undecided"},
    }
    axes = {"axes": 2, "value": 0.76, "corrected": 0.77, "stderr": 0.02, "bound": 0.03, "random": 0.25}
    assert step(1, 0.6, math.nan, 0.77).to_dict() == {**wanted, "axes_overlap": {**axes, "verdict": "turns"}}
    assert step(1, 0.6, math.nan, None).to_dict() == {**wanted, "axes_overlap": None}


def test_axes_that_stay_are_said_to_stay_though_the_mean_turns() -> None:
    """One covariance of few strong directions at every layer, and another mean at each."""
    scale = torch.ones(D, dtype=torch.float64)
    scale[2:4] = torch.tensor([30.0, 20.0])
    hidden = (normal(1, 600, D, dtype=torch.float64, seed=1, shift=0) * scale).repeat(3, 1, 1)
    for layer in range(3):
        hidden[layer, :, 4 + layer] += 60
    of_rows = state(hidden)
    said = steps_in_words(layer_steps(of_rows.sentence, of_rows.layers), D)
    assert any("The mean direction turns at 2 of 2 steps" in line for line in said)
    assert said[-1] == "The space of the top axes stays at every step."


def test_steps_of_one_size_are_not_told_apart() -> None:
    """Null: the mean goes around a circle in even steps, so each has a third of the change."""
    told = 0
    for seed in range(24):
        turn = 0.5 * torch.arange(4, dtype=torch.float64)
        shared = normal(1, 300, D, dtype=torch.float64, seed=seed, shift=0)
        hidden = shared + normal(4, 300, D, dtype=torch.float64, seed=seed + 50, shift=0)
        hidden[..., 0] += 4 * turn.cos()[:, None]
        hidden[..., 1] += 4 * turn.sin()[:, None]
        of_rows = state_of(hidden[:, :, None])
        told += any(
            abs(step.share.estimate - step.share.null) > step.share.bound
            for step in layer_steps(of_rows.sentence, of_rows.layers)
        )
    assert told <= 4


def test_one_layer_has_no_step() -> None:
    of_rows = state_of(rows()[:1, :, None])
    assert layer_steps(of_rows.sentence, of_rows.layers) == ()
    assert steps_in_words((), D) == []
    of_rows = state_of(rows()[:2, :, None])
    assert [(one.start, one.end) for one in layer_steps(of_rows.sentence, of_rows.layers)] == [(0, 1)]


def test_what_a_layer_without_a_mean_direction_or_an_axis_does_is_not_known() -> None:
    """Of the mean: vectors that point both ways as often. Of the axes: vectors that are all alike."""
    some, alike = normal(40, D, dtype=torch.float64), torch.zeros(40, D, dtype=torch.float64)
    alike[:, 0] = 1
    both_ways = some.clone()
    both_ways[20:] = -both_ways[:20]
    for hidden, is_known in (((some, both_ways, some), (False, False)), ((alike, some, alike), (True, True))):
        of_rows = state(torch.stack(hidden))
        steps = layer_steps(of_rows.sentence, of_rows.layers)
        assert tuple(not math.isnan(one.mean.estimate) for one in steps) == is_known
        assert tuple(one.axes is None for one in steps) == is_known
        assert tuple(math.isnan(one.axes_random) for one in steps) == is_known


def test_a_step_has_the_degrees_of_freedom_of_the_layer_with_fewer_rows() -> None:
    hidden = rows()
    hidden[1, : N // 3] = 0
    hidden[3, ::7] = 0
    moments = state(hidden).sentence
    blocks = jackknife_blocks(moments.count[0])
    counts = torch.zeros(4, int(blocks.max()) + 1, dtype=torch.float64).index_add_(1, blocks, moments.count.double())
    fewer = [torch.minimum(counts[layer], counts[layer + 1]) for layer in range(3)]
    wanted = [float(one.sum() ** 2 / one.square().sum() - 1) for one in fewer]
    assert wanted[0] == wanted[1] < wanted[2]
    for estimates in _estimates(moments)[:3]:
        assert estimates.degrees.tolist() == pytest.approx(wanted)


def test_which_step_changes_a_dimension_most_where_rows_are_left_out() -> None:
    """Of the means of the rows that each layer has, and of those without each block."""
    hidden = rows()
    hidden[1, : N // 3] = 0
    moments = state(hidden).sentence
    block = jackknife_blocks(moments.count[0])[jackknife_groups(torch.arange(N))]
    units, used = torch.nn.functional.normalize(hidden, dim=2), hidden.norm(dim=2) > 0

    def shares(kept: Tensor) -> Tensor:
        means = torch.stack([unit[there & kept].mean(0) for unit, there in zip(units, used, strict=True)])
        most = means.diff(dim=0).abs().argmax(0)
        return torch.stack([(most == step).double().mean() for step in range(3)])

    left_out = torch.stack([shares(block != number) for number in range(int(block.max()) + 1)], 1)
    counts = torch.stack([torch.bincount(block[there], minlength=left_out.shape[1]) for there in used])
    wanted = Estimates.of_jackknife(shares(used[0]), left_out, counts[1:].minimum(counts[:-1]))
    found = _estimates(moments)[1]
    assert len(set(wanted.values.tolist())) > 1
    assert bool((wanted.stderr > 0).any())
    torch.testing.assert_close(found.values, wanted.values)
    torch.testing.assert_close(found.deviations, wanted.deviations)
