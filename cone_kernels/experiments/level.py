"""One layer at one level, or under one pooling: its anisotropy and what it was computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.result import finite

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.state.cone_state import Moments


@dataclass(frozen=True)
class Level:
    """One layer at one level.

    Attributes:
        anisotropy: mean cosine over distinct pairs of vectors; NaN where there is no pair.
        stderr: its grouped-jackknife standard error; NaN with fewer than two groups of sentences.
        count: vectors used.
        n_zero, n_nonfinite: vectors left out.
        mean_norm: mean length of the vectors used.
        reason: why a number is NaN, or None.
    """

    anisotropy: float
    stderr: float
    count: int
    n_zero: int
    n_nonfinite: int
    mean_norm: float
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The level as JSON data: NaN becomes null, and "reason" says why."""
        numbers = {"anisotropy": self.anisotropy, "stderr": self.stderr, "mean_norm": self.mean_norm}
        found: dict[str, Any] = {name: finite(value) for name, value in numbers.items()}
        found |= {"count": self.count, "n_zero": self.n_zero, "n_nonfinite": self.n_nonfinite}
        return found | ({"reason": self.reason} if self.reason else {})


def seen_by_group(moments: Moments) -> Tensor:
    """(G,) int64, on the CPU: the rows of the first layer that were used or left out, by jackknife group.

    Of the same rows it is the same, whichever of them a model gives no vector for.
    """
    names = ("count", "n_zero", "n_nonfinite", *(("n_empty",) if moments.level == "sentence" else ()))
    by_group: Tensor = sum(getattr(moments, name)[0].cpu() for name in names)
    return by_group


def levels_of(moments: Moments, rows: str | None = None) -> list[Level]:
    """Every layer of the sums.

    Args:
        moments: of one level.
        rows: what reasons call its rows; None is "sentences" or "tokens", as the level is.

    Examples:
        >>> levels_of(state.sentence)[2].anisotropy
        0.7207...
    """
    from cone_kernels import metrics

    anisotropy, stderr = metrics.anisotropy(moments).tolist(), metrics.anisotropy_stderr(moments).tolist()
    mean_norm = metrics.mean_norm(moments).tolist()
    counts = {name: getattr(moments, name).sum(1).tolist() for name in ("count", "n_zero", "n_nonfinite")}
    groups = (moments.count > 0).sum(1).tolist()
    levels = []
    for at in range(len(moments.layers)):
        reason = metrics.undefined_reason(moments, at, rows)
        if reason is None and math.isnan(stderr[at]):
            reason = f"stderr: the jackknife has {groups[at]} groups; it needs two that leave pairs behind"
        numbers = {name: values[at] for name, values in counts.items()}
        levels.append(Level(anisotropy[at], stderr[at], mean_norm=mean_norm[at], reason=reason, **numbers))
    return levels
