"""Alerts on logged values: that the cone closes, or drifts, by more than the error of the value."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cone_kernels.statistics.claims import Claim

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """A bound on a logged value. It is crossed where the value lies beyond it by more than its standard errors.

    Args:
        name: of the value as it is logged, such as `probe_cone/L12/anisotropy` or `eval_cone/L6/anisotropy`; one with a
            standard error: of anisotropies, the pooling gap, and their changes.
        above, below: the bound; exactly one of them.
        errors: by how many of its standard errors the value must be beyond the bound.
        stop: also stop the training.

    Raises:
        ValueError: not exactly one of `above` and `below` is given, it is not finite, or `errors` is below 0.

    Examples:
        >>> ConeCallback(probe_texts=texts, alerts=[Alert("probe_cone/L12/anisotropy", above=0.95, stop=True)])
    """

    name: str
    above: float | None = None
    below: float | None = None
    errors: float = 2.0
    stop: bool = False

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            got = "neither" if self.above is None else "both"
            raise ValueError(f"above, below: got {got} for {self.name}; exactly one of them must be given")
        if not math.isfinite(self.bound):
            raise ValueError(f"above, below: got {self.bound} for {self.name}; it must be finite")
        if not (math.isfinite(self.errors) and self.errors >= 0):
            raise ValueError(f"errors: got {self.errors} for {self.name}; it must be 0 or more")

    @property
    def bound(self) -> float:
        """Where the value may be at most, or at least."""
        bound = self.below if self.above is None else self.above
        assert bound is not None
        return bound

    def crossed(self, value: float, stderr: float) -> bool:
        """Whether the value is beyond the bound by more than `errors` standard errors; not where one is NaN."""
        beyond = "less" if self.above is None else "greater"
        return Claim(value, null=self.bound, bound=self.errors * stderr).verdict == beyond


class Alerts:
    """Alerts of one job: each is said in the log when it is crossed, and again after it was not.

    Examples:
        >>> alerts = Alerts([Alert("probe_cone/L6/anisotropy", above=0.9, stop=True)])
        >>> alerts.stops({"probe_cone/L6/anisotropy": 0.934, "probe_cone/L6/anisotropy_stderr": 0.004}, step=120)
        True
    """

    def __init__(self, alerts: Iterable[Alert]) -> None:
        self._alerts = tuple(alerts)
        for alert in self._alerts:
            if not isinstance(alert, Alert):
                raise TypeError(f"alerts: got {type(alert).__name__}; it must be a sequence of Alert")
        self._crossed: set[Alert] = set()

    def stops(self, values: Mapping[str, float], step: int) -> bool:
        """Says in the log which alerts these values cross; returns whether one of them stops the training.

        Args:
            values: by name, as they are logged, with their standard errors.
            step: of the training.

        Raises:
            ValueError: the value of an alert has no standard error.
        """
        stop = False
        for alert in self._alerts:
            if alert.name not in values:
                continue
            value, stderr = values[alert.name], values.get(f"{alert.name}_stderr")
            if stderr is None:
                raise ValueError(f"alerts: got {alert.name}; it must be a value that is logged with a standard error")
            if not alert.crossed(value, stderr):
                self._crossed.discard(alert)
                continue
            if alert not in self._crossed:
                self._crossed.add(alert)
                side = "below" if alert.above is None else "above"
                logger.warning(
                    "step %d: %s is %.4f ± %.4f (standard error), %s %g by more than %g standard errors%s",
                    step, alert.name, value, stderr, side, alert.bound, alert.errors,
                    "; the training is stopped" if alert.stop else "",
                )  # fmt: skip
            stop = stop or alert.stop
        return stop
