"""The shape of a curve: on the published one, on noise, and on every zigzag that hypothesis draws."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.experiments.curve_shape import Move, curve_shape
from cone_kernels.experiments.published import MXBAI_EMBED_LARGE


def moves(found: tuple[Move, ...]) -> list[tuple[int, int, float]]:
    return [(move.start, move.end, round(move.height, 3)) for move in found]


def test_published_curve() -> None:
    shape = curve_shape(range(25), MXBAI_EMBED_LARGE["anisotropy"])
    assert shape is not None
    assert moves(shape.builds) == [(0, 3, 0.255), (6, 12, 0.222), (15, 16, 0.062)]
    assert moves(shape.dips) == [(3, 6, 0.179), (16, 15, 0.062)]
    assert (shape.peak, shape.peak_height) == (12, 0.924)
    # 0.923 and 0.924 are no two heights.
    assert shape.alike == (11, 12)
    assert shape.crash is not None
    assert moves((shape.crash,)) == [(23, 24, 0.255)]
    assert shape.to_dict()["dips"][0] == {"layer": 6, "depth": shape.dips[0].height}


def test_a_wobble_is_no_swing() -> None:
    shape = curve_shape(range(5), [0.50, 0.515, 0.505, 0.51, 0.50])
    assert shape is not None
    assert (shape.builds, shape.dips, shape.crash, shape.peak) == ((), (), None, 1)


@pytest.mark.parametrize(
    ("values", "builds", "crashes", "alike"),
    [
        ([0.5, 0.517], 0, False, (1,)),
        ([0.5, 0.523], 1, False, (1,)),
        ([0.5, 0.7, 0.61], 1, False, (1,)),
        ([0.5, 0.7, 0.58], 1, True, (1,)),
        ([0.5, 0.7, 0.688], 1, False, (1,)),
        ([0.5, 0.7, 0.692], 1, False, (1, 2)),
        # A last step up is no crash.
        ([0.5, 0.6, 0.9], 1, False, (2,)),
    ],
)
def test_what_is_worth_a_word(values: list[float], builds: int, crashes: bool, alike: tuple[int, ...]) -> None:
    """A swing of 0.02, a crash of 0.1, heights that are 0.01 apart: somewhat less is none, and somewhat more is one."""
    shape = curve_shape(range(len(values)), values)
    assert shape is not None
    assert (len(shape.builds), shape.crash is not None, shape.alike) == (builds, crashes, alike)


def test_json_has_every_swing_and_null_for_no_crash() -> None:
    falling, rising = (curve_shape(range(3, 7), values) for values in ([0.25, 0.75, 0.5, 0.125], [0.75, 0.5, 0.625, 1]))
    assert falling is not None
    assert falling.to_dict() == {
        "builds": [{"from": 3, "to": 4, "rise": 0.5}],
        "dips": [],
        "peak": {"layer": 4, "anisotropy": 0.75, "alike": [4]},
        "crash": {"from": 5, "to": 6, "drop": 0.375},
    }
    assert rising is not None
    assert rising.to_dict() == {
        "builds": [{"from": 4, "to": 6, "rise": 0.5}],
        "dips": [{"layer": 4, "depth": 0.25}],
        "peak": {"layer": 6, "anisotropy": 1, "alike": [6]},
        "crash": None,
    }


def test_the_first_swing_is_from_the_highest_or_lowest_layer_so_far() -> None:
    """A rise too small for a swing, and the fall from its end."""
    shape = curve_shape(range(4), [0.5, 0.515, 0.49, 0.6])
    assert shape is not None
    assert (moves(shape.builds), moves(shape.dips)) == ([(2, 3, 0.11)], [(1, 2, 0.025)])
    mirrored = curve_shape(range(4), [0.5, 0.485, 0.51, 0.4])
    assert mirrored is not None
    assert (moves(mirrored.builds), mirrored.dips) == ([(1, 2, 0.025)], ())


def test_of_layers_that_are_as_high_or_as_low_a_swing_ends_at_the_first() -> None:
    shape = curve_shape(range(4), [0.1, 0.5, 0.5, 0.1])
    assert shape is not None
    assert (shape.builds[-1].end, shape.peak, shape.alike) == (1, 1, (1, 2))
    mirrored = curve_shape(range(5), [0.1, 0.9, 0.5, 0.5, 0.9])
    assert mirrored is not None
    assert (moves(mirrored.dips), moves(mirrored.builds)) == ([(1, 2, 0.4)], [(0, 1, 0.8), (2, 4, 0.4)])


def test_a_swing_within_its_error_is_none() -> None:
    values = [0.5, 0.7, 0.6, 0.8, 0.6]
    exact, noisy = (curve_shape(range(5), values, [[bound] * 5] * 5) for bound in (0.004, 0.4))
    assert exact is not None
    assert noisy is not None
    assert (len(exact.builds), len(exact.dips)) == (2, 1)
    assert exact.crash is not None
    assert (noisy.builds, noisy.dips, noisy.crash) == ((), (), None)


def test_layers_that_are_not_defined_are_left_out() -> None:
    shape = curve_shape([0, 1, 2, 3], [0.1, math.nan, 0.5, 0.2])
    assert shape is not None
    assert moves(shape.builds) == [(0, 2, 0.4)]
    assert shape.crash == Move(2, 3, pytest.approx(0.3))
    assert curve_shape([0, 1], [0.1, math.nan]) is None
    with pytest.raises(ValueError, match="values: got 1 for 2 layers"):
        curve_shape([0, 1], [0.1])


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_builds_and_dips_are_swings_of_the_curve(values: list[float]) -> None:
    shape = curve_shape(range(len(values)), values)
    assert shape is not None
    assert shape.peak_height == max(values) == values[shape.peak]
    for move in shape.builds:
        assert move.height == pytest.approx(values[move.end] - values[move.start])
        assert move.height >= 0.02
        # Nothing on the way goes beyond the ends of the swing.
        way = values[move.start : move.end + 1]
        assert min(way) == values[move.start]
        assert max(way) == values[move.end]
    for move in shape.dips:
        assert move.height == pytest.approx(values[move.start] - values[move.end])
        assert move.height >= 0.02
    assert len(shape.dips) <= len(shape.builds)
    mirrored = curve_shape(range(len(values)), values[::-1])
    assert mirrored is not None
    assert mirrored.peak_height == shape.peak_height


def test_the_last_step_is_one_of_the_last_two_layers() -> None:
    """A layer without a value at the end: what falls before it is no crash at the end."""
    assert curve_shape(range(4), [0.5, 0.7, 0.1, math.nan]).crash is None  # type: ignore[union-attr]
    assert curve_shape(range(4), [0.5, 0.7, math.nan, 0.1]).crash is None  # type: ignore[union-attr]
    assert curve_shape(range(4), [math.nan, 0.5, 0.7, 0.1]).crash is not None  # type: ignore[union-attr]
