"""Sentences that are alike over long stretches are told, and independent ones are not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from torch import Tensor

from cone_kernels import ConeState
from cone_kernels.experiments import compare, layers, pooling
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.vectors import vectors
from cone_kernels.sums import jackknife_groups
from tests.support.recording_probe import plain_anisotropy


def topical(n: int, stretch: int, seed: int) -> Tensor:
    """(n, 16) vectors of topics; a topic has `stretch` of them in a row."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(n // stretch + 1, 16, generator=generator).repeat_interleave(stretch, 0)[:n]
    return 1 + topics + 0.7 * torch.randn(n, 16, generator=generator)


def state_of(rows: Tensor) -> ConeState:
    state = ConeState.empty([0], rows.shape[1])
    state.update([rows[:, None]], torch.ones(len(rows), 1))
    return state


def test_long_topics_are_told_and_what_they_do_to_the_error() -> None:
    found = [Dependence.of(state_of(topical(2000, 64, seed))) for seed in range(10)]
    assert sum(one.warning for one in found) >= 9
    (said,) = found[0].summary()
    assert "Neighbouring sentences are alike over long stretches" in said
    assert "--group-by, --shuffle and --sample mend that." in said
    # It is no small matter: the true spread is more than twice the error.
    found_layers = [layers(state=state_of(topical(2000, 64, seed))).layers[0].sentence for seed in range(12)]
    spread = float(torch.tensor([level.anisotropy for level in found_layers]).std())
    errors = torch.tensor([level.stderr for level in found_layers])
    assert spread > 1.7 * float(errors.mean())


@pytest.mark.parametrize("n", [100, 1500])
def test_independent_sentences_are_warned_of_as_rarely_as_promised(n: int) -> None:
    rounds = 150
    false = sum(Dependence.of(state_of(topical(n, 1, seed))).warning for seed in range(rounds))
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], rounds, 0.05)
    assert low <= false <= high


def test_it_is_in_every_result_that_has_errors() -> None:
    state, other = state_of(topical(2000, 64, 0)), state_of(topical(2000, 1, 0))
    for result in (layers(state=state), pooling(state=state)):
        assert result.to_dict()["dependence"]["warning"]
        assert "Neighbouring sentences are alike" in result.summary()[-1]
    assert not layers(state=other).to_dict()["dependence"]["warning"]
    given = vectors(topical(2000, 64, 0))
    assert "Neighbouring vectors are alike" in given.summary()[-1]
    both = compare(state, other)
    assert [one["warning"] for one in both.to_dict()["dependence"]] == [True, False]
    assert sum("Neighbouring sentences" in line for line in both.summary()) == 1


def test_of_two_states_of_the_same_sentences_the_worse_one_is_told_of() -> None:
    quiet, warned = Dependence(0.01, 0.2), Dependence(0.35, 0.2)
    found = compare(*(state_of(topical(200, 1, seed)) for seed in (0, 1)), paired=True)
    for both in ((quiet, warned), (warned, quiet)):
        said = [line for line in replace(found, dependence=both).summary() if "Neighbouring" in line]
        assert len(said) == 1
        assert "autocorrelation is 0.35; of independent ones it is above 0.20 once" in said[0]


def test_it_is_the_product_of_neighbours_over_the_squares() -> None:
    """Sixteen groups of a sentence each, four alike and four unlike all others in turn."""
    kinds = [0 if at // 4 % 2 == 0 else 1 + at for at in range(16)]
    found = Dependence.of(state_of(torch.eye(17)[kinds]))
    # Of fifteen pairs of neighbours twelve are of one kind: (12 - 3)/16, over 15/16 for the mean that is taken off.
    assert found.autocorrelation == 0.6


def test_groups_of_several_sizes_weigh_by_the_root_of_their_sentences() -> None:
    """Against plain leave-one-out values, at two layers."""
    n = 90
    layers_rows = torch.stack([topical(n, 6, seed).double() for seed in (0, 1)])  # (2, n, d)
    state = ConeState.empty([0, 1], layers_rows.shape[2])
    state.update(list(layers_rows[:, :, None]), torch.ones(n, 1))
    group = jackknife_groups(torch.arange(n))
    counts = torch.bincount(group).double()
    assert len(set(counts.tolist())) == 3
    wanted = []
    for rows in layers_rows:
        left_out = torch.tensor([plain_anisotropy(rows[group != one]) for one in range(len(counts))]).double()
        values = (left_out - left_out.mean()) / counts.sqrt()
        products = float((values[1:] * values[:-1]).sum() / values.square().sum())
        wanted.append(products * len(counts) / (len(counts) - 1))
    found = Dependence.of(state)
    assert abs(wanted[0] - wanted[1]) > 0.05
    assert found.autocorrelation == round(sum(wanted) / 2, 4)
    assert found.threshold == pytest.approx(scipy.stats.norm.ppf(0.95) / math.sqrt(len(counts)), rel=1e-3)


def test_a_layer_whose_vectors_are_all_alike_has_none() -> None:
    kinds = torch.eye(17)[[0 if at // 4 % 2 == 0 else 1 + at for at in range(16)]]
    state = ConeState.empty([0, 1], 17)
    state.update([kinds[:, None], torch.eye(17)[:1].expand(16, 1, 17)], torch.ones(16, 1))
    assert Dependence.of(state).autocorrelation == 0.3  # the mean of 0.6, as above, and of 0


def test_the_worst_is_one_that_is_known() -> None:
    unknown, known = Dependence(math.nan, math.nan), Dependence(-0.1, 0.2)
    assert Dependence.worst([unknown, known]) is Dependence.worst([known, unknown]) is known
    assert not Dependence(0.2, 0.2).warning


def test_few_groups_tell_nothing() -> None:
    found = Dependence.of(state_of(topical(10, 5, 0)))
    assert math.isnan(found.autocorrelation)
    assert found.summary() == ()
    assert found.to_dict() == {"autocorrelation": None, "threshold": None, "warning": False}
