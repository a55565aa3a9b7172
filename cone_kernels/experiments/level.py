"""One layer at one level, or under one pooling: its anisotropy and what it was computed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cone_kernels.experiments.result import finite

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.runs.sentence_vectors import SentenceVectors
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


def level_after(
    vectors: SentenceVectors,
    centering: Callable[[Tensor], Tensor] | None = None,
    groups: Callable[[Tensor], Tensor] | None = None,
) -> Level:
    """The sentence level of vectors after a centering, in float64, one block in memory at a time.

    Vectors that are zero or not finite before the centering are left out, as they are of the state.

    Args:
        vectors: of the sentences.
        centering: a `Centering`, or another map of rows (n, D); None leaves them as they are.
        groups: gives the jackknife groups of sentences by their indices; None is `jackknife_groups`.

    Examples:
        >>> level_after(measurement.vectors[6], Centering.fit(measurement.state)).anisotropy
    """
    from cone_kernels.runs.sentence_vectors import used_blocks
    from cone_kernels.state.cone_state import Moments
    from cone_kernels.sums import jackknife_groups

    groups = jackknife_groups if groups is None else groups
    moments = Moments.empty("sentence", [0], vectors.dim)
    for ids, rows in used_blocks(vectors.blocks()):
        opened = rows if centering is None else centering(rows)
        moments.add_rows(slice(None), opened[None], groups(ids), "auto")
    return levels_of(moments)[0]
