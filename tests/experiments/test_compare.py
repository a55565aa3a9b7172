"""Two states compared: numbers of a brute-force jackknife, false alarms as rare as promised, and honest sentences."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from torch import Tensor

from cone_kernels import ConeState
from cone_kernels.cli import main
from cone_kernels.experiments import CompareResult, compare, measure
from cone_kernels.experiments.compare import _blocks, _change, _turns
from cone_kernels.experiments.compare_result import RESOLUTION, Change, DirectionChange
from cone_kernels.experiments.cone_claims import first_estimates
from cone_kernels.report import fragment
from cone_kernels.runs.measurement import Measurement, from_state
from cone_kernels.sums import jackknife_blocks
from cone_kernels.terminal.compare import print_compare
from tests.support.moment_cases import GROUP_OF, normal
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

INFO = {"model": {"architecture": "BertModel", "model_type": "bert", "dtype": "float32"}, "final_norm": False}


# Of two states: the statistics by name of all sentences, then without each group in turn.
BothLeftOut = tuple[list[dict[str, float]], list[dict[str, float]]]


def state_of(hidden: Tensor, mask: Tensor | None = None, info: dict[str, Any] = INFO, **options: bool) -> ConeState:
    """Of hidden states (L, n, T, d); the id of a sentence is its row."""
    state = ConeState.empty(range(len(hidden)), hidden.shape[-1], info=info, **options)
    state.update(list(hidden), torch.ones(hidden.shape[1:3]) if mask is None else mask)
    return state


def ragged(n: int, longest: int) -> Tensor:
    """(n, longest) a mask of 1 to `longest` tokens."""
    lengths = torch.randint(1, longest + 1, (n, 1), generator=torch.Generator().manual_seed(0))
    return (torch.arange(longest) < lengths).long()


@pytest.fixture(scope="module")
def before() -> Tensor:
    return normal(3, 200, 4, 12, dtype=torch.float64)


@pytest.fixture(scope="module")
def after(before: Tensor) -> Tensor:
    """The same sentences: layer 0 as it was, layer 1 with its cone opened, layer 2 with it tightened."""
    moved = before + normal(3, 200, 4, 12, dtype=torch.float64, seed=1, shift=0) * 0.3
    moved[0] = before[0]
    moved[1] -= 0.2
    moved[2] += 0.2
    return moved


def plain_statistics(hidden: Tensor, mask: Tensor, kept: Tensor) -> dict[str, float]:
    """Of one layer (n, T, d), over the sentences kept (n,) bool: means over all pairs, by their definition."""
    rows = [row[own.bool()] for row, own, keep in zip(hidden, mask, kept, strict=True) if keep]
    tokens, owner = torch.cat(rows), torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([*map(len, rows)]))

    def cosines(x: Tensor) -> Tensor:
        units = x / x.norm(dim=1, keepdim=True)
        return units @ units.T

    pooled, pairs = cosines(torch.stack([row.mean(0) for row in rows])), cosines(tokens)
    distinct, own = ~torch.eye(len(tokens), dtype=torch.bool), owner[:, None] == owner
    sentence = float(pooled[~torch.eye(len(rows), dtype=torch.bool)].mean())
    token, within, between = (float(pairs[which].mean()) for which in (distinct, distinct & own, ~own))
    averaged = cosines(torch.stack([(row / row.norm(dim=1, keepdim=True)).sum(0) for row in rows]))
    predicted = float(averaged[~torch.eye(len(rows), dtype=torch.bool)].mean())
    found = {"sentence": sentence, "token": token, "gap": sentence - token}
    return found | {"within": within, "between": between, "predicted": predicted}


def blocks_of(n: int) -> Tensor:
    """(n,) the groups of sentences that are left out: those that follow each other, joined until they have eight."""
    counts = torch.tensor([GROUP_OF[:n].count(group) for group in range(64)])
    return jackknife_blocks(counts)[torch.tensor(GROUP_OF[:n])]


def wanted_degrees(mask: Tensor, name: str, errors: tuple[float, float] | None) -> float:
    """Of groups of unlike size; of two samples, with these errors, by Welch's formula."""
    weights = mask.sum(1) if name in ("token", "within", "between") else torch.ones(len(mask))
    n = torch.zeros(64).index_add_(0, blocks_of(len(mask)), weights.float()).double()
    own = float(n.sum() ** 2 / n.square().sum()) - 1
    if errors is None:
        return own
    a, b = (error**2 for error in errors)
    return own * (a + b) ** 2 / (a**2 + b**2)


