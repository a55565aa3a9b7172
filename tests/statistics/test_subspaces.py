"""What sentences do to axes: first-order moves against real ones, and errors of overlaps against their spread."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels.statistics.directions import random_cosine_mean
from cone_kernels.statistics.subspaces import (
    Overlap,
    SampledAxes,
    Space,
    TopAxes,
    compared_axes,
    drawn_overlaps,
    overlap,
    top_axes_overlap,
)
from tests.support.moment_cases import normal

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


def test_what_groups_add_to_a_covariance_is_their_products_less_their_share() -> None:
    """Groups of several sizes over two blocks, one of them empty: along the eigenvectors, by NumPy."""
    rows, number = normal(12, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 4, 4, 4, 4, 2, 2, 1])
    blocks = [(rows[:5].float(), number[:5]), (rows[5:], number[5:])]
    whole = torch.cat([rows[:5].float().double(), rows[5:]])
    found = SampledAxes.of_rows(torch.cov(whole.mT), whole.mean(0), 2, blocks, 5)
    values, vectors = np.linalg.eigh(np.cov(whole.numpy().T))
    assert found.values.tolist() == pytest.approx(values[::-1].tolist())
    v = found.vectors.numpy()
    assert np.abs(v.T @ vectors[:, ::-1]) == pytest.approx(np.eye(3), abs=1e-9)
    for group in range(5):
        own = (whole - whole.mean(0)).numpy()[number.numpy() == group]
        added = (own.T @ own - len(own) * np.cov(whole.numpy().T)) / 12
        wanted = math.sqrt(4 / 3) * (v.T @ added @ v)[:, :2]  # of the four groups that have rows
        np.testing.assert_allclose(found.products[group].numpy(), wanted, atol=1e-12)
    assert found.groups == 4
    moves = found.space(1).moves[..., 0]  # (G, d)
    wanted = sum(
        found.products[:, at, 0, None] / (found.values[0] - found.values[at]) * found.vectors[:, at] for at in (1, 2)
    )
    torch.testing.assert_close(moves, wanted)
    assert found.halves is not None
    for half, groups in zip(found.halves, ([0, 2, 4], [1, 3]), strict=True):
        torch.testing.assert_close(half, torch.cov(whole[torch.isin(number, torch.tensor(groups))].mT))
    for single in (0, 1):  # one half has a row, the other two
        numbers = torch.tensor([single, 1 - single, 1 - single])
        assert SampledAxes.of_rows(torch.eye(3).double(), torch.zeros(3), 2, [(rows[:3], numbers)], 2).halves is None
    alone = SampledAxes.of_rows(torch.eye(3).double(), torch.zeros(3), 2, [(rows, torch.zeros(12).long())], 2)
    assert bool(alone.products.isnan().all())
    assert math.isnan(alone.half_overlap(1))


def test_the_mean_direction_moves_by_what_lies_across_it() -> None:
    space = Space.of_mean(torch.tensor([[3.0, 1.0], [1.0, -1.0], [4.0, 0.0]], dtype=torch.float64))  # in all (8, 0)
    assert space.basis.tolist() == [[1], [0]]
    assert space.moves[:, 0, 0].tolist() == [0, 0, 0]
    assert space.moves[:, 1, 0].tolist() == pytest.approx([math.sqrt(3 / 2) / 8, -math.sqrt(3 / 2) / 8, 0])
    assert bool(Space.of_mean(torch.ones(1, 2).double()).moves.isnan().all())


def of_values(*values: float, groups: int = 40) -> SampledAxes:
    d = len(values)
    return SampledAxes(torch.tensor(values).double(), torch.eye(d).double(), torch.ones(groups, d, d).double(), None)


def test_gaps_are_shares_of_the_eigenvalue_before() -> None:
    assert [of_values(4, 1, 1, 0).gap(m) for m in (1, 2, 3, 4)] == [0.75, 0, 1, 0]
    assert of_values(4, 3).gap(2) == 1  # there is no further one
    top = TopAxes(torch.eye(3).double(), torch.tensor([4.0, 1.0]).double(), torch.eye(3)[:2].double(), 9)
    assert [top.gap(1), top.gap(2)] == [0.75, 0]


@pytest.mark.parametrize(
    ("a", "b", "k", "wanted"),
    [
        (of_values(10, 1, 0.5), of_values(10, 9, 1), 2, 2),  # the smaller of both gaps is the largest there
        (of_values(10, 9, 1), of_values(10, 1, 0.5), 2, 2),
        (of_values(10, 9, 1), of_values(10, 9, 1), 1, 1),
        (of_values(10, 9, 0), of_values(10, 9, 0), 9, 2),  # never all of them
        (of_values(10, 9, 1, groups=8), of_values(10, 9, 1), 2, 2),  # four groups for each
        (of_values(10, 9, 1), of_values(10, 9, 1, groups=7), 2, 1),
        (of_values(10, 9, 1, groups=3), of_values(10, 9, 1), 2, 1),
        (of_values(10), of_values(9), 2, 1),
    ],
)
def test_how_many_axes_are_compared(a: SampledAxes, b: SampledAxes, k: int, wanted: int) -> None:
    assert compared_axes(a, b, k) == wanted


def test_the_axes_compared_are_those_before_the_largest_gap() -> None:
    a, b = sampled(drawn(2000, 0)), sampled(drawn(2000, 1))
    assert compared_axes(a, b, 4) == 2
    assert compared_axes(a, b, 1) == 1
    few = SampledAxes(a.values, a.vectors, a.products[:5], None)
    assert compared_axes(few, few, 4) == 1


@pytest.mark.parametrize("size", [0.02, 0.2])  # moves that are small and moves whose squares are the error
@pytest.mark.parametrize("paired", [True, False])
def test_an_overlap_and_its_error_are_those_of_projectors_that_move(paired: bool, size: float) -> None:
    d, m, groups = 5, 2, 6
    generator = np.random.default_rng(0)
    bases, moves = [], []
    for empty in (0, 2):
        basis = np.linalg.qr(generator.normal(size=(d, m)))[0]
        across = size * (np.eye(d) - basis @ basis.T) @ generator.normal(size=(groups, d, m))
        across[:empty] = 0
        bases.append(basis)
        moves.append(across)
    p, q = (basis @ basis.T for basis in bases)
    of_p, of_q = ([y @ v.T + v @ y.T for y in ys] for v, ys in zip(bases, moves, strict=True))
    if paired:
        slopes = [np.trace(a @ q + p @ b) / m for a, b in zip(of_p, of_q, strict=True)]
        turned = [a - b for a, b in zip(of_p, of_q, strict=True)]
        alike = sum(np.trace(a @ b) for a, b in zip(of_p, of_q, strict=True)) / (2 * m)
    else:
        slopes = [*(np.trace(a @ q) / m for a in of_p), *(np.trace(p @ b) / m for b in of_q)]
        turned, alike = [*of_p, *(-b for b in of_q)], 0.0
    kernel = np.array([[np.trace(a @ b) for b in turned] for a in turned]) / (2 * m)
    squared = 2 * (np.sum(kernel**2) - np.sum(kernel.diagonal() ** 2))
    kept = [1 - sum(np.trace(a @ a) for a in of) / (2 * m) for of in (of_p, of_q)]
    value = np.trace(p @ q) / m
    spaces = [Space(torch.from_numpy(v), torch.from_numpy(y)) for v, y in zip(bases, moves, strict=True)]
    found = overlap(*spaces, paired)
    assert (found.axes, found.degrees) == (m, groups - 2 - 1)
    assert found.value == pytest.approx(value)
    assert found.corrected == pytest.approx((value - 2 * alike + alike**2) / (kept[0] * kept[1]))
    assert found.noise == pytest.approx(kernel.trace())
    assert found.stderr == pytest.approx(math.sqrt(max(np.sum(np.square(slopes)) - squared, squared)))
    # A space that is turned all around says nothing of the other.
    far = Space(spaces[0].basis, spaces[0].moves * 10 / size)
    assert math.isnan(overlap(far, spaces[1], paired).corrected)
    assert math.isnan(overlap(spaces[1], far, paired).corrected)


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


def test_groups_of_a_covariance_alone_vary_as_it_says() -> None:
    """Σ over the groups of a product's square is λᵢλⱼ/n on average; an eigenvalue below zero by rounding has none."""
    values = torch.cat([torch.linspace(3, 1, 299).double(), torch.tensor([-1e-9]).double()])
    found = SampledAxes.of_covariance(values.diag(), 50, 4, 3)
    assert found.products.shape == (3, 300, 4)
    assert float(found.products.sum(0).abs().max()) < 1e-12
    shares = found.products.square().sum(0)[:299] / (values[:299, None] * values[:4]) * 50
    assert float(shares.mean()) == pytest.approx(1, abs=5 / math.sqrt(299 * 4))  # of 1,196 means of two squares
    assert not bool(found.products[:, 299].any())
    assert not bool(SampledAxes.of_covariance(values[-2:].diag(), 50, 2, 3).products[..., 1].any())


