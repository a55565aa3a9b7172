"""What may be said of the axes of two models, or of one over two corpora, and how it is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cone_kernels.experiments.result import finite
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.statistics.subspaces import Overlap

Matrix = tuple[tuple[float, ...], ...]
"""m × m; NaN where a value is not defined."""

SharedAxes: TypeAlias = Literal["share", "differ", "undecided"]
"""What may be said of the axes of two models."""

# |cos| from which on two axes are called one (of spaces the root of the mean cos² of their angles), and |r| from which
# on two sets of projections are called the same.
SHARED = 0.9
# Where the choice of sentences turns axes apart by more than this mean sin², they are not determined; how many would
# determine them is told for this much.
_UNDETERMINED, _DETERMINED = 0.5, 0.1


@dataclass(frozen=True)
class Chance:
    """|cos| of two random directions: its mean, and what one pair in twenty exceeds."""

    mean: float
    p95: float

    def to_dict(self) -> dict[str, float]:
        """The two as JSON data."""
        return {"mean": self.mean, "p95": self.p95}


@dataclass(frozen=True)
class AxesPair:
    """How alike the top axes of two models are, and what may be said of it.

    Attributes:
        overlap: of the spaces of their top axes.
        bound: half the width of its interval; that holds for all pairs of models together.
        axis_stderr: standard error of |cos| of the two first axes.
        halves: what overlap two halves of the sentences have in each model itself, each half of n/2 sentences; NaN of a
            state.
        drawn: what overlap directions drawn from the two covariances have by chance.
        sentences: of the model that has fewer.
    """

    overlap: Overlap
    bound: float
    axis_stderr: float
    halves: tuple[float, float]
    drawn: Chance
    sentences: int

    @property
    def claim(self) -> Claim:
        """The overlap without the noise of the sentences, against that of shared axes."""
        determined = self.overlap.noise <= _UNDETERMINED
        return Claim(self.overlap.corrected, null=SHARED**2, bound=self.bound if determined else math.nan)

    @property
    def verdict(self) -> SharedAxes:
        """share or differ, where the interval lies on one side of what shared axes have; else undecided."""
        said: dict[str, SharedAxes] = {"greater": "share", "less": "differ"}
        return said.get(self.claim.verdict, "undecided")

    @property
    def by_chance(self) -> bool:
        """Whether directions drawn from the covariances are as close."""
        return self.overlap.value <= self.drawn.p95

    @property
    def needed(self) -> int | None:
        """About how many sentences would decide it; None where that cannot be told."""
        if self.overlap.noise > _UNDETERMINED:
            return math.ceil(self.sentences * self.overlap.noise / _DETERMINED)
        return self.claim.needed(self.sentences)

    def to_dict(self) -> dict[str, Any]:
        """The pair as JSON data."""
        found, undetermined = self.overlap, self.overlap.noise > _UNDETERMINED
        return {
            "axes": found.axes,
            "value": finite(found.value),
            "corrected": None if undetermined else finite(found.corrected),
            "stderr": finite(found.stderr),
            "low": finite(found.corrected - self.claim.bound),
            "high": finite(found.corrected + self.claim.bound),
            "noise": finite(found.noise),
            "halves": [finite(half) for half in self.halves],
            "null": self.drawn.to_dict(),
            "needed": self.needed if self.verdict == "undecided" else None,
        }


def overlaps(pairs: Sequence[AxesPair]) -> str:
    low = min(pair.overlap.corrected - pair.bound for pair in pairs)
    high = max(pair.overlap.corrected + pair.bound for pair in pairs)
    found = alike(pairs, [pair.overlap.corrected for pair in pairs])
    return f"{found} (from {alike(pairs, [low], bare=True)} to {alike(pairs, [high], bare=True)} with its error)"


def alike(pairs: Sequence[AxesPair], overlaps: Sequence[float], *, bare: bool = False) -> str:
    """Overlaps in words; those of single axes as |cos|, their root."""
    single = all(pair.overlap.axes == 1 for pair in pairs)
    values = range_in_words([math.sqrt(max(one, 0.0)) for one in overlaps] if single else overlaps, 2)
    return values if bare else f"{'|cos|' if single else 'overlap'} {values}"


def range_in_words(values: Sequence[float], digits: int = 3) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
