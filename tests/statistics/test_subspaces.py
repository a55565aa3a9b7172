"""What sentences do to axes: first-order moves against real ones, and errors of overlaps against their spread."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cone_kernels.statistics.directions import random_cosine_mean
from cone_kernels.statistics.subspaces import (
    Overlap,
    SampledAxes,
    TopAxes,
    compared_axes,
    drawn_overlaps,
    overlap,
    top_axes_overlap,
)

GROUPS, DIM = 40, 20
# The spread of the vectors: two axes that are nearly alike, then a gap.
SPREAD = torch.tensor([3.0, 2.9, *torch.linspace(1.2, 0.3, DIM - 2).tolist()], dtype=torch.float64)


def drawn(n: int, seed: int) -> Tensor:
    return torch.randn(n, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * SPREAD


def sampled(rows: Tensor, k: int = 4) -> SampledAxes:
    groups = torch.arange(len(rows)) * GROUPS // len(rows)
    blocks = [(part, number) for part, number in zip(rows.split(150), groups.split(150), strict=True)]
    return SampledAxes.of_rows(torch.cov(rows.mT), rows.mean(0), k, blocks, GROUPS)


def turned(rows: Tensor, column: int, other: int, cosine: float) -> Tensor:
    """The vectors in a space in which one direction is turned towards another."""
    turn, sine = torch.eye(DIM, dtype=torch.float64), math.sqrt(1 - cosine**2)
    turn[[column, column, other, other], [column, other, column, other]] = torch.tensor(
        [cosine, -sine, sine, cosine], dtype=torch.float64
    )
    return rows @ turn.mT


def test_moves_are_those_of_axes_without_a_group() -> None:
    rows = drawn(4000, 0)
    found = sampled(rows)
    groups = torch.arange(4000) * GROUPS // 4000
    top = found.vectors[:, :2]
    for group in (0, 17):
        left = torch.linalg.eigh(torch.cov(rows[groups != group].mT)).eigenvectors[:, -2:]
        change = left @ left.mT - top @ top.mT
        # Without the group the covariance moves the other way; 40 groups are scaled by √(40/39).
        move = -found.space(2).moves[group] @ top.mT / math.sqrt(40 / 39)
        assert float((change - move - move.mT).norm()) < 0.1 * float(change.norm())
    assert float(found.space(2).moves.sum(0).norm()) < 1e-12


def test_the_axes_compared_are_those_before_the_largest_gap() -> None:
    a, b = sampled(drawn(2000, 0)), sampled(drawn(2000, 1))
    assert compared_axes(a, b, 4) == 2
    assert compared_axes(a, b, 1) == 1
    few = SampledAxes(a.values, a.vectors, a.products[:5], None)
    assert compared_axes(few, few, 4) == 1


def overlaps(rounds: int, n: int, paired: bool, cosine: float = 1.0) -> list[Overlap]:
    found = []
    for seed in range(rounds):
        rows = drawn(n, 2 * seed)
        others = turned(rows if paired else drawn(n, 2 * seed + 1), 0, 10, cosine)
        found.append(overlap(sampled(rows).space(2), sampled(others).space(2), paired))
    return found


@pytest.mark.parametrize(("paired", "cosine"), [(False, 1.0), (False, 0.8), (True, 0.8)])
def test_overlaps_are_right_on_average_and_as_far_off_as_their_errors_say(paired: bool, cosine: float) -> None:
    found = overlaps(60, 300, paired, cosine)
    # Of two axes one is turned.
    wanted = (1 + cosine**2) / 2
    corrected = torch.tensor([one.corrected for one in found])
    spread, errors = float(corrected.std()), torch.tensor([one.stderr for one in found])
    # As one sees it, two samples of one space are apart.
    assert sum(one.value for one in found) / len(found) < wanted - 0.005 or paired
    assert float(corrected.mean()) == pytest.approx(wanted, abs=4 * spread / math.sqrt(60) + 0.01)
    assert 0.75 * spread < float(errors.mean()) < 1.5 * spread
    outside = ((corrected - wanted).abs() > 2.02 * errors).double().mean()
    assert float(outside) <= 0.15


def test_the_same_vectors_have_the_same_axes_and_no_error() -> None:
    found = overlap(sampled(drawn(120, 0)).space(2), sampled(drawn(120, 0)).space(2), paired=True)
    assert (found.value, found.corrected) == (pytest.approx(1, abs=1e-12), pytest.approx(1, abs=1e-9))
    assert found.stderr == pytest.approx(0, abs=1e-9)
    assert found.noise == pytest.approx(0, abs=1e-9)
    assert found.degrees == GROUPS - 1


def test_a_covariance_alone_gives_errors_of_the_same_size() -> None:
    rows, others = drawn(1000, 0), drawn(1000, 1)
    of_rows = overlap(sampled(rows).space(2), sampled(others).space(2), paired=False)
    alone = [SampledAxes.of_covariance(torch.cov(one.mT), 1000, 4, GROUPS) for one in (rows, others)]
    found = overlap(*(one.space(2) for one in alone), paired=False)
    assert found.value == pytest.approx(of_rows.value)
    assert found.noise == pytest.approx(of_rows.noise, rel=0.2)
    assert found.stderr == pytest.approx(of_rows.stderr, rel=0.5)
    assert math.isnan(alone[0].half_overlap(2))


def test_halves_are_those_of_the_groups() -> None:
    rows = drawn(1000, 0)
    even = (torch.arange(1000) * GROUPS // 1000) % 2 == 0
    top = [torch.linalg.eigh(torch.cov(rows[which].mT)).eigenvectors[:, -2:] for which in (even, ~even)]
    wanted = float((top[0].mT @ top[1]).square().sum()) / 2
    assert sampled(rows).half_overlap(2) == pytest.approx(wanted, abs=1e-9)


def test_directions_drawn_from_covariances_are_closer_than_those_of_the_whole_space() -> None:
    even = SampledAxes(torch.ones(DIM).double(), torch.eye(DIM).double(), torch.zeros(1, DIM, 1), None)
    assert float(drawn_overlaps(even, even, 1).sqrt().mean()) == pytest.approx(random_cosine_mean(DIM), rel=0.1)
    narrow = sampled(drawn(1000, 0))
    assert float(drawn_overlaps(narrow, narrow, 1).mean()) > 2 * float(drawn_overlaps(even, even, 1).mean())


def test_the_overlap_of_first_axes_is_corrected_by_what_sampling_turns_them() -> None:
    """Two covariances of known eigenvalues, the one's first axis 30° from the other's: every number by hand."""
    values = torch.tensor([4.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    turn, (c, s), n = torch.eye(4, dtype=torch.float64), (math.cos(math.pi / 6), 0.5), 100
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = c, s, -s, c  # its rows are the axes
    one = TopAxes(values.diag(), values, torch.eye(4, dtype=torch.float64), n)
    other = TopAxes(turn.mT @ values.diag() @ turn, values, turn, n)
    found = top_axes_overlap(one, other, 3)
    parts = [4 * value / (n * (4 - value) ** 2) for value in (1.0, 0.5, 0.25)]
    assert (found.axes, found.degrees) == (1, n - 1)
    assert found.value == pytest.approx(c**2)
    assert found.noise == pytest.approx(2 * sum(parts))
    assert found.corrected == pytest.approx(c**2 / (1 - sum(parts)) ** 2)
    slope = 2 * 4 * 4 * (c * s) ** 2 * 0.5 / (n * 9)
    squared = 4 * 2 * sum(part**2 for part in parts)
    assert found.stderr == pytest.approx(math.sqrt(slope - squared))
    for two in ((one, replace(other, count=50)), (replace(one, count=50), other)):
        assert top_axes_overlap(*two, 3).degrees == 49
    # Axes that are not known are as near as the last one that is.
    few = replace(one, values=values[:2], vectors=one.vectors[:2])
    assert few.turns(1)[0] == pytest.approx(parts[0] + 4 * 0.75 / (n * 9))
    # Of axes that no gap sets apart nothing is known.
    even = TopAxes(torch.eye(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), turn, n)
    assert math.isnan(top_axes_overlap(one, even, 3).corrected)