@pytest.fixture(scope="module")
def left_out(before: Tensor, after: Tensor) -> list[BothLeftOut]:
    """Of every layer; the first 130 sentences are taken."""
    mask = ragged(130, 4)
    group = blocks_of(130)
    kept = [torch.ones(130, dtype=torch.bool), *(group != g for g in group.unique())]

    def statistics(layer: Tensor) -> list[dict[str, float]]:
        return [plain_statistics(layer[:130], mask, which) for which in kept]

    return [(statistics(one), statistics(other)) for one, other in zip(before, after, strict=True)]


def brute_force(left_out: BothLeftOut, mask: Tensor, paired: bool) -> dict[str, tuple[float, float, float]]:
    """Difference, standard error and its degrees of freedom, of every statistic of one layer, group by group."""
    whole, parts = [of_state[0] for of_state in left_out], [of_state[1:] for of_state in left_out]

    def variance(values: list[float]) -> float:
        return (len(values) - 1) * float(torch.tensor(values, dtype=torch.float64).var(unbiased=False))

    found: dict[str, tuple[float, float, float]] = {}
    for name in whole[0]:
        a, b = ([part[name] for part in of_state] for of_state in parts)
        errors = None if paired else (math.sqrt(variance(a)), math.sqrt(variance(b)))
        square = variance([y - x for x, y in zip(a, b, strict=True)]) if paired else variance(a) + variance(b)
        found[name] = (whole[1][name] - whole[0][name], math.sqrt(square), wanted_degrees(mask, name, errors))
    return found


@pytest.mark.parametrize("paired", [True, False])
def test_numbers_are_those_of_a_brute_force_jackknife(
    before: Tensor,
    after: Tensor,
    left_out: list[BothLeftOut],
    paired: bool,
) -> None:
    mask = ragged(130, 4)
    before, after = before[:, :130], after[:, :130]
    result = compare(state_of(before, mask), state_of(after, mask), paired=paired)
    p_values: dict[str, list[float]] = {}
    for row in result.layers:
        wanted = brute_force(left_out[row.layer], mask, paired)
        assert sorted(wanted) == sorted(row.changes())
        for name, change in row.changes().items():
            difference, stderr, degrees = wanted[name]
            assert change.difference == pytest.approx(difference, abs=1e-12)
            assert change.difference == change.b - change.a
            assert change.stderr == pytest.approx(stderr, rel=1e-9, abs=1e-13)
            assert change.degrees_of_freedom == int(degrees + 1e-9)
            if stderr > 1e-12:
                p = 2 * scipy.stats.t.sf(abs(difference) / stderr, degrees)
                assert change.p_value == pytest.approx(p, rel=1e-6, abs=1e-12)
            p_values.setdefault(name, []).append(change.p_value)
    for name, values in p_values.items():
        adjusted = [row.changes()[name].p_adjusted for row in result.layers]
        least = min(values)
        assert least <= min(adjusted) <= 3 * least
        assert all(
            row.changes()[name].significant
            == (row.changes()[name].p_adjusted <= 0.05 and abs(row.changes()[name].difference) > RESOLUTION)
            for row in result.layers
        )


def test_what_changed_is_found_and_said(before: Tensor, after: Tensor) -> None:
    result = compare(state_of(before), state_of(after))
    assert result.paired
    assert [row.sentence.significant for row in result.layers] == [False, True, True]
    assert (result.layers[0].sentence.difference, result.layers[0].sentence.p_value) == (0.0, 1.0)
    first, second = result.layers[1].sentence, result.layers[2].sentence
    assert first.difference < 0 < second.difference
    assert list(result.summary())[:2] == [
        f"From state to state (2) the cone opened at layer 1: the mean cosine of two sentences fell from "
        f"{first.a:.4f} to {first.b:.4f} there.",
        f"It tightened at layer 2: the mean cosine of two sentences rose from {second.a:.4f} to {second.b:.4f} there.",
    ]
    back = compare(state_of(after), state_of(before))
    for there, again in zip(result.layers, back.layers, strict=True):
        assert again.sentence.difference == -there.sentence.difference
        assert again.sentence.p_value == there.sentence.p_value


