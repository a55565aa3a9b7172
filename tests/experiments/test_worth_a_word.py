"""On both sides of every threshold from which something is said: somewhat less says nothing, somewhat more says it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cone_kernels import ConeState, Moments
from cone_kernels.experiments.axes_pair import AxesPair, Chance
from cone_kernels.experiments.axis import axis
from cone_kernels.experiments.axis_result import AxisResult, _quoted, excerpt
from cone_kernels.experiments.compare import compare
from cone_kernels.experiments.compare_result import DirectionChange, _tokens
from cone_kernels.experiments.corpora_result import MeansPair, _moves
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.layer_steps import LayerStep, layer_steps
from cone_kernels.experiments.pooling_claims import PoolingClaims
from cone_kernels.experiments.result import Estimate
from cone_kernels.experiments.rotation import rotation_of
from cone_kernels.experiments.rotation_result import RotationResult, _apart, _correlate
from cone_kernels.experiments.rows_result import _below
from cone_kernels.experiments.vectors import vectors
from cone_kernels.experiments.vocabulary import TokenProjection
from cone_kernels.statistics.estimates import Estimates
from cone_kernels.statistics.subspaces import Overlap
from tests.experiments.test_compare import state_of
from tests.experiments.test_rotation import SENTENCES, of_rows
from tests.support.moment_cases import normal
from tests.support.tiny_checkpoints import save_checkpoint

D = 16


def overlap(corrected: float, noise: float = 0.1, value: float | None = None) -> Overlap:
    return Overlap(1, corrected if value is None else value, corrected, 0.001, noise, 30)


@pytest.mark.parametrize(
    ("corrected", "noise", "verdict", "needed"),
    [
        (0.83, 0.1, "share", 100),  # |cos| above and below 0.9
        (0.79, 0.1, "differ", 100),
        (0.83, 0.45, "share", 100),  # determined by the sentences, and not
        (0.83, 0.55, "undecided", 550),  # as many as leave a mean sin² of 0.1
    ],
)
def test_shared_axes(corrected: float, noise: float, verdict: str, needed: int) -> None:
    pair = AxesPair(overlap(corrected, noise), 0.002, 0.01, (0.9, 0.9), Chance(0.1, 0.3), 100)
    assert (pair.verdict, pair.needed) == (verdict, needed)
    assert (pair.to_dict()["corrected"] is None) == (verdict == "undecided")
    assert (pair.to_dict()["low"] is None) == (pair.to_dict()["high"] is None) == (verdict == "undecided")


@pytest.mark.parametrize(("corrected", "moves"), [(0.997, "moves with the corpus, but stays above"), (0.999, "stays")])
def test_a_mean_that_stays(corrected: float, moves: str) -> None:
    """Where the interval of ± 0.002 reaches 1."""
    assert _moves(MeansPair(overlap(corrected), 0.002, (0.99, 0.99))).startswith(moves)


def test_fewest_sentences_are_told_where_it_is_undecided() -> None:
    pairs = [AxesPair(overlap(0.81), 0.002, 0.01, (0.9, 0.9), Chance(0.1, 0.3), n) for n in (200, 100, 300)]
    assert _apart(pairs, "a and b").startswith("Whether a and b share their axis is undecided by 100 sentences: |cos| ")


def test_no_closer_than_chance() -> None:
    pairs = [AxesPair(overlap(value), 0.002, 0.01, (0.9, 0.9), Chance(0.1, 0.3), 100) for value in (0.29, 0.31)]
    assert [pair.by_chance for pair in pairs] == [True, False]


@pytest.mark.parametrize(
    ("value", "noise", "verdict"),
    [(0.91, 0.1, "same"), (0.89, 0.1, "turned"), (0.89, 0.45, "turned"), (0.89, 0.55, "undecided")],
)
def test_a_direction_that_turned(value: float, noise: float, verdict: str) -> None:
    assert DirectionChange(math.sqrt(value), 0.1, overlap(value, noise), 0.002).verdict == verdict


@pytest.mark.parametrize(("second", "said"), [(0.93, True), (0.9, False)])
def test_axes_that_are_the_same_at_every_layer(second: float, said: bool) -> None:
    """By their spaces: the first axes alone are further apart."""
    rows = normal(2, 40, 1, D, dtype=torch.float64)
    found = compare(state_of(rows, second_moment=True), state_of(rows + 1, second_moment=True))
    axes = (DirectionChange(0.8, 0.1, overlap(value), 0.005) for value in (0.95, second))
    layers = tuple(replace(row, axis=axis) for row, axis in zip(found.layers, axes, strict=True))
    words = f"The space of the top axes is the same in both: overlap at least {second:.3f}."
    assert (words in replace(found, layers=layers).summary()) == said


def test_the_largest_change_is_told_of_those_that_fall_and_of_those_that_rise() -> None:
    """Of tokens, which have a value at every layer; what is not significant is not counted."""
    rows = normal(5, 20, 1, 4, dtype=torch.float64)
    found = compare(state_of(rows), state_of(rows))
    changes = ((-0.3, True), (-0.1, True), (-0.5, False), (0.2, True), (0.05, True))
    layers = tuple(
        replace(row, token=replace(row.token, difference=difference, significant=significant))  # type: ignore[type-var]
        for row, (difference, significant) in zip(found.layers, changes, strict=True)
    )
    assert _tokens(layers) == [
        "The mean cosine of two tokens fell at layers 0 and 1 (by up to 0.3000) and rose at layers 3 and 4 (by up to "
        "0.2000)."
    ]


@pytest.mark.parametrize(("length", "least", "verdict"), [(2.85, 0.02, "removed"), (2.93, 0.005, "stayed")])
def test_a_cone_that_lost_a_little(length: float, least: float, verdict: str) -> None:
    noise = 0.7 * normal(800, D, dtype=torch.float64, shift=0)
    before, after = (noise + size * torch.eye(D, dtype=torch.float64)[0] for size in (3, length))
    cone = compare(*(state_of(rows[None, :, None]) for rows in (before, after))).layers[0].cone
    assert least < cone.removed.estimate < least + 0.015
    assert cone.removed.bound < 0.003
    assert cone.verdict == verdict


@pytest.fixture(scope="module")
def axes(tmp_path_factory: pytest.TempPathFactory) -> AxisResult:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return axis(folder, SENTENCES, k=1, top=1)


@pytest.mark.parametrize(
    ("changed", "said", "words"),
    [
        ({"eigengap": 0.09}, True, "The second axis carries nearly as much"),
        ({"eigengap": 0.11}, False, "The second axis carries nearly as much"),
        ({"correlations": {"length": 0.33}}, True, "It goes with the"),
        ({"correlations": {"length": -0.27}}, True, "It goes with none of length: every |r| is below 0.3."),
    ],
)
def test_what_is_told_of_an_axis(axes: AxisResult, changed: dict[str, object], said: bool, words: str) -> None:
    first = replace(axes.components[0], **{"eigenvalue": 1.0, **changed})  # type: ignore[arg-type]
    found = replace(axes, components=(first, *axes.components[1:]), sentences=100_000)
    assert (words in " ".join(found.summary())) == said


@pytest.mark.parametrize(
    ("angle", "words"),
    [
        (80.3, "It stands across the mean direction (80°)"),
        (79.4, "It stands at 79° to the mean direction."),
        (9.7, "It is nearly the mean direction (10°)"),
        (10.6, "It stands at 11° to the mean direction."),
    ],
)
def test_the_angle_of_an_axis(axes: AxisResult, angle: float, words: str) -> None:
    found = replace(axes, mean_cosine=math.cos(math.radians(angle)))
    assert words in " ".join(found.summary())


@pytest.mark.parametrize(("second", "said"), [(0.91, True), (0.89, False)])
def test_a_second_axis_of_vectors(second: float, said: bool) -> None:
    """Rows that lie at ± one axis or another in turn: the eigenvalues are known."""
    scale = torch.tensor([1.0, second, 0.3, 0.2], dtype=torch.float64).sqrt()
    rows = (torch.cat([torch.eye(4), -torch.eye(4)]).double() * scale).repeat(20, 1) + torch.tensor([0, 0, 0, 2.0])
    found = " ".join(vectors(rows, axis=1).summary())
    assert "The first axis carries" in found
    assert ("The second axis carries nearly as much" in found) == said


def test_fifteen_groups_say_nothing_of_neighbours() -> None:
    for n, known in ((15, False), (16, True)):
        moments = Moments.empty("sentence", [0], 4)
        moments.update(normal(n, 4))  # the first sixteen groups have a sentence each
        found = Dependence.of_moments(moments)
        assert math.isfinite(found.autocorrelation) == known
        assert found.threshold == pytest.approx(1.6449 / 4, abs=1e-4) if known else math.isnan(found.threshold)


def turned(*angles: float) -> ConeState:
    """Layers whose vectors lie closely around directions in a plane, so many radians from the first axis."""
    noise = 0.02 * normal(1, 400, D, dtype=torch.float64, shift=0)
    plane = torch.tensor([[math.cos(one), math.sin(one)] for one in angles], dtype=torch.float64)
    return state_of((noise + torch.nn.functional.pad(plane, (0, D - 2))[:, None])[:, :, None])


def steps_of(*angles: float) -> tuple[LayerStep, ...]:
    state = turned(*angles)
    return layer_steps(state.sentence, state.layers)


def test_a_mean_that_turns() -> None:
    (kept,), (gone,) = (steps_of(0, math.acos(cosine)) for cosine in (0.92, 0.88))
    assert (kept.mean_verdict, gone.mean_verdict) == ("keeps", "turns")
    axes = [replace(kept, axes=overlap(value), axes_bound=0.002).axes_verdict for value in (0.83, 0.79)]
    assert axes == ["keeps", "turns"]


@pytest.mark.parametrize(("share", "verdict"), [(0.78, "greater"), (0.72, "equal")])
def test_a_step_that_changes_more_than_its_share(share: float, verdict: str) -> None:
    """Half as much again as an even share of two, 0.75: chords are as long as the roots of their shares."""
    chords = [0.3 * math.sqrt(one) for one in (share, 1 - share)]
    first, second = (2 * math.asin(one / 2) for one in chords)
    step = steps_of(0, first, first + second)[0]
    assert step.share.estimate == pytest.approx(share, abs=0.01)
    assert step.share.verdict == verdict


def test_what_averaging_alone_does_not_predict() -> None:
    error = torch.full((2,), 1e-4, dtype=torch.float64)
    rest = Estimates.of_errors(torch.tensor([0.012, 0.008], dtype=torch.float64), error)
    gap = Estimates.of_errors(torch.tensor([0.2, 0.2], dtype=torch.float64), error)
    claims = PoolingClaims.of_estimates(gap, rest, {})
    assert [claim.verdict for claim in claims.rest] == ["greater", "equal"]


@pytest.mark.parametrize(
    ("r", "n", "same"),
    [(0.934, 103, True), (0.929, 103, False), (0.999, 3, False), (0.999, 5, True), (0.996, 4, False)],
)
def test_projections_that_are_the_same(r: float, n: int, same: bool) -> None:
    """z = atanh 0.9 + 1.96/√100 is that of r = 0.9313."""
    assert _correlate(r, n) == same


def means(level: float, own: float, other: float, stderr: float = 0.001) -> tuple[str, ...]:
    """What is said of one model's cone, of what its own mean leaves of it, and of what another's does."""
    rows = normal(60, 6, dtype=torch.float64)
    found: RotationResult = rotation_of([of_rows(rows, "a"), of_rows(rows[:40], "b", fingerprint="two")], k=1)
    models = tuple(
        replace(model, level=replace(model.level, anisotropy=value, stderr=stderr))
        for model, value in zip(found.models, (level, 0.0), strict=True)
    )
    errors = ((stderr, stderr), (stderr, stderr))
    changed = replace(found, models=models, centered_anisotropy=((own, other), (0.0, 0.0)), centered_stderr=errors)
    return tuple(line for line in changed.summary() if line.startswith("Subtracting its own mean"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (0.045, "carries over: 0.045"),
        (0.05, "carries over: 0.050"),
        (0.055, "carries over in part: 0.055"),
        (0.445, "carries over in part: 0.445"),
        (0.45, "carries over in part: 0.450"),
        (0.455, "does not carry over: 0.455"),
        (0.545, "does not carry over: 0.545"),
        (0.55, "does not carry over: 0.550"),
        (0.555, "makes the cone tighter: 0.555"),
    ],
)
def test_what_another_mean_does(other: float, words: str) -> None:
    (said,) = means(0.5, 0.0, other)
    assert said.endswith(f"that of b {words}.")


@pytest.mark.parametrize(
    ("level", "stderr", "said"),
    [(0.022, 0.001, 1), (0.018, 0.001, 0), (0.45, 0.1, 1), (0.4, 0.1, 0), (0.4, math.nan, 0)],
)
def test_a_cone_that_is_large_enough_and_known(level: float, stderr: float, said: int) -> None:
    """0.02, and three times an error of 0.1·√2."""
    assert len(means(level, 0.0, 0.0, stderr)) == said


@pytest.mark.parametrize(
    ("distance", "stderr", "below"),
    [
        (0.0095, 0.0002, "yes"),
        (0.0095, 0.0003, "undecided"),
        (0.0105, 0.0003, "undecided"),
        (0.0105, 0.0002, "no"),
        (0.005, math.nan, "undecided"),
    ],
)
def test_twins_that_are_the_same(distance: float, stderr: float, below: str) -> None:
    """A hundredth of the way to another row, by two standard errors."""
    assert _below(Estimate(distance, stderr)) == below


def test_three_tokens_are_quoted_and_long_ones_are_cut() -> None:
    tokens = [TokenProjection(name, number, 0.0) for number, name in enumerate(("one", "a" * 40, "three", "four"))]
    said = _quoted(tokens)
    assert said == f"“one”, “{excerpt('a' * 40, 20)}”, “three”"
    assert len(excerpt("a" * 40, 20)) <= 20
