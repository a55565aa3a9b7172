"""The shape of a curve over the layers: where it builds, dips, peaks and crashes, told from noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cone_kernels.statistics.claims import Claim

# Swings smaller than this, or than their bound, do not count; a crash is a last step of at least 0.1 down; and heights
# that are nearer to each other than this are one, as two decimals show them.
_SWING, CRASH, _ALIKE = 0.02, 0.1, 0.01


@dataclass(frozen=True)
class Move:
    """A change from one layer to another; `height` is how far, always positive."""

    start: int
    end: int
    height: float


@dataclass(frozen=True)
class CurveShape:
    """The shape of an anisotropy curve.

    Attributes:
        builds: rises, each from a low to the next high.
        dips: lows between two highs, each from the lower one of the two highs to the low.
        peak: the layer where the curve is highest.
        peak_height: the value there.
        crash: the last step, where it falls by 0.1 or more; else None, and where one of its layers has no value.
        alike: the layers that are as high as the peak, as far as can be told; the peak is one of them.
    """

    builds: tuple[Move, ...]
    dips: tuple[Move, ...]
    peak: int
    peak_height: float
    crash: Move | None
    alike: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The shape as JSON data."""
        crash = self.crash
        return {
            "builds": [{"from": move.start, "to": move.end, "rise": move.height} for move in self.builds],
            "dips": [{"layer": move.end, "depth": move.height} for move in self.dips],
            "peak": {"layer": self.peak, "anisotropy": self.peak_height, "alike": list(self.alike)},
            "crash": {"from": crash.start, "to": crash.end, "drop": crash.height} if crash else None,
        }


def curve_shape(
    layers: Sequence[int], values: Sequence[float], bounds: Sequence[Sequence[float]] | None = None
) -> CurveShape | None:
    """The shape of `values` over `layers`; None with fewer than two finite values.

    Turning points are those of a zigzag whose every swing is at least 0.02, and more than its bound.

    Args:
        layers: the layers' numbers, rising.
        values: the anisotropy at each.
        bounds: [i][j] what a difference of values i and j must exceed to be told from noise, as
            `cone_kernels.statistics.claims` gives it for all pairs together; None where errors are not known.

    Raises:
        ValueError: the lengths differ.

    Examples:
        >>> curve_shape(range(4), [0.5, 0.7, 0.68, 0.1]).crash
        Move(start=2, end=3, height=0.58)
    """
    least = [[0.0] * len(values)] * len(values) if bounds is None else bounds
    if not len(layers) == len(values) == len(least):
        counts = f"{len(layers)} layers and {len(least)} rows of bounds"
        raise ValueError(f"values: got {len(values)} for {counts}; it must be one for each")
    points = [_Point(*each) for each in zip(layers, values, least, range(len(values)), strict=True)]
    known = [point for point in points if math.isfinite(point.value)]
    if len(known) < 2:
        return None
    turns = _turning_points(known)
    steps = list(itertools.pairwise(turns))
    builds = tuple(_move(low, high) for low, high in steps if high.value > low.value)
    dips = tuple(
        _move(min(before, after, key=_value), low)
        for before, low, after in zip(turns, turns[1:], turns[2:], strict=False)
        if low.value < before.value
    )
    peak = max(known, key=_value)
    alike = tuple(one.layer for one in known if not _apart(one, peak, _ALIKE))
    before, last = known[-2:]
    fell = known[-2:] == points[-2:] and last.value < before.value and _apart(before, last, CRASH)
    return CurveShape(builds, dips, peak.layer, peak.value, _move(before, last) if fell else None, alike)


class _Point(NamedTuple):
    layer: int
    value: float
    bounds: Sequence[float]  # of its difference to each other
    at: int


def _apart(a: _Point, b: _Point, by: float) -> bool:
    return Claim(a.value, null=b.value, bound=a.bounds[b.at], margin=by).differs


def _move(start: _Point, end: _Point) -> Move:
    return Move(start.layer, end.layer, abs(end.value - start.value))


def _turning_points(points: Sequence[_Point]) -> list[_Point]:
    """First point, turning points and last swing's end of the zigzag; empty where the curve is flat."""
    lowest = highest = points[0]
    turns: list[_Point] = []
    extreme = points[0]
    rising: bool | None = None
    for point in points[1:]:
        if rising is None:
            lowest, highest = min(lowest, point, key=_value), max(highest, point, key=_value)
            start = lowest if point is highest else highest
            if _apart(point, start, _SWING):
                rising, extreme = point.value > start.value, point
                turns.append(start)
        elif point.value > extreme.value if rising else point.value < extreme.value:
            extreme = point
        elif _apart(point, extreme, _SWING):
            turns.append(extreme)
            rising, extreme = not rising, point
    return [*turns, extreme] if turns else []


def _value(point: _Point) -> float:
    return point.value
