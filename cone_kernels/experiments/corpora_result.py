"""One model over several corpora: whether its axis, its mean and its centring move with them, and how it is said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, permutations
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.axes_pair import SHARED, AxesPair, Matrix, SharedAxes, alike, overlaps, range_in_words
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.result import finite
from cone_kernels.names import Layer, place
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.statistics.subspaces import Overlap

_LEAVES = {
    "greater": "more than",
    "less": "less than",
    "equal": "as much as",
    "undecided": "not told from",
}


@dataclass(frozen=True)
class MeansPair:
    """How alike the mean directions of two corpora are.

    Attributes:
        overlap: the squared cosine of the means of the vectors at length 1.
        bound: half the width of its interval; that holds for all pairs of corpora together.
        halves: the squared cosine of the means of two halves of each corpus.
    """

    overlap: Overlap
    bound: float
    halves: tuple[float, float]

    @property
    def verdict(self) -> SharedAxes:
        """share or differ, where the interval lies on one side of what shared means have; else undecided."""
        said: dict[str, SharedAxes] = {"greater": "share", "less": "differ"}
        return said.get(Claim(self.overlap.corrected, null=SHARED**2, bound=self.bound).verdict, "undecided")

    def to_dict(self) -> dict[str, Any]:
        """The pair as JSON data."""
        found = self.overlap
        numbers = {name: finite(getattr(found, name)) for name in ("value", "corrected", "stderr", "noise")}
        interval = {"low": finite(found.corrected - self.bound), "high": finite(found.corrected + self.bound)}
        return {**numbers, **interval, "halves": [finite(half) for half in self.halves], "verdict": self.verdict}

    def in_words(self) -> str:
        """The |cos| with its interval, and that of halves."""
        found = self.overlap.corrected
        low, cosine, high = (math.sqrt(min(max(found + sign * self.bound, 0.0), 1.0)) for sign in (-1, 0, 1))
        halves = range_in_words([math.sqrt(half) for half in self.halves])
        return f"|cos| {cosine:.3f} (from {low:.3f} to {high:.3f} with its error), and halves have {halves}"


@dataclass(frozen=True)
class Corpora:
    """What is known besides where the compared are several corpora of one model.

    Attributes:
        model: its name.
        means: how alike the corpora's mean directions are; None on the diagonal.
        halves: of each corpus the level of one half after subtracting the mean of the other half.
        carried: [i][j] the mean cosine of corpus i less the mean of corpus j against that of `halves`; None on the
            diagonal.
    """

    model: str
    means: tuple[tuple[MeansPair | None, ...], ...]
    halves: tuple[Level, ...]
    carried: tuple[tuple[Claim | None, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "model": self.model,
            "means": [[pair and pair.to_dict() for pair in row] for row in self.means],
            "centered_halves": [level.to_dict() for level in self.halves],
            "carried": [[claim and _claim(claim) for claim in row] for row in self.carried],
        }

    def summary(
        self, names: Sequence[str], layer: Layer, pairs: Sequence[Sequence[AxesPair | None]], stderr: Matrix
    ) -> Iterator[str]:
        """Whether axis, mean and centring of the model move with the corpus, in plain sentences.

        Args:
            names: of the corpora.
            layer: of the vectors.
            pairs: how alike the axes of each two are.
            stderr: [i][j] standard error of the mean cosine of corpus i less the mean of corpus j.
        """
        for i, j in combinations(range(len(names)), 2):
            pair, means = pairs[i][j], self.means[i][j]
            if pair is None or means is None:
                continue
            if not _known(pair, means):
                yield (
                    f"{names[i]} and {names[j]} have too few sentences to tell whether the axis and the mean of "
                    f"{self.model} at {place(layer)} move with the corpus."
                )
            else:
                yield (
                    f"From {names[i]} to {names[j]} the {_axes(pair)} of {self.model} at "
                    f"{place(layer)} {_moves(pair)}: {overlaps([pair])}, and two halves of "
                    f"one corpus have {alike([pair], pair.halves, bare=True)}; the mean {_moves(means)}: "
                    f"{means.in_words()}."
                )
        for i, j in permutations(range(len(names)), 2):
            claim = self.carried[i][j]
            if claim is not None and all(map(math.isfinite, (claim.estimate, claim.null, claim.bound))):
                yield (
                    f"Subtracting the mean of {names[j]} leaves {names[i]} a mean cosine of "
                    f"{claim.estimate:.4f} (s.e. {stderr[i][j]:.4f}), {_LEAVES[claim.verdict]} that of "
                    f"another half of its own sentences ({claim.null:.4f}, s.e. {self.halves[i].stderr:.4f})."
                )


def _known(*pairs: AxesPair | MeansPair) -> bool:
    """Whether all that is told of them is: few sentences give no error, and one block of them no halves."""
    numbers = ((pair.overlap.corrected, pair.bound, *pair.halves) for pair in pairs)
    return all(map(math.isfinite, chain.from_iterable(numbers)))


def _moves(pair: AxesPair | MeansPair) -> str:
    """What the axis or the mean does with the corpus."""
    if pair.verdict == "undecided":
        return "is not told to stay or to move"
    if pair.verdict == "differ":
        return "moves with the corpus"
    within = pair.overlap.corrected + pair.bound < 1
    return f"moves with the corpus, but stays above |cos| {SHARED}" if within else "stays"


def _axes(pair: AxesPair) -> str:
    return "axis" if pair.overlap.axes == 1 else f"space of the top {pair.overlap.axes} axes"


def _claim(claim: Claim) -> dict[str, Any]:
    found = {name: finite(getattr(claim, name)) for name in ("estimate", "null", "bound")}
    return found | {"verdict": claim.verdict}
