"""Did the cone turn, or was it removed: what of the mean cosine lies along the old mean, and what across it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cone_kernels.experiments.result import finite
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.state.cone_state import Moments
    from cone_kernels.statistics.estimates import Estimates

ConeVerdict: TypeAlias = Literal["removed", "turned", "grew", "added", "stayed", "undecided"]

# A mean cosine that is worth a word.
_LEAST = 0.02


@dataclass(frozen=True)
class ConeChange:
    """What became of one layer's cone.

    The mean cosine is the squared length of the mean of the vectors at length 1. That of the state after is cut into
    the part along the mean of the state before, and the part across it.

    Attributes:
        before, after: the mean cosines, of sentences of different groups.
        kept: the part of `after` along the mean direction before.
        removed: `before` less `kept`, against 0; all layers and both parts are judged together.
        new: `after` less `kept`, against 0.
        removed_stderr, new_stderr: their standard errors.
    """

    before: float
    after: float
    kept: float
    removed: Claim
    new: Claim
    removed_stderr: float
    new_stderr: float

    @property
    def verdict(self) -> ConeVerdict:
        """removed: less along the old mean, and nothing across it; turned: less along it, and something across; grew:
        more along it; added: as much along it, and something across; stayed: neither; else undecided."""
        found: dict[tuple[str, str], ConeVerdict] = {
            ("greater", "equal"): "removed",
            ("greater", "greater"): "turned",
            ("equal", "greater"): "added",
            ("equal", "equal"): "stayed",
        }
        if self.removed.verdict == "less":
            return "grew"
        return found.get((self.removed.verdict, self.new.verdict), "undecided")

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON data."""
        parts = {}
        for name, claim, stderr in (("removed", self.removed, self.removed_stderr), ("new", self.new, self.new_stderr)):
            part = {"value": claim.estimate, "stderr": stderr, "bound": claim.bound}
            parts[name] = {key: finite(value) for key, value in part.items()} | {"verdict": claim.verdict}
        numbers = {name: finite(getattr(self, name)) for name in ("before", "after", "kept")}
        return {**numbers, **parts, "verdict": self.verdict}

    def in_words(self) -> str:
        """The numbers, after what is said of them."""
        gone, error = self.removed.estimate, f"(s.e. {self.removed_stderr:.3f})"
        along = f"of a mean cosine of {self.before:.3f}, {gone:.3f} {error} is gone along the old mean"
        if gone < 0:
            along = f"to a mean cosine of {self.before:.3f}, {-gone:.3f} {error} has come along the old mean"
        return f"{along}, and across it {self.new.estimate:.3f} (s.e. {self.new_stderr:.3f}) is new"


def cone_changes(
    pairs: Sequence[tuple[Moments, Moments]], blocks: tuple[Tensor, Tensor], paired: bool
) -> list[ConeChange]:
    """What became of the cone at each of several layers.

    Args:
        pairs: for each layer the sums before and after.
        blocks: (G,) the block of each group, before and after; see `jackknife_blocks`.
        paired: both are of the same sentences.
    """
    from cone_kernels.statistics.estimates import joined

    found = [_parts(a, b, blocks, paired) for a, b in pairs]
    together = joined([estimates for _, estimates in found])
    claims, errors = together.claims(margin=_LEAST), together.stderr.tolist()
    changes = []
    for at, ((before, after, kept), _) in enumerate(found):
        removed, new = claims[2 * at : 2 * at + 2]
        changes.append(ConeChange(before, after, kept, removed, new, *errors[2 * at : 2 * at + 2]))
    return changes


def _parts(
    a: Moments, b: Moments, blocks: tuple[Tensor, Tensor], paired: bool
) -> tuple[tuple[float, float, float], Estimates]:
    """Before, after and kept; and what was removed and what is new, with what each block adds to their errors."""
    import torch

    from cone_kernels import metrics
    from cone_kernels.statistics.estimates import Estimates
    from cone_kernels.statistics.mean_products import GroupedSums, mean_product

    grouped = []
    for one, block in zip((a, b), blocks, strict=True):
        sums = metrics.summed_by_block(one.unit_sum.cpu(), block)[0]  # (B, d)
        grouped.append(GroupedSums(sums, metrics.summed_by_block(one.count.cpu(), block)[0].double()))

    def without(which: Sequence[int]) -> Tensor:
        """(3,) before, after and their product, or (B, 3) with each block of the states `which` left out."""
        found = [
            mean_product(grouped[i], grouped[j], same=i == j or paired, without_a=i in which, without_b=j in which)
            for i, j in ((0, 0), (1, 1), (0, 1))
        ]
        return torch.stack([one.expand(len(grouped[which[0]].rows)) if which else one for one in found], -1)

    def parts(numbers: Tensor) -> tuple[Tensor, Tensor]:
        before, after, both = numbers.unbind(-1)
        kept = torch.where(before > 0, both.square() / before, torch.nan)
        return torch.stack([before - kept, after - kept]), kept

    whole = without(())
    values, kept = parts(whole)
    which = [(0, 1)] if paired else [(0,), (1,)]
    apart = [
        Estimates.of_jackknife(values, parts(without(left))[0], grouped[left[0]].rows.expand(2, -1)) for left in which
    ]
    degrees = apart[0].degrees if paired else apart[0].degrees.minimum(apart[1].degrees)
    estimates = Estimates(values, torch.cat([one.deviations for one in apart], 1), degrees)
    return (float(whole[0]), float(whole[1]), float(kept)), estimates
