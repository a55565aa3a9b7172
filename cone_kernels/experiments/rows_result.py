"""What `rows` finds of the vectors that two sources give for the same texts, and that in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from cone_kernels.experiments.result import Estimate, ExperimentResult, finite
from cone_kernels.statistics.neighbours import NeighbourOverlap
from cone_kernels.statistics.twin_rows import Rotation

SCHEMA = "cone_kernels/rows/1"

Verdict = Literal["same up to rounding", "same up to a rotation", "different", "undecided"]

# Twins are called the same where they are nearer to each other than this share of the way to another row's twin.
SAME = 0.01
# An estimate is on one side of a bound where so many standard errors do not reach it.
_CLEAR = 2.0


@dataclass(frozen=True)
class FarRow:
    """A row that is least like its twin.

    Attributes:
        index: its number, from 0.
        cosine: with its twin.
        id: its text or id, where ids were given.
    """

    index: int
    cosine: float
    id: str | None = None


@dataclass(frozen=True)
class RowsResult(ExperimentResult):
    """What `rows` found.

    Attributes:
        a, b: the sources: name, rows, dim, dtype, scale.
        count, n_left_out: pairs used, and left out because a row was zero or not finite.
        cosine: the mean cosine of a row with its twin; None where the widths differ.
        quantiles: of these cosines, by name: least, percent_1, median.
        permuted: the mean cosine of a row with another row's twin: what alike but unrelated texts have.
        rotation: the same two after the best rotation, on rows that it was not fitted on; None with too few rows.
        norm_ratio: exp of the mean log ‖b‖/‖a‖; `norm_spread`: the standard deviation of the log over rows.
        neighbours: whether both agree on the nearest rows; None with too few rows.
        furthest: the rows that differ most.
        manifest: versions and times.
    """

    table: ClassVar[str | None] = None
    a: dict[str, Any]
    b: dict[str, Any]
    count: int
    n_left_out: int
    cosine: Estimate | None
    quantiles: dict[str, float]
    permuted: float
    rotation: Rotation | None
    norm_ratio: Estimate
    norm_spread: float
    neighbours: NeighbourOverlap | None
    furthest: tuple[FarRow, ...]
    manifest: dict[str, Any]

    @property
    def corpus(self) -> dict[str, Any]:  # type: ignore[override]
        """What was left out, as of other results."""
        return {"dropped": {}, "left_out": self.n_left_out}

    @property
    def distance(self) -> Estimate | None:
        """(1 − cosine) / (1 − permuted): how far twins are apart, as a share of what unrelated rows are."""
        if self.cosine is None:
            return None
        return _share(self.cosine.value, self.cosine.stderr, self.permuted)

    @property
    def rotated_distance(self) -> Estimate | None:
        """The same after the best rotation."""
        found = self.rotation
        return None if found is None else _share(found.cosine, found.stderr, found.permuted)

    @property
    def verdict(self) -> Verdict:
        """Whether the two are the same; "undecided" where this many rows do not tell."""
        plain = "no" if self.distance is None else _below(self.distance)
        if plain == "yes":
            return "same up to rounding"
        if plain == "undecided":
            return "undecided"
        turned = "undecided" if self.rotated_distance is None else _below(self.rotated_distance)
        return {"yes": "same up to a rotation", "no": "different", "undecided": "undecided"}[turned]  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data."""
        quantiles = {name: finite(value) for name, value in self.quantiles.items()}
        cosine = None if self.cosine is None else {**self.cosine.to_dict(), **quantiles}
        rotation = None if self.rotation is None else {name: finite(x) for name, x in asdict(self.rotation).items()}
        distances = {"distance": self.distance, "rotated_distance": self.rotated_distance}
        return {
            "schema": SCHEMA,
            "experiment": "rows",
            "a": self.a,
            "b": self.b,
            "count": self.count,
            "left_out": self.n_left_out,
            "cosine": cosine,
            "permuted": finite(self.permuted),
            "rotation": rotation,
            **{name: None if value is None else value.to_dict() for name, value in distances.items()},
            "norm_ratio": {**self.norm_ratio.to_dict(), "spread": finite(self.norm_spread)},
            "neighbours": None if self.neighbours is None else asdict(self.neighbours),
            "furthest": [asdict(row) for row in self.furthest],
            "same_below": SAME,
            "verdict": self.verdict,
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """Whether the two are the same, and how that shows, in plain sentences."""
        return tuple(_summary(self))

    def __repr__(self) -> str:
        return f"RowsResult({self.a['name']} and {self.b['name']}, {self.count:,} rows: {self.verdict})"


def _share(cosine: float, stderr: float, permuted: float) -> Estimate:
    room = 1 - permuted
    return Estimate((1 - cosine) / room, stderr / room) if room > 0 else Estimate(math.nan, math.nan)


def _below(distance: Estimate) -> Literal["yes", "no", "undecided"]:
    """Whether a distance is below `SAME`."""
    reach = _CLEAR * distance.stderr if math.isfinite(distance.stderr) else math.inf
    if distance.value + reach <= SAME:
        return "yes"
    return "no" if distance.value - reach > SAME else "undecided"


def _summary(result: RowsResult) -> Iterator[str]:
    yield _verdict(result)
    if result.cosine is not None and not math.isfinite(result.cosine.stderr):
        yield f"A row and its twin have a cosine of {result.cosine.value:.6f}; of one row no error is known."
    elif result.cosine is not None:
        yield (
            f"A row and its twin have a mean cosine of {result.cosine.value:.6f} ± {result.cosine.stderr:.2g}, a row "
            f"and another's twin one of {result.permuted:.3f}; one row in a hundred has less than "
            f"{result.quantiles['percent_1']:.6f} with its twin."
        )
    if result.rotation is not None and result.verdict != "same up to rounding":
        yield (
            f"After the best rotation, on rows that it was not fitted on, twins have {result.rotation.cosine:.4f} ± "
            f"{result.rotation.stderr:.2g}, others {result.rotation.permuted:.3f}."
        )
    near = result.neighbours
    if near is not None:
        yield (
            f"Of the {near.k} nearest rows they share {near.overlap:.1%} ± {near.stderr:.1%} ({near.queries:,} rows "
            f"asked among {near.among:,}; chance {near.chance:.2%})."
        )


def _verdict(result: RowsResult) -> str:
    both = f"{result.a['name']} and {result.b['name']}"
    if result.verdict == "same up to rounding":
        return f"{both} are the same up to rounding: twins are less than {SAME:.0%} of the way to another row's twin."
    if result.verdict == "same up to a rotation":
        return f"{both} are the same up to a rotation: turned, twins are less than {SAME:.0%} of the way to another's."
    if result.verdict == "different":
        return f"{both} differ, and no rotation takes the one to the other."
    wide = max(result.a["dim"], result.b["dim"])
    if result.rotation is None:
        return (
            f"Whether a rotation takes {both} to each other is undecided: with {result.count:,} rows it cannot be "
            f"fitted and judged apart; it takes at least {math.ceil(wide * 4 / 3) + 1:,}."
        )
    return f"Whether {both} are the same is undecided at {result.count:,} rows."