def test_pairing_cancels_what_both_owe_to_the_sentences(before: Tensor, after: Tensor) -> None:
    states = state_of(before), state_of(after)
    together, apart = compare(*states, paired=True), compare(*states, paired=False)
    for row, other in zip(together.layers, apart.layers, strict=True):
        assert row.sentence.difference == other.sentence.difference
        assert row.sentence.stderr < 0.7 * other.sentence.stderr


def test_pairing_is_judged_by_the_counts(before: Tensor) -> None:
    mask = ragged(200, 4)
    same, shifted = state_of(before, mask), state_of(before, mask.roll(1, 0))
    assert compare(same, state_of(-before, mask)).paired
    result = compare(same, shifted)
    assert not result.paired
    assert result.pairing == "the sentences of their jackknife groups have other numbers of tokens"
    assert compare(same, shifted, paired=True).paired
    less = state_of(before[:, :199], mask[:199])
    assert compare(same, less).pairing == "the states have other numbers of sentences in their jackknife groups"
    # A token that the one leaves out tells nothing of the sentences: they have as many, and as long ones.
    holed = before.clone()
    holed[:, 7, 0] = 0
    assert compare(same, state_of(holed, mask)).paired
    with pytest.raises(ValueError, match=r"paired: got True for states with other .* \(200 and 199 in all"):
        compare(same, less, paired=True)


def test_pairing_looks_at_lengths_within_a_group() -> None:
    # Two sentences of 1 and 3 tokens, and two of 2: the same counts, another Σ T².
    hidden = normal(1, 128, 3, 8)
    lengths = torch.full((128, 1), 2)
    other = lengths.clone()
    other[0], other[64] = 1, 3
    masks = ((torch.arange(3) < size).long() for size in (lengths, other))
    assert not compare(*(state_of(hidden, mask) for mask in masks)).paired


def of_all_rounds(drawn: Sequence[tuple[Tensor, Tensor]]) -> tuple[Measurement, Measurement]:
    """The two states of every round in two, for layers do not look at each other: each round is its own few of them."""
    both = (from_state(state_of(torch.cat(hidden), second_moment=True)) for hidden in zip(*drawn, strict=True))
    return next(both), next(both)


def sentence_changes(drawn: Sequence[tuple[Tensor, Tensor]], paired: bool) -> list[list[Change]]:
    """What `compare` says of the sentences in every round of two states (L, n, T, d), without all else that it says."""
    a, b = (first_estimates(one.state.sentence, _blocks(one.state)) for one in of_all_rounds(drawn))
    rounds = torch.arange(len(a.values)).reshape(len(drawn), -1)  # (rounds, L)
    found = [_change(a.at(layers), b.at(layers), paired, 0.05) for layers in rounds]
    whole = compare(*(state_of(one) for one in drawn[-1]), paired=paired)
    assert [row.sentence for row in whole.layers] == found[-1]
    return found


def turns(drawn: Sequence[tuple[Tensor, Tensor]]) -> list[dict[str, list[DirectionChange]]]:
    """The same of the axes and the means."""
    a, b = of_all_rounds(drawn)
    rounds = torch.arange(len(a.state.layers)).reshape(len(drawn), -1).tolist()
    found = [_turns(a, b, layers, True) for layers in rounds]
    whole = compare(*(state_of(one, second_moment=True) for one in drawn[-1])).layers
    assert {"axis": [row.axis for row in whole], "mean": [row.mean for row in whole]} == found[-1]
    return found


