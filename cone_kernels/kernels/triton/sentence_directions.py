"""The end of Triton's pool_moments: Σ g/‖g‖ by group, from each sentence's mean unit vector, which is read twice."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.segments import Segments
from cone_kernels.kernels.triton.launch import launch, layer_and_number
from cone_kernels.kernels.triton.layers import layer_arguments
from cone_kernels.kernels.triton.squared_norms import squared_norms
from cone_kernels.sums import LEAST_MEAN_UNIT

_COLUMNS = 1024
_LEAST_NORM_SQ = tl.constexpr(LEAST_MEAN_UNIT**2)


def add_directions(mean_units: Tensor, segments: Segments, sums: dict[str, Tensor]) -> None:
    """Adds to `sentence_unit_sum` and `n_cancelled`.

    Args:
        mean_units: (L, B, d) float32, g/T of each sentence, T its tokens that were used; NaN where there is none.
        segments: of the sentences, with `order` and `starts`.
        sums: as `pool_moments` takes them.
    """
    n_layers, n_sentences, d = mean_units.shape
    norm_sq = squared_norms(layer_arguments(list(mean_units)), n_layers, n_sentences, n_sentences, d, None)
    launch(
        _add_directions,
        (n_layers * segments.groups, triton.cdiv(d, _COLUMNS)),
        mean_units,
        norm_sq,
        n_sentences,
        segments.groups,
        segments.order,
        segments.starts,
        sums["sentence_unit_sum"],
        sums["n_cancelled"],
        d=d,
        COLUMNS=min(_COLUMNS, max(64, triton.next_power_of_2(d))),
        num_warps=4,
    )


@triton.jit(do_not_specialize=["sentences", "groups"])
def _add_directions(
    mean_units, norm_sq, sentences, groups, order, starts, sentence_unit_sum, n_cancelled,
    d: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    layer, group = layer_and_number(groups)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = columns < d
    total = tl.zeros((COLUMNS,), tl.float64)
    cancelled = tl.load(starts) * 0
    for position in range(tl.load(starts + group), tl.load(starts + group + 1)):
        at = layer * sentences + tl.load(order + position)
        own = tl.load(norm_sq + at)
        if own > _LEAST_NORM_SQ:
            mean_unit = tl.load(mean_units + at * d + columns, mask=in_row, other=0.0).to(tl.float64)
            total += mean_unit * (1.0 / tl.sqrt(own))
        elif own <= _LEAST_NORM_SQ:  # of no token it is NaN
            cancelled += 1
    at = layer * groups + group
    to = sentence_unit_sum + at * d + columns
    tl.store(to, tl.load(to, mask=in_row) + total, mask=in_row)
    if tl.program_id(1) == 0:
        tl.store(n_cancelled + at, tl.load(n_cancelled + at) + cancelled)
