"""What may be said: a claim has an estimate, its error and its null, and is greater, less, equal or undecided.

Every sentence of a summary that says that something is larger, turned, shared or not there is written from a `Claim`.
Claims that stand side by side (all layers, all pairs of layers) are judged together; `statistics.estimates` has
their bounds. A claim needs no torch, so a result can be read without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["greater", "less", "equal", "undecided"]

ALPHA = 0.05
"""How often a family of claims may have a false one."""


@dataclass(frozen=True)
class Claim:
    """An estimate against its null.

    Attributes:
        estimate: the estimate.
        null: what it would be if there were nothing to say.
        bound: half the width of the interval around the estimate; NaN where the error is not known.
        margin: a distance to the null below which there is nothing to say, however well it is known.

    Examples:
        >>> Claim(0.30, null=0.0, bound=0.05).verdict, Claim(0.30, null=0.0, bound=0.4).verdict
        ('greater', 'undecided')
    """

    estimate: float
    null: float
    bound: float
    margin: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """greater or less: by more than the bound and at least the margin; equal: by less than the margin, with the
        bound added; else undecided."""
        distance = self.estimate - self.null
        if abs(distance) > self.bound and abs(distance) >= self.margin:
            return "greater" if distance > 0 else "less"
        return "equal" if abs(distance) + self.bound <= self.margin else "undecided"

    @property
    def differs(self) -> bool:
        """Whether it is greater or less."""
        return self.verdict in ("greater", "less")

    def needed(self, n: int) -> int | None:
        """About how many sentences would decide it, if the estimate holds and errors fall as 1/√n; None where none do.

        Args:
            n: the sentences that the bound is of.
        """
        distance = abs(self.estimate - self.null)
        room = distance if distance >= self.margin else self.margin - distance
        if not (room > 0 and math.isfinite(self.bound)):
            return None
        return max(n, math.ceil(n * (self.bound / room) ** 2 - 1e-9))