def false_alarms(rounds: int, paired: bool, seed: int = 0) -> float:
    """How often any of three layers is called changed, with both states drawn from one distribution."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(rounds):
        common = torch.randn(3, 192, 1, 8, generator=generator) + 0.7
        own = (torch.randn(2, 3, 192, 1, 8, generator=generator) * 0.5).unbind()
        other = common if paired else torch.randn(3, 192, 1, 8, generator=generator) + 0.7
        drawn.append((common + own[0], other + own[1]))
    return sum(any(one.significant for one in found) for found in sentence_changes(drawn, paired)) / rounds


@pytest.mark.parametrize("paired", [True, False])
def test_false_alarms_are_as_rare_as_promised(paired: bool) -> None:
    rounds = 200
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], rounds, 0.05) / rounds
    assert low <= false_alarms(rounds, paired) <= high


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_false_alarms_over_many_rounds(paired: bool) -> None:
    rounds = 2000
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], rounds, 0.05) / rounds
    assert low <= false_alarms(rounds, paired, seed=1) <= high


def test_a_known_difference_is_found_as_often_as_its_size_says() -> None:
    # A shift of the mean moves the mean cosine of two rows from c² to a known value, by about three standard errors.
    generator = torch.Generator().manual_seed(0)
    rounds = 60
    drawn = [
        (torch.randn(1, 256, 1, 8, generator=generator) + 0.70, torch.randn(1, 256, 1, 8, generator=generator) + 0.78)
        for _ in range(rounds)
    ]
    changes = [change for (change,) in sentence_changes(drawn, paired=False)]
    found = sum(change.significant for change in changes)
    expected = sum(change.difference / change.stderr for change in changes) / rounds
    power = 1 - scipy.stats.nct.cdf(scipy.stats.t.ppf(0.975, 63), 63, expected)
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], rounds, power) / rounds
    assert expected > 2
    assert low <= found / rounds <= high


def stretched(hidden: Tensor, column: int) -> Tensor:
    """The vectors with one column spread four times as far around its mean."""
    return hidden + 3 * (hidden - 0.5) * (torch.arange(hidden.shape[-1]) == column)


def test_axes_and_means(before: Tensor) -> None:
    states, pooled = [], []
    for columns in ((0, 0, 1), (0, 3, 2)):
        hidden = torch.stack([stretched(layer, column) for layer, column in zip(before, columns, strict=True)])
        hidden[2] = before[2].roll(columns[2], -1)  # as wide in every direction: it has no axis
        states.append(state_of(hidden, second_moment=True))
        pooled.append(hidden.mean(2))  # (L, n, d)
    result = compare(*states)
    for row in result.layers:
        both = [rows[row.layer] for rows in pooled]
        axes = [torch.linalg.eigh(torch.cov(rows.T)).eigenvectors[:, -1] for rows in both]
        means = [rows.mean(0) / rows.mean(0).norm() for rows in both]
        assert row.axis.cosine == pytest.approx(abs(float(axes[0] @ axes[1])), abs=1e-8)
        assert row.mean.cosine == pytest.approx(abs(float(means[0] @ means[1])), abs=1e-12)
    assert [row.axis.known for row in result.layers] == [True, True, False]
    assert [row.axis.turned for row in result.layers] == [False, True, False]
    said = [line for line in result.summary() if line.startswith("The cone's axis")]
    turned = result.layers[1].axis.cosine
    assert turned < result.random_cosine.p95
    assert said == [
        f"The cone's axis turned most at layer 1: |cos| is {turned:.3f} there, no more than two random directions may "
        f"have (95% are below {result.random_cosine.p95:.3f})."
    ]
    random = torch.nn.functional.normalize(normal(4000, 12, dtype=torch.float64, shift=0, seed=5), dim=1)
    assert result.random_cosine.mean == pytest.approx(float(random[:, 0].abs().mean()), abs=0.01)
    same = compare(states[0], state_of(stretched(before, 0), second_moment=True)).summary()
    assert not any(line.startswith("The cone's axis") for line in same)  # no axis in layer 2, so nothing is known of it
    few = [state_of(before[:1, :20] + shift, second_moment=True) for shift in (0, 0.01)]
    assert not compare(*few).layers[0].axis.known
    assert "The cone's axis points the same way in both: |cos| is at least 1.000." in compare(*few).summary()
    alone = compare(states[0], state_of(before)).layers[0]
    assert math.isnan(alone.axis.cosine)
    assert not alone.axis.known


def test_what_sampling_alone_does_to_directions() -> None:
    generator = torch.Generator().manual_seed(0)

    def rows() -> Tensor:
        return stretched(torch.randn(1, 200, 1, 10, generator=generator) + 0.5, 0)

    rounds: list[list[float]] = []
    for found in turns([(rows(), rows()) for _ in range(100)]):
        ((axis,), (mean,)) = found["axis"], found["mean"]
        assert not axis.turned or axis.cosine > 0.98
        rounds.append([1 - axis.cosine**2, axis.sampling, 1 - mean.cosine**2, mean.sampling])
    of_axis, axis_bound, of_mean, mean_bound = torch.tensor(rounds).mean(0).tolist()
    assert of_axis == pytest.approx(axis_bound, rel=0.2)
    assert 0.5 * mean_bound < of_mean < mean_bound


# The spread of vectors with two axes that are nearly alike, then a gap.
SPREAD = torch.tensor([3.0, 2.9, *torch.linspace(1.2, 0.3, 18).tolist()])


def test_a_space_that_turned_is_told_though_its_axes_are_close() -> None:
    """Contrastive steps that take the variance to other directions; no single axis is determined."""
    rows = torch.randn(1, 300, 1, 20, generator=torch.Generator().manual_seed(0))
    before, after = rows * SPREAD + 0.5, rows * SPREAD.roll(5) + 0.5
    turned, same = (
        compare(*(state_of(one, second_moment=True) for one in (before, other))) for other in (after, before * 1.01)
    )
    axis = turned.layers[0].axis
    assert axis.overlap is not None
    assert (axis.verdict, axis.overlap.axes) == ("turned", 2)
    assert axis.sampling > 0.5  # as said of the first axis alone
    (said,) = (line for line in turned.summary() if line.startswith("The space of the top 2 axes turned"))
    assert f"most at layer 0: overlap {axis.overlap.value:.3f} there (from 0.00 to " in said
    assert not any("turned" in line for line in same.summary())
    data = turned.to_dict()["layers"][0]
    assert (data["axis_verdict"], data["axis_overlap"]["value"]) == ("turned", axis.overlap.value)


def test_spaces_of_two_samples_turn_as_rarely_as_promised() -> None:
    generator, rounds, false, values = torch.Generator().manual_seed(0), 60, 0, []

    def rows() -> Tensor:
        return torch.randn(2, 150, 1, 20, generator=generator) * SPREAD + 0.3

    for found in turns([(rows(), rows()) for _ in range(rounds)]):
        false += any(one.turned for one in (*found["axis"], *found["mean"]))
        values += [one.overlap.corrected for one in found["axis"] if one.overlap is not None]
    assert false <= scipy.stats.binom.ppf(0.9995, rounds, 0.1)  # two families at 0.05
    assert sum(values) / len(values) == pytest.approx(1, abs=0.01)
    for one in (*found["axis"], *found["mean"]):  # of the last round: bounds that hold for both layers together
        assert one.overlap is not None
        level = 1 - (1 - 0.95 ** (1 / 2)) / 2
        assert one.bound == pytest.approx(one.overlap.stderr * scipy.stats.t.ppf(level, one.overlap.degrees), rel=1e-9)


def test_a_mean_that_turned_is_told_by_the_same_sentences() -> None:
    """A turn that the choice of sentences would hide: they vary along it, in both states alike."""
    rows = torch.randn(1, 200, 1, 20, generator=torch.Generator().manual_seed(0)) + 0.2
    moved = rows.clone()
    moved[..., :3] += 0.5
    states = state_of(rows), state_of(moved)
    together, apart = (compare(*states, paired=paired).layers[0].mean for paired in (True, False))
    assert together.overlap is not None
    assert apart.overlap is not None
    assert together.overlap.stderr < apart.overlap.stderr
    assert together.turned
    assert "The mean turned most at layer 0: |cos| is " in " ".join(compare(*states).summary())


def test_rounding_is_no_change(before: Tensor) -> None:
    result = compare(state_of(before), state_of(before + 1e-8))
    change = result.layers[0].sentence
    assert 0 < abs(change.difference) < RESOLUTION
    assert change.p_adjusted < 0.05
    assert not change.significant
    assert "did not change by more than chance at any layer (0.05 for all layers together)" in result.summary()[0]


def test_the_same_state_is_said_to_be(before: Tensor) -> None:
    result = compare(state_of(before), state_of(before))
    assert result.summary() == ("state and state (2) are the same state, to the last bit.",)


@pytest.mark.parametrize("count", [0, 1, 2, 64])
def test_what_is_not_defined_is_null_with_a_reason(count: int) -> None:
    hidden = normal(2, count, 2, 8)
    result = compare(state_of(hidden), state_of(-hidden))
    change = json.loads(json.dumps(result.to_dict(), allow_nan=False))["layers"][0]["sentence"]
    if count == 64:
        assert "reason" not in change
        return
    assert change["p_value"] is None
    assert not change["significant"]
    assert change["reason"].startswith("it has no value in a and b" if count < 2 else "stderr: the jackknife needs")
    assert not any("opened" in line or "chance" in line for line in result.summary())


def test_to_dict_is_strict_json(before: Tensor, after: Tensor) -> None:
    result = compare(state_of(before), state_of(after))
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (data["schema"], data["experiment"]) == ("cone_kernels/compare/1", "compare")
    assert (data["paired"], data["alpha"], data["correction"]) == (True, 0.05, "max-t")
    assert list(data["layers"][1]) == [
        *("layer", "name", "sentence", "token", "gap", "within", "between", "predicted"),
        *("axis_cosine", "mean_cosine", "axis_sampling", "mean_sampling"),
        *("axis_overlap", "axis_verdict", "mean_overlap", "mean_verdict", "cone"),
    ]
    assert data["layers"][0]["axis_cosine"] is None
    assert data["layers"][1]["sentence"]["p_value"] == result.layers[1].sentence.p_value
    assert data["a"]["model"]["architecture"] == "BertModel"
    assert (data["a"]["sentences"], data["a"]["tokens"]) == (200, 800)
    assert data["summary"] == list(result.summary())
    lines = repr(result).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "2"]
    assert f"{result.layers[1].sentence.difference:+.4f}" in lines[3]
    assert f"{result.layers[1].sentence.difference:+.4f}" in result._repr_html_()
    assert len(result.plot().axes) == 3


def test_states_of_other_architectures_are_refused(before: Tensor) -> None:
    other = {"model": {"architecture": "GPT2Model", "model_type": "gpt2"}, "final_norm": True}
    words = (
        r"differ in architecture \('BertModel' and 'GPT2Model'\), final_norm \(False and True\), "
        r"layers \(\[0, 1, 2\] and \[0, 1\]\), model_type \('bert' and 'gpt2'\), width \(12 and 11\)"
    )
    with pytest.raises(ValueError, match=words):
        compare(state_of(before), state_of(before[:2, ..., :11], info=other))
    # What a state does not say of its model is no difference.
    assert isinstance(compare(state_of(before), state_of(before, info={})), CompareResult)


def with_output(hidden: Tensor, vectors: Tensor) -> ConeState:
    """A state of hidden states (L, n, T, d), and what the model makes of the sentences (n, D)."""
    state = state_of(hidden, second_moment=True)
    state.add_output(vectors, torch.arange(len(vectors)))
    return state


def test_the_models_own_output_is_one_more_row(before: Tensor, after: Tensor) -> None:
    a, b = (with_output(hidden, hidden[2].mean(1)[:, :5]) for hidden in (before, after))
    result = compare(a, b)
    assert [row.layer for row in result.layers] == [0, 1, 2, "output"]
    *layers, output = result.layers
    (alone,) = compare(*(vectors_state(hidden[2].mean(1)[:, :5]) for hidden in (before, after))).layers
    assert (output.sentence.a, output.sentence.b) == (alone.sentence.a, alone.sentence.b)
    assert (output.sentence.stderr, output.sentence.p_value) == (alone.sentence.stderr, alone.sentence.p_value)
    for mine, own in ((output.axis, alone.axis), (output.mean, alone.mean)):
        # Alone it is judged with no layers beside it.
        assert (mine.cosine, mine.sampling, mine.overlap) == (own.cosine, own.sampling, own.overlap)
        assert mine.bound > own.bound
    assert output.token is output.gap is output.within is output.between is output.predicted is None
    # A p value that no draw goes beyond is multiplied by how many rows there are, the output among them.
    least = min(result.layers, key=lambda row: row.sentence.p_value)
    assert least.sentence.p_value < 1e-6
    assert least.sentence.p_adjusted == pytest.approx(least.sentence.p_value * 4)
    assert [row.token for row in layers] == [row.token for row in compare(state_of(before), state_of(after)).layers]
    assert "tightened at layer 2 and the output, most at " in " ".join(result.summary())
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (data["layers"][3]["layer"], data["layers"][3]["token"]) == ("output", None)
    assert data["output_random_cosine"]["dim"] == 5
    assert "output" in fragment(data)
    written = io.StringIO()
    print_compare(Console(file=written, width=80), result)
    assert len([line for line in written.getvalue().splitlines() if line.startswith("output")]) == 1
    assert "output     " in repr(result) or " output " in repr(result)


def vectors_state(vectors: Tensor) -> ConeState:
    state = ConeState.of_vectors(vectors.shape[1], second_moment=True)
    state.add_output(vectors, torch.arange(len(vectors)))
    return state


def test_outputs_that_cannot_be_compared_are_left_out_and_it_is_said(before: Tensor, after: Tensor) -> None:
    vectors = before[2].mean(1)
    plain, wide, narrow = state_of(before), with_output(before, vectors), with_output(after, vectors[:, :5])
    for a, b, words in (
        (wide, narrow, "it is 12 wide in state and 5 in state (2)"),
        (wide, plain, "state has one, and state (2) has none"),
        (plain, wide, "state (2) has one, and state has none"),
    ):
        result = compare(a, b)
        assert [row.layer for row in result.layers] == [0, 1, 2]
        assert f"The models' own output is left out: {words}." in result.summary()
        assert "output_random_cosine" not in result.to_dict()
    assert not any("output" in line for line in compare(plain, state_of(after)).summary())


def test_states_of_two_poolings_are_refused(before: Tensor) -> None:
    cls = ConeState.empty(range(3), 12, info=INFO, pooling="cls")
    cls.update(list(before), torch.ones(before.shape[1:3]))
    with pytest.raises(ValueError, match="got states of the poolings mean and cls; they must be of one pooling"):
        compare(state_of(before), cls)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_alpha_is_a_rate(before: Tensor, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha: got"):
        compare(state_of(before), state_of(before), alpha=alpha)


def cone(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """States of two tiny models of other weights over the same sentences."""
    folder = tmp_path_factory.mktemp("states")
    sentences = [" ".join(WORDS[i : i + 1 + i % 5]) for i in range(90)]
    found = []
    for seed, name in enumerate(("before", "after")):
        save_checkpoint(folder / name, seed=seed)
        found.append(folder / f"{name}.safetensors")
        measure(folder / name, sentences, second_moment=True, save_state=found[-1])
    return found[0], found[1]


def test_as_a_user_runs_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    done = cone(*files, "--json", report)
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())
    assert (found["a"]["name"], found["b"]["name"], found["paired"]) == ("before", "after", True)
    assert found["a"]["model"]["weights_sha256"] != found["b"]["model"]["weights_sha256"]
    assert found["layers"][0]["name"] == "embeddings"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a: before (BertModel, float32, weights ")
    rows = [line for line in lines if re.match(r" +\d ", line)]
    assert len(rows) == 2 * len(found["layers"])
    for line, row in zip(rows, found["layers"], strict=False):
        assert f"{row['sentence']['a']:.4f}" in line
        assert f"{row['sentence']['difference']:+.4f}" in line
        assert ("▲" in line or "▼" in line) == any(row[name]["significant"] for name in ("sentence", "token", "gap"))
    assert max(len(line) for line in lines[3:]) <= 80
    alone = cone(*files, "--unpaired", "--json", "-")
    assert json.loads(alone.stdout)["paired"] is False


def test_a_terminal_of_ascii_gets_ascii(files: tuple[Path, Path]) -> None:
    written = io.BytesIO()
    console = Console(file=io.TextIOWrapper(written, encoding="ascii"), width=80)
    print_compare(console, compare(*files))
    console.file.flush()
    assert b" v -" in written.getvalue() or b" ^ +" in written.getvalue()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Missing argument 'A'"),
        (["missing", "missing"], 1, "Error: missing: No such file or directory"),
        (["{a}", "{a}", "--alpha", "1"], 2, "Invalid value for '--alpha'"),
        (["{a}", "{b}", "--json", "{a}"], 2, "is named twice"),
        (["{a}", "{text}"], 1, "Error: {text}: not a readable safetensors file"),
    ],
)
def test_failures_are_one_line(
    files: tuple[Path, Path], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("no state\n" * 100)
    names = {"a": files[0], "b": files[1], "text": text}
    done = cone(*(argument.format(**names) for argument in arguments))
    assert (done.exit_code, done.stdout) == (code, "")
    assert words.format(**names) in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1
