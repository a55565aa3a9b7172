"""Whether sentences that follow each other are alike over longer stretches than a jackknife group has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.result import finite

if TYPE_CHECKING:
    from cone_kernels.state.cone_state import ConeState, Moments

# Of so few groups no autocorrelation is told from noise; and the normal quantile that one sample in twenty exceeds.
_FEWEST, _ONE_IN_TWENTY = 16, 1.645


@dataclass(frozen=True)
class Dependence:
    """The lag-1 autocorrelation of the leave-one-out values, group after group, averaged over the layers.

    Groups that follow each other hold stretches of sentences that do. Where these are of one document or one topic, the
    values go together, and the grouped jackknife takes for independent what is not: its standard errors are too small.

    Attributes:
        autocorrelation: to four decimals, for more is rounding of the sums; NaN of fewer than sixteen groups.
        threshold: what independent sentences exceed once in twenty.
    """

    autocorrelation: float
    threshold: float

    @classmethod
    def of(cls, state: ConeState) -> Dependence:
        """That of the sentence level; of given vectors that of these."""
        moments = state.sentence if state.layers else state.output
        assert moments is not None
        return cls.of_moments(moments)

    @classmethod
    def of_moments(cls, moments: Moments) -> Dependence:
        """That of the anisotropies of some layers."""
        import torch

        from cone_kernels import metrics

        there = moments.count[0] > 0
        groups = int(there.sum())
        if groups < _FEWEST:
            return cls(math.nan, math.nan)
        left_out = metrics.anisotropy(moments, metrics.leave_one_out)[:, there].cpu()
        # What a group adds spreads with the root of its sentences.
        values = (left_out - left_out.mean(1, keepdim=True)) / moments.count[:, there].cpu().double().sqrt()
        squares = values.square().sum(1)
        products = (values[:, 1:] * values[:, :-1]).sum(1)
        found = torch.where(squares > 0, products / squares, 0.0) * (groups / (groups - 1))
        return cls(round(float(found.mean()), 4), _ONE_IN_TWENTY / math.sqrt(groups))

    @property
    def warning(self) -> bool:
        """Whether it is more than that of independent sentences."""
        return self.autocorrelation > self.threshold

    def summary(self, rows: str = "sentences", of: str = "") -> tuple[str, ...]:
        """The warning in a sentence, or none.

        Args:
            rows: what is measured, "sentences" or "vectors".
            of: which ones, such as " of before".
        """
        if not self.warning:
            return ()
        return (
            f"Neighbouring {rows}{of} are alike over long stretches (from group to group the autocorrelation is "
            f"{self.autocorrelation:.2f}; of independent ones it is above {self.threshold:.2f} once in twenty): the "
            f"standard errors are too small, and with them what is told from noise. {_REMEDY[rows]}",
        )

    @staticmethod
    def worst(several: Sequence[Dependence]) -> Dependence:
        """That of the largest autocorrelation, one that is known if there is one."""
        return max(several, key=lambda one: one.autocorrelation if math.isfinite(one.autocorrelation) else -math.inf)

    def to_dict(self) -> dict[str, Any]:
        """The dependence as JSON data."""
        numbers = {"autocorrelation": finite(self.autocorrelation), "threshold": finite(self.threshold)}
        return {**numbers, "warning": self.warning}


_REMEDY = {
    "sentences": "--group-by, --shuffle and --sample mend that.",
    "vectors": "In an order drawn by chance they are right.",
}
