"""What of the cones of some layers may be said: whether there is one, which is tighter, and what carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from torch import Tensor

    from cone_kernels.state.cone_state import ConeState, Moments
    from cone_kernels.statistics.estimates import Estimates

# What a difference of tokens and sentences must come to, and the share of the mean cosine that makes some dimensions
# worth a sentence.
_GAP, _MUCH = 0.05, 0.25


@dataclass(frozen=True)
class ConeClaims:
    """Claims on L layers, each kind judged for all layers together.

    Attributes:
        cone: the mean cosine of two sentences against 0.
        bounds: [i][j] what the difference of two layers' must exceed to be told from noise.
        gap: the sentences' less the tokens'.
        share: that which a few dimensions carry, against a quarter; found on one half of the sentences and judged on
            the other, so that the largest of many by chance is none.
    """

    cone: tuple[Claim, ...]
    bounds: tuple[tuple[float, ...], ...]
    gap: tuple[Claim, ...]
    share: tuple[Claim, ...]

    @classmethod
    def of(cls, state: ConeState, rogue: int) -> ConeClaims:
        """The claims on a state's layers.

        Args:
            state: the sums.
            rogue: how many dimensions are listed.
        """
        from cone_kernels.sums import jackknife_blocks

        blocks = jackknife_blocks(state.sentence.count[0])
        sentence, token = (first_estimates(moments, blocks) for moments in (state.sentence, state.token))
        return cls.of_estimates(
            sentence, token, cone=cone_claims(state.sentence), share=share_claims(state.sentence, rogue)
        )

    @classmethod
    def of_estimates(
        cls, sentence: Estimates, token: Estimates, cone: Sequence[Claim], share: Sequence[Claim] = ()
    ) -> ConeClaims:
        """The claims on mean cosines of sentences and of tokens, layer by layer."""
        gap = sentence.less(token).claims(margin=_GAP)
        return cls(tuple(cone), pair_bounds(sentence), tuple(gap), tuple(share))


def first_estimates(moments: Moments, blocks: Tensor) -> Estimates:
    """The anisotropies of L layers with their errors, over blocks of sentences that are long enough.

    Args:
        moments: of either level.
        blocks: (G,) the block of each group; see `jackknife_blocks`.
    """
    from cone_kernels import metrics
    from cone_kernels.statistics.estimates import Estimates

    left_out = metrics.anisotropy(moments, metrics.leave_blocks_out(blocks))
    rows = metrics.summed_by_block(moments.count, blocks)
    return Estimates.of_jackknife(metrics.anisotropy(moments).cpu(), left_out.cpu(), rows.cpu())


def cone_claims(moments: Moments) -> list[Claim]:
    """Whether there is a cone at each layer: the mean cosine against 0."""
    from cone_kernels.statistics.estimates import common_direction

    return common_direction(moments.unit_sum.cpu(), moments.count.cpu())


def share_claims(moments: Moments, rogue: int) -> list[Claim]:
    """Whether the largest `rogue` dimensions of each layer carry more than a quarter of its mean cosine; none for 0."""
    import torch

    from cone_kernels import metrics
    from cone_kernels.statistics.estimates import Estimates
    from cone_kernels.sums import jackknife_blocks

    k = min(rogue, moments.dim)
    if not k:
        return []
    blocks = jackknife_blocks(moments.count[0])
    sums = metrics.summed_by_block(moments.unit_sum, blocks).cpu()  # (L, B, d)
    rows = metrics.summed_by_block(moments.count, blocks).cpu()
    # Σ u_j² is not kept by group; of n sentences it is close to n times its mean.
    own = (moments.unit_sq_sum.cpu() / rows.sum(1, keepdim=True))[:, None]  # (L, 1, d)

    def contributions(s: Tensor, n: Tensor) -> Tensor:
        return (s.square() - n[..., None] * own) / (n * (n - 1))[..., None]

    def share(c: Tensor, which: Tensor) -> Tensor:
        carried: Tensor = c.gather(-1, which.expand(*c.shape[:-1], k)).sum(-1)
        return carried / c.sum(-1)

    total, n = sums.sum(1, keepdim=True), rows.sum(1, keepdim=True).double()
    whole = contributions(total, n)
    which = whole.topk(k).indices
    left_out = share(contributions(total - sums, n - rows), which)
    halves = [contributions(sums[:, at::2].sum(1, keepdim=True), rows[:, at::2].sum(1, keepdim=True)) for at in (0, 1)]
    judged = [share(there, found.topk(k).indices) for found, there in (halves, halves[::-1])]
    values = torch.stack(judged).mean(0)[:, 0]
    bounds = Estimates.of_jackknife(share(whole, which)[:, 0], left_out, rows).bounds()
    both = zip(values.tolist(), bounds.tolist(), strict=True)
    return [Claim(value, null=_MUCH, bound=bound) for value, bound in both]


def pair_bounds(estimates: Estimates) -> tuple[tuple[float, ...], ...]:
    """[i][j] what the difference of two estimates must exceed to be told from noise, all pairs judged together."""
    import torch

    m = len(estimates.values)
    found = torch.zeros(m, m, dtype=torch.float64)
    later, earlier = torch.tril_indices(m, m, -1)
    found[later, earlier] = found[earlier, later] = estimates.pairs().bounds() if m > 1 else found[later, earlier]
    return tuple(tuple(row) for row in found.tolist())
