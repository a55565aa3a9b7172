"""How far two results are apart: the largest relative difference of their numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What tells of a run, of a file, of its bits or of an option and not of the model; a summary says what the numbers say.
OF_THE_RUN = frozenset(
    {"manifest", "summary", "seconds", "device", "compiled", "attention"}
    | {"file", "vectors_file", "state", "state_fingerprint", "source", "examples"}
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?!\w)")


@dataclass(frozen=True)
class Tolerance:
    """The largest difference that passes: `relative`, of numbers below `floor` (in absolute value) as if of `floor`.

    So `relative * floor` is the absolute difference that always passes.
    """

    relative: float
    floor: float
    texts: bool = True
    """Whether texts, such as the sentences at the ends of an axis, must be equal."""


# 1e-6 absolute, for an anisotropy near zero.
FLOAT32 = Tolerance(1e-4, 1e-2)
# Each device rounds within a layer as it likes; all of bfloat16's rounding makes 6e-4 on the small model.
SIXTEEN_BITS = Tolerance(5e-3, 1e-1, texts=False)
# Printed with two or three decimals.
PRINTED = Tolerance(2e-3, 1.0)
# So few steps of training that the devices' roundings have not yet grown to more.
TRAINED = Tolerance(2e-2, 1.0)


class OtherShapeError(ValueError):
    """Two results are not of one form: a value is missing, or of another kind; the message says where."""


@dataclass(frozen=True)
class Difference:
    """The largest difference, and where it is."""

    relative: float
    where: str


def largest_difference(got: Any, wanted: Any, tolerance: Tolerance) -> Difference:
    """The largest relative difference of the numbers of two JSON results, whose tensors are compared as a whole.

    Raises:
        OtherShapeError: they differ in something else than their numbers.

    Examples:
        >>> largest_difference({"layers": [0.5, 2.0]}, {"layers": [0.5, 2.002]}, FLOAT32)
        Difference(relative=0.000999..., where='layers[1]')
    """
    found = [one for one in _differences(got, wanted, tolerance, "") if one.relative > 0]
    return max(found, key=lambda one: one.relative, default=Difference(0.0, ""))


def printed_numbers(text: str) -> list[float]:
    """The numbers of a text, without those that are part of a word: what a program has printed of its results."""
    return [float(number) for number in _NUMBER.findall(text)]


def _differences(got: Any, wanted: Any, tolerance: Tolerance, where: str) -> Iterator[Difference]:
    if isinstance(wanted, dict) and isinstance(got, dict):
        names = [set(one) - OF_THE_RUN for one in (got, wanted)]
        if names[0] != names[1]:
            raise OtherShapeError(f"{where or 'the result'}: only one of the two has {sorted(names[0] ^ names[1])}")
        for name in sorted(names[1]):
            yield from _differences(got[name], wanted[name], tolerance, f"{where}.{name}".lstrip("."))
    elif isinstance(wanted, (list, tuple)) and isinstance(got, (list, tuple)):
        if len(got) != len(wanted):
            raise OtherShapeError(f"{where}: got {len(got)} entries; it must be {len(wanted)}")
        for index, pair in enumerate(zip(got, wanted, strict=True)):
            yield from _differences(*pair, tolerance, f"{where}[{index}]")
    elif isinstance(wanted, Tensor) and isinstance(got, Tensor):
        yield Difference(_of_tensors(got, wanted, where), where)
    elif _is_number(wanted) and _is_number(got):
        yield Difference(_of_numbers(got, wanted, tolerance.floor), where)
    elif got != wanted and (tolerance.texts or not (isinstance(got, str) and isinstance(wanted, str))):
        raise OtherShapeError(f"{where}: got {got!r}; it must be {wanted!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of_numbers(got: float, wanted: float, floor: float) -> float:
    if got == wanted or (math.isnan(got) and math.isnan(wanted)):
        return 0.0
    difference = abs(got - wanted) / max(abs(got), abs(wanted), floor)
    return difference if math.isfinite(difference) else math.inf


def _of_tensors(got: Tensor, wanted: Tensor, where: str) -> float:
    """The largest difference as a share of the largest entry."""
    if got.shape != wanted.shape:
        raise OtherShapeError(f"{where}: got shape {tuple(got.shape)}; it must be {tuple(wanted.shape)}")
    found, right = (one.detach().to("cpu", torch.float64) for one in (got, wanted))
    if torch.equal(found, right):
        return 0.0
    largest = max(float(right.abs().max()), torch.finfo(torch.float64).tiny)
    return _of_numbers(float((found - right).abs().max()) / largest, 0.0, 1.0)
