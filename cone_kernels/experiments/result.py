"""What every experiment's result can do: JSON, plain sentences, a page in a notebook, a figure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ExperimentResult(ABC):
    """Base of the results; each is a frozen dataclass.

    Attributes:
        corpus: what was measured on, and what of it was dropped, replaced or left out.
        manifest: versions, device, backend, times and options.
    """

    corpus: dict[str, Any]
    manifest: dict[str, Any]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data: what is not defined is null, and a reason next to it says why."""

    @abstractmethod
    def summary(self) -> tuple[str, ...]:
        """The answer in plain sentences, each said only where the data says it."""

    @property
    def n_bad(self) -> int:
        """Sentences, lines and records that are in no sum of some layer: dropped, or left out as zero or not finite."""
        return int(sum(self.corpus["dropped"].values())) + int(self.corpus["left_out"])

    def plot(self) -> Figure:
        """A matplotlib figure of the result; needs the extra `report`."""
        from cone_kernels.report import figure

        return figure(self.to_dict())

    def _repr_html_(self) -> str:
        from cone_kernels.report import fragment

        return fragment(self.to_dict())


@dataclass(frozen=True)
class Estimate:
    """A value and its grouped-jackknife standard error; NaN where the data does not define it.

    Example:
        >>> Estimate(0.25, 0.01).to_dict()
        {'value': 0.25, 'stderr': 0.01}
    """

    value: float
    stderr: float

    def to_dict(self) -> dict[str, float | None]:
        """The estimate as JSON data."""
        return {"value": finite(self.value), "stderr": finite(self.stderr)}


def finite(value: float) -> float | None:
    """The value as JSON can hold it: None for NaN and the infinities."""
    return value if math.isfinite(value) else None
