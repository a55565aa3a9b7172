"""What each step from a layer to the next changes: which dimensions, the mean direction, and the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cone_kernels.experiments.result import finite
from cone_kernels.experiments.top_axes import axes_overlap, top_axes
from cone_kernels.names import listed_words
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.state.cone_state import Moments
    from cone_kernels.statistics.estimates import Estimates
    from cone_kernels.statistics.subspaces import Overlap

Keeps: TypeAlias = Literal["keeps", "turns", "undecided"]
"""What a step does to a direction."""

# |cos| from which on two directions are called one; how many dimensions of a step are named; a share of the change that
# is worth a word differs from an even one by so much of that.
_SAME, _NAMED, _NOTABLE = 0.9, 3, 0.5


@dataclass(frozen=True)
class ChangedDimension:
    """A dimension of the mean of the vectors at length 1: its index, and by how much a step changes it."""

    dimension: int
    change: float

    def to_dict(self) -> dict[str, Any]:
        """The dimension as JSON data."""
        return {"dimension": self.dimension, "change": finite(self.change)}


@dataclass(frozen=True)
class LayerStep:
    """One step, from a layer to the next. All steps are judged together.

    Attributes:
        start, end: the layers' numbers.
        share: of the squared changes of all dimensions at all steps, against an even share.
        share_stderr: its standard error.
        largest: the share of the dimensions that change most at this step.
        largest_stderr: its standard error.
        dimensions: those that it changes most, descending.
        mean: the cosine of the mean directions of the two layers, against `_SAME`.
        mean_stderr: its standard error.
        axes: the overlap of the spaces of their top axes; None without second moments.
        axes_bound: half the width of its interval.
        axes_random: cos² of two directions drawn from the two covariances, on average; NaN without second moments.
    """

    start: int
    end: int
    share: Claim
    share_stderr: float
    largest: float
    largest_stderr: float
    dimensions: tuple[ChangedDimension, ...]
    mean: Claim
    mean_stderr: float
    axes: Overlap | None = None
    axes_bound: float = math.nan
    axes_random: float = math.nan

    @property
    def mean_verdict(self) -> Keeps:
        """Whether the mean keeps its direction."""
        return _keeps(self.mean)

    @property
    def axes_verdict(self) -> Keeps:
        """Whether the top axes keep their space."""
        if self.axes is None:
            return "undecided"
        return _keeps(Claim(self.axes.corrected, null=_SAME**2, bound=self.axes_bound))

    def to_dict(self) -> dict[str, Any]:
        """The step as JSON data."""
        share = {"value": self.share.estimate, "stderr": self.share_stderr, "bound": self.share.bound}
        mean = {"value": self.mean.estimate, "stderr": self.mean_stderr, "bound": self.mean.bound}
        largest = {"value": self.largest, "stderr": self.largest_stderr}
        axes = None
        if self.axes is not None:
            numbers = {name: getattr(self.axes, name) for name in ("value", "corrected", "stderr")}
            numbers |= {"bound": self.axes_bound, "random": self.axes_random}
            axes = {"axes": self.axes.axes, **_finite(numbers), "verdict": self.axes_verdict}
        return {
            "start": self.start,
            "end": self.end,
            "change_share": {**_finite(share), "even": self.share.null, "verdict": self.share.verdict},
            "changed_most": _finite(largest),
            "dimensions": [one.to_dict() for one in self.dimensions],
            "mean_cosine": {**_finite(mean), "verdict": self.mean_verdict},
            "axes_overlap": axes,
        }


def _keeps(claim: Claim) -> Keeps:
    said: dict[str, Keeps] = {"greater": "keeps", "less": "turns"}
    return said.get(claim.verdict, "undecided")


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in numbers.items()}


def layer_steps(moments: Moments, layers: Sequence[int]) -> tuple[LayerStep, ...]:
    """The steps between neighbours among the layers, over the same sentences; none of a single layer.

    Args:
        moments: the sums of the sentence vectors.
        layers: their numbers.
    """
    from cone_kernels.statistics.significance import student_bound

    if len(layers) < 2:
        return ()
    shares, largest, cosines, changes = _estimates(moments)
    even, steps = 1 / (len(layers) - 1), []
    share_claims, mean_claims = shares.claims(null=even, margin=_NOTABLE * even), cosines.claims(null=_SAME)
    tops = [top_axes(moments.select(layer)) for layer in layers]
    for at, (start, end) in enumerate(pairwise(layers)):
        overlap, a, b = axes_overlap(tops[at], tops[at + 1]), tops[at], tops[at + 1]
        random = math.nan
        if a is not None and b is not None:
            both = float((a.covariance * b.covariance).sum())
            random = both / float(a.covariance.trace() * b.covariance.trace())
        named = changes[at].abs().topk(min(_NAMED, changes.shape[1])).indices.tolist()
        steps.append(
            LayerStep(
                start=start,
                end=end,
                share=share_claims[at],
                share_stderr=float(shares.stderr[at]),
                largest=float(largest.values[at]),
                largest_stderr=float(largest.stderr[at]),
                dimensions=tuple(ChangedDimension(j, float(changes[at, j])) for j in named),
                mean=mean_claims[at],
                mean_stderr=float(cosines.stderr[at]),
                axes=overlap,
                axes_bound=student_bound(overlap.stderr, overlap.degrees, len(layers) - 1) if overlap else math.nan,
                axes_random=random,
            )
        )
    return tuple(steps)


def _estimates(moments: Moments) -> tuple[Estimates, Estimates, Estimates, Tensor]:
    """Of S steps the shares of change, the shares of dimensions that change most, the cosines, the changes (S, d)."""
    import torch

    from cone_kernels import metrics
    from cone_kernels.statistics.estimates import Estimates
    from cone_kernels.statistics.mean_products import GroupedSums, mean_product
    from cone_kernels.sums import jackknife_blocks

    blocks = jackknife_blocks(moments.count[0])
    sums = metrics.summed_by_block(moments.unit_sum, blocks).cpu()  # (L, B, d)
    rows = metrics.summed_by_block(moments.count, blocks).cpu().double()  # (L, B)
    grouped = [GroupedSums(*one) for one in zip(sums, rows, strict=True)]

    def statistics(out: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(S,) of all sentences, or (S, B) with each block left out."""
        options = {"same": True, "without_a": out, "without_b": out}
        own = torch.stack([mean_product(one, one, **options) for one in grouped])
        products = torch.stack([mean_product(a, b, **options) for a, b in pairwise(grouped)])
        squares = own[:-1] + own[1:] - 2 * products
        defined = (own[:-1] > 0) & (own[1:] > 0)
        cosines = torch.where(defined, products / (own[:-1] * own[1:]).clamp_min(0).sqrt(), torch.nan)
        total = sums.sum(1, keepdim=True) - (sums if out else 0)
        count = rows.sum(1, keepdim=True) - (rows if out else 0)
        steps = (total / count[..., None]).diff(dim=0).abs()  # (S, B or 1, d)
        most = torch.nn.functional.one_hot(steps.argmax(0), len(steps)).double().mean(1).mT  # (S, B or 1)
        return squares / squares.sum(0), most if out else most[:, 0], cosines

    whole, left_out = statistics(False), statistics(True)
    per_step = rows[1:].minimum(rows[:-1])
    shares, largest, cosines = (Estimates.of_jackknife(*each, per_step) for each in zip(whole, left_out, strict=True))
    return shares, largest, cosines, (sums.sum(1) / rows.sum(1, keepdim=True)).diff(dim=0)


