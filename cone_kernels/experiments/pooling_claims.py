"""What of tokens, sentences and poolings may be said, judged together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cone_kernels.experiments.cone_claims import first_estimates, pair_bounds
from cone_kernels.statistics.claims import Claim

if TYPE_CHECKING:
    from cone_kernels.state.cone_state import ConeState
    from cone_kernels.statistics.estimates import Estimates

# What a mean cosine shows in two decimals.
_SHOWN = 0.01


@dataclass(frozen=True)
class PoolingClaims:
    """Claims on L layers and on the poolings of the last one, each kind judged together.

    Attributes:
        gap: the sentences' mean cosine less the tokens', of each layer.
        size_bounds: [i][j] what the difference in size of two layers' gaps must exceed to be told from noise.
        rest: the sentences' mean cosine less what averaging alone predicts.
        poolings: their names, and [i][j] what the difference of two at the last layer must exceed.
    """

    gap: tuple[Claim, ...]
    size_bounds: tuple[tuple[float, ...], ...]
    rest: tuple[Claim, ...]
    poolings: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, state: ConeState, poolings: Sequence[str]) -> PoolingClaims:
        """The claims on a state's layers, and on these of its poolings."""
        import torch

        from cone_kernels import metrics
        from cone_kernels.statistics.estimates import Estimates
        from cone_kernels.sums import jackknife_blocks

        blocks = jackknife_blocks(state.sentence.count[0])
        values = metrics.first_order(state)
        left_out = metrics.first_order(state, metrics.leave_blocks_out(blocks))
        rows = metrics.summed_by_block(state.sentence.count, blocks)
        of = {name: Estimates.of_jackknife(values[name].cpu(), left_out[name].cpu(), rows.cpu()) for name in values}
        last = torch.tensor([len(state.layers) - 1])
        pooled = {name: first_estimates(state.pooled(name), blocks).at(last) for name in poolings}
        rest = of["sentence"].less(of["predicted"])
        return cls.of_estimates(of["gap"], rest, pooled)

    @classmethod
    def of_estimates(cls, gap: Estimates, rest: Estimates, poolings: Mapping[str, Estimates]) -> PoolingClaims:
        """The claims on gaps and what prediction leaves of them, layer by layer, and on poolings of one layer."""
        from cone_kernels.statistics.estimates import joined

        bounds = pair_bounds(joined(list(poolings.values()))) if poolings else ()
        by_name = {name: dict(zip(poolings, row, strict=True)) for name, row in zip(poolings, bounds, strict=True)}
        return cls(tuple(gap.claims()), pair_bounds(gap.sizes()), tuple(rest.claims(margin=_SHOWN)), by_name)