def test_halves_are_those_of_the_groups() -> None:
    rows = drawn(1000, 0)
    even = (torch.arange(1000) * GROUPS // 1000) % 2 == 0
    top = [torch.linalg.eigh(torch.cov(rows[which].mT)).eigenvectors[:, -2:] for which in (even, ~even)]
    wanted = float((top[0].mT @ top[1]).square().sum()) / 2
    assert sampled(rows).half_overlap(2) == pytest.approx(wanted, abs=1e-9)


def test_directions_drawn_from_covariances_are_closer_than_those_of_the_whole_space() -> None:
    even = SampledAxes(torch.ones(DIM).double(), torch.eye(DIM).double(), torch.zeros(1, DIM, 1), None)
    assert float(drawn_overlaps(even, even, 1).sqrt().mean()) == pytest.approx(random_cosine_mean(DIM), rel=0.1)
    assert float(drawn_overlaps(even, even, 2).mean()) == pytest.approx(2 / DIM, rel=0.1)
    below = SampledAxes(torch.tensor([1.0, -1e-9]).double(), torch.eye(2).double(), torch.zeros(1, 2, 1), None)
    assert drawn_overlaps(below, below, 1).tolist() == pytest.approx([1] * 400)  # one direction alone varies
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
    undecided = top_axes_overlap(even, one, 3)
    assert (undecided.axes, undecided.degrees, undecided.noise) == (1, 1, math.inf)
    assert undecided.value == pytest.approx(c**2)
    assert math.isnan(undecided.stderr)
    single = TopAxes(torch.eye(1).double(), torch.ones(1).double(), torch.eye(1).double(), n)
    assert (top_axes_overlap(single, single, 3).axes, top_axes_overlap(single, single, 3).value) == (1, 1)


def test_the_overlap_of_two_first_axes_is_corrected_as_that_of_one() -> None:
    """Of five axes the first three are known; every sum over pairs of axes one by one."""
    values, n, known = [4.0, 3.0, 0.5, 0.3, 0.1], 60, 3
    turn = torch.linalg.qr(normal(5, 5, dtype=torch.float64, shift=0)).Q.numpy()
    tops = []
    for axes in (np.eye(5), turn):  # one a row
        matrix = torch.from_numpy(axes.T @ np.diag(values) @ axes)
        vectors = torch.from_numpy(axes[:known].copy())
        tops.append(TopAxes(matrix, torch.tensor(values[:known], dtype=torch.float64), vectors, n))
    found = top_axes_overlap(*tops, 2)
    parts = []
    for i in (0, 1):
        parts.append([values[i] * values[2] / (n * (values[i] - values[2]) ** 2)])
        # Those that are not known are as near as the third.
        parts.append([values[i] * value / (n * (values[i] - values[2]) ** 2) for value in values[known:]])
    turned = sum(map(sum, parts)) / 2
    assert tops[0].turns(2)[0] == pytest.approx(turned)
    # Their squares are largest where few of them have it all, each of at most the third one's.
    squares = sum(part[0] ** 2 for part in parts[::2])
    for i in (0, 1):
        slope = values[i] / (n * (values[i] - values[2]) ** 2)
        squares += slope * sum(values[known:]) * slope * values[2]
    assert tops[1].turns(2)[1] == pytest.approx(squares / 4)
    variance = 0.0
    for axes, towards in ((np.eye(5), turn[:2]), (turn, np.eye(5)[:2])):
        projector = towards.T @ towards
        for i in (0, 1):
            for j in (2, 3, 4):
                slope = 2 / 2 * axes[j] @ projector @ axes[i] / (values[i] - values[2])
                variance += slope**2 * values[i] * values[j] / n
    value = float(np.square(turn[:2, :2]).sum()) / 2
    assert (found.axes, found.degrees) == (2, n - 1)
    assert found.value == pytest.approx(value)
    assert found.noise == pytest.approx(2 * turned)
    assert found.corrected == pytest.approx(value / (1 - turned) ** 2)
    squared = 4 * 2 * squares / 4
    assert found.stderr == pytest.approx(math.sqrt(max(variance - squared, squared)))
    # Of few vectors the squares are the error, and of fewer nothing is known of the spaces themselves.
    few = [replace(one, count=6) for one in tops]
    squared *= (n / 6) ** 2
    assert top_axes_overlap(*few, 2).stderr == pytest.approx(math.sqrt(max(variance * n / 6 - squared, squared)))
    assert squared > variance * n / 6 - squared
    close = replace(tops[0], values=torch.tensor([4.0, 3.0, 2.9], dtype=torch.float64), count=1)
    for two in ((close, tops[1]), (tops[1], close)):
        assert math.isnan(top_axes_overlap(*two, 2).corrected)