def steps_in_words(steps: Sequence[LayerStep], dim: int) -> list[str]:
    """Where most of the change is made, and which layers keep the directions of the one before, in plain sentences.

    Args:
        steps: of a model.
        dim: the width.
    """
    lines = []
    told = [step for step in steps if step.share.verdict == "greater"]
    if told and len(steps) > 1:
        most = max(told, key=lambda step: step.share.estimate)
        named = listed_words([str(one.dimension) for one in most.dimensions])
        lines.append(
            f"Of what the layers change in the mean vector, dimension by dimension, {most.share.estimate:.0%} (s.e. "
            f"{most.share_stderr:.1%}) is changed from layer {most.start} to {most.end}, where an even share would be "
            f"{most.share.null:.0%}; {most.largest:.0%} of the {dim} dimensions change most there, and of all {named}."
        )
    return lines + _kept_in_words(steps, dim)


def _kept_in_words(steps: Sequence[LayerStep], dim: int) -> list[str]:
    from cone_kernels.statistics.directions import random_cosine_quantile

    lines = []
    kept = [step for step in steps if step.mean_verdict == "keeps"]
    turned = [step for step in steps if step.mean_verdict == "turns"]
    if kept:
        least = min(step.mean.estimate for step in kept)
        where = "at every step" if len(kept) == len(steps) else f"at {len(kept)} of {len(steps)} steps"
        lines.append(f"Layers keep the mean direction of the layer before {where}: cosines of {least:.3f} and more.")
    if turned:
        most = min(turned, key=lambda step: step.mean.estimate)
        lines.append(
            f"The mean direction turns at {len(turned)} of {len(steps)} steps, most from layer {most.start} to "
            f"{most.end}: a cosine of {most.mean.estimate:.3f} (s.e. {most.mean_stderr:.3f}), where random directions "
            f"have {random_cosine_quantile(0.95, dim):.3f} or more once in twenty."
        )
    axes = [step for step in steps if step.axes is not None and step.axes_verdict == "turns"]
    if axes:
        most = min(axes, key=lambda step: step.axes.corrected if step.axes else math.inf)
        assert most.axes is not None
        same = [step for step in steps if step.axes_verdict == "keeps"]
        others = f"; at {len(same)} of {len(steps)} steps it stays" if same else ""
        lines.append(
            f"The space of the top axes turns most from layer {most.start} to {most.end}: overlap "
            f"{most.axes.corrected:.2f} (give or take {most.axes_bound:.2f}), of directions drawn from the covariances "
            f"{most.axes_random:.2f}{others}."
        )
    elif steps and all(step.axes_verdict == "keeps" for step in steps):
        lines.append("The space of the top axes stays at every step.")
    return lines
