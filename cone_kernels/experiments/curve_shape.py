"""The shape of a curve over the layers: where it builds, dips, peaks and crashes, told from noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Swings smaller than this, or than three standard errors, do not count; a crash is a last step of at least 0.1 down.
_SWING, _CRASH, _STANDARD_ERRORS = 0.02, 0.1, 3.0


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
    """

    builds: tuple[Move, ...]
    dips: tuple[Move, ...]
    peak: int
    peak_height: float
    crash: Move | None

    def to_dict(self) -> dict[str, Any]:
        """The shape as JSON data."""
        crash = self.crash
        return {
            "builds": [{"from": move.start, "to": move.end, "rise": move.height} for move in self.builds],
            "dips": [{"layer": move.end, "depth": move.height} for move in self.dips],
            "peak": {"layer": self.peak, "anisotropy": self.peak_height},
            "crash": {"from": crash.start, "to": crash.end, "drop": crash.height} if crash else None,
        }


def curve_shape(
    layers: Sequence[int], values: Sequence[float], stderrs: Sequence[float] | None = None
) -> CurveShape | None:
    """The shape of `values` over `layers`; None with fewer than two finite values.

    Turning points are those of a zigzag whose every swing is at least 0.02 and three standard errors of a difference
    (taken as independent, which is more than it is for layers of the same sentences).

    Args:
        layers: the layers' numbers, rising.
        values: the anisotropy at each.
        stderrs: its standard errors; None where they are not known.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> curve_shape(range(4), [0.5, 0.7, 0.68, 0.1]).crash
        Move(start=2, end=3, height=0.58)
    """
    errors = [0.0] * len(values) if stderrs is None else stderrs
    if not len(layers) == len(values) == len(errors):
        counts = f"{len(layers)} layers and {len(errors)} standard errors"
        raise ValueError(f"values: got {len(values)} for {counts}; it must be one for each")
    points = list(zip(layers, values, errors, strict=True))
    known = [point for point in points if all(map(math.isfinite, point))]
    if len(known) < 2:
        return None
    turns = _turning_points(known)
    steps = list(itertools.pairwise(turns))
    builds = tuple(_move(low, high) for low, high in steps if high[1] > low[1])
    dips = tuple(
        _move(min(before, after, key=lambda point: point[1]), low)
        for before, low, after in zip(turns, turns[1:], turns[2:], strict=False)
        if low[1] < before[1]
    )
    peak = max(known, key=lambda point: point[1])
    before, last = known[-2:]
    is_last_step = known[-2:] == points[-2:]
    fell = is_last_step and before[1] - last[1] >= max(_CRASH, _least_swing(before, last))
    return CurveShape(builds, dips, peak[0], peak[1], _move(before, last) if fell else None)


_Point = tuple[int, float, float]  # layer, value, standard error


def _least_swing(a: _Point, b: _Point) -> float:
    return max(_SWING, _STANDARD_ERRORS * math.hypot(a[2], b[2]))


def _move(start: _Point, end: _Point) -> Move:
    return Move(start[0], end[0], abs(end[1] - start[1]))


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
            if abs(point[1] - start[1]) >= _least_swing(point, start):
                rising, extreme = point[1] > start[1], point
                turns.append(start)
        elif (point[1] > extreme[1]) == rising:
            extreme = point
        elif abs(point[1] - extreme[1]) >= _least_swing(point, extreme):
            turns.append(extreme)
            rising, extreme = not rising, point
    return [*turns, extreme] if turns else []


def _value(point: _Point) -> float:
    return point[1]
