"""A loss on IsoScore*, how evenly the vectors of a batch spread over all directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from cone_kernels.loss.hidden_layers import chosen_layers, tokens_of, usable_rows, vectors_of
from cone_kernels.loss.ranks import process_group, rows_of_all, summed
from cone_kernels.ops.arguments import require

Level = Literal["sentence", "token"]


def isoscore_loss(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    target: float | None = None,
    reference: Tensor | None = None,
    shrinkage: float = 0.0,
    level: Level = "sentence",
    layers: int | Sequence[int] | None = None,
    group: Any = None,
) -> Tensor:
    """The mean over layers of 1 − IsoScore*, or with a target of (IsoScore* − target)².

    IsoScore* (Rudman & Eickhoff 2024, I-STAR) is the IsoScore of Σ = (1 − ζ)·C + ζ·S: C the covariance of the batch,
    S a reference covariance, ζ the shrinkage. It is ((tr Σ)²/‖Σ‖_F² − 1)/(D − 1), between 0 (all along one direction)
    and 1 (the same in all), so nothing is decomposed, and the gradient takes two products of matrices. I-STAR adds
    λ·(1 − IsoScore*) to the task's loss: λ > 0 makes the vectors more isotropic, λ < 0 less, which its authors found
    to serve better on most tasks.

    n vectors vary in n − 1 directions at most, so without a reference IsoScore* is at most (n − 2)/(D − 1) of a batch
    of n: with few vectors it says what the batch is, not what the model is. Vectors that are zero or not finite are
    left out and get the gradient 0. All is float64, also under autocast; the gradient is rounded once, to the dtype of
    `hidden`. Where fewer than two vectors are left, or none varies, the loss is NaN and its gradient 0.

    With `group`, IsoScore* is that of the vectors of all ranks: n, Σx and then the (D, D) products of deviations from
    their common mean are summed over them, 8·D² bytes a layer. Which batches ranks may have, and that the gradient is
    W times that of one process with the whole batch, is as `isotropy_loss` says.

    Args:
        hidden, mask, cu_seqlens, layers, group: as in `isotropy_loss`.
        target: the IsoScore* wanted, in [0, 1]; None for 1 − IsoScore*.
        reference: S, (D, D), or (L, D, D) one for each of `layers`, such as `metrics.covariance` gives of a state of
            many sentences; no gradient goes there. Given exactly where `shrinkage` is above 0.
        shrinkage: ζ, from 0 to below 1.
        level: "sentence" takes sentence vectors, "token" all tokens that count, as I-STAR does.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above, or there is no process group for `group`.
        RuntimeError: on a double backward with `group`.

    Examples:
        >>> reference = metrics.covariance(state.sentence)[-1]
        >>> loss = task - 0.1 * isoscore_loss(vectors, reference=reference, shrinkage=0.5)  # less isotropic
    """
    if target is not None and not (isinstance(target, (int, float)) and 0 <= target <= 1):
        raise ValueError(f"target: got {target!r}; it must be None or a number in [0, 1], as IsoScores are")
    if level not in get_args(Level):
        raise ValueError(f"level: got {level!r}; it must be one of {', '.join(get_args(Level))}")
    tokens = chosen_layers(hidden, mask, cu_seqlens, layers)
    references = _references(reference, shrinkage, tokens)
    if level == "token":
        rows = [usable_rows(*tokens_of(layer, mask, cu_seqlens)) for layer in tokens]
    else:
        rows = [usable_rows(vectors_of(layer, mask, cu_seqlens)) for layer in tokens]
    if group is None:
        moments = [_moments(*one, of) for one, of in zip(rows, references, strict=True)]
    else:
        moments = _moments_of_all_ranks(rows, references, process_group(group))
    scores = [
        _isoscore(one, layer.shape[-1], of, shrinkage)
        for one, layer, of in zip(moments, tokens, references, strict=True)
    ]
    found = torch.stack(scores)
    return (1 - found).mean() if target is None else (found - target).square().mean()


def _references(reference: Tensor | None, shrinkage: float, layers: Sequence[Tensor]) -> list[Tensor | None]:
    """The reference of each layer, float64."""
    if not (isinstance(shrinkage, (int, float)) and 0 <= shrinkage < 1):
        raise ValueError(f"shrinkage: got {shrinkage!r}; it must be a number from 0 to below 1")
    needed = bool(shrinkage > 0)  # of a number that torch.compile does not know != cannot be asked
    if needed is (reference is None):
        got = "none" if reference is None else "one"
        raise ValueError(f"reference: got {got} with shrinkage {shrinkage}; both must be given, or neither")
    if reference is None:
        return [None] * len(layers)
    if not isinstance(reference, Tensor) or not reference.is_floating_point():
        raise TypeError(f"reference: got {type(reference).__name__}; it must be a torch.Tensor of floats")
    d = layers[0].shape[-1]
    wanted = [(d, d), (len(layers), d, d)]
    if tuple(reference.shape) not in wanted or any(layer.shape[-1] != d for layer in layers):
        raise ValueError(
            f"reference: got shape {tuple(reference.shape)}; it must be {wanted[0]}, or {wanted[1]} for {len(layers)} "
            "layers of one width"
        )
    require(reference.isfinite().all(), "reference", lambda: "values that are not finite", "it must be finite")
    matrices = reference.detach().to(layers[0].device, torch.float64)
    return list(matrices.expand(len(layers), d, d))


class _Moments(NamedTuple):
    """What IsoScore* takes of rows: n, Σ‖c‖², ‖Σccᵀ‖_F² and Σcᵀ·S·c of their deviations c from the mean; () each."""

    n: Tensor
    length: Tensor
    squares: Tensor
    both: Tensor | None


def _moments(rows: Tensor, used: Tensor, reference: Tensor | None) -> _Moments:
    n, d = used.sum().double(), rows.shape[-1]
    weights = used.double()[:, None]
    # Deviations from a row of theirs are exactly zero where all are equal.
    first = rows.detach().index_select(0, used.long().argmax(0, keepdim=True)) if len(rows) else rows
    shifted = weights * (rows - first)
    centered = shifted - weights * (shifted.sum(0) / n.clamp_min(1))
    # The smaller of XᵀX and XXᵀ: their squares have the same sum.
    product = centered.mT @ centered if len(rows) >= d else centered @ centered.mT
    both = None if reference is None else (centered * (centered @ reference)).sum()
    return _Moments(n, centered.square().sum(), product.square().sum(), both)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _moments_of_all_ranks(
    layers: Sequence[tuple[Tensor, Tensor]], references: Sequence[Tensor | None], group: dist.ProcessGroup
) -> list[_Moments]:
    """The moments of the rows of all ranks, layer by layer."""
    weights = [used.double()[:, None] for _, used in layers]
    own_first = [_first_row(*layer) for layer in layers]
    firsts, _ = rows_of_all(torch.cat(own_first)[None], group)  # (W, Σ(D + 1))
    shifted = []
    for (rows, _), used, first in zip(
        layers, weights, torch.split(firsts, [len(one) for one in own_first], 1), strict=True
    ):
        shifted.append(used * (rows - first[first[:, -1].argmax(), :-1]))
    own = [torch.cat([one.detach().sum(0), used.sum(0)]) for one, used in zip(shifted, weights, strict=True)]
    sums = summed(own, group)
    parts: list[Tensor] = []
    for one, used, total, reference in zip(shifted, weights, sums, references, strict=True):
        # The mean needs no gradient: what it adds to that of the products is zero, as the deviations add up to zero.
        centered = one - used * (total[:-1] / total[-1].clamp_min(1))
        both = centered.new_zeros(()) if reference is None else (centered * (centered @ reference)).sum()
        parts += [centered.square().sum(), both, centered.mT @ centered]
    totals = summed(parts, group)
    return [
        _Moments(total[-1], length, product.square().sum(), both)
        for total, length, both, product in zip(sums, totals[::3], totals[1::3], totals[2::3], strict=True)
    ]


def _first_row(rows: Tensor, used: Tensor) -> Tensor:
    """The first of the rows (n, D) that are used, and 1; zeros (D + 1,) where there is none."""
    first = rows.detach()[used][:1]
    return torch.nn.functional.pad(torch.cat([first, first.new_ones(len(first), 1)], 1), (0, 0, 0, 1 - len(first)))[0]


def _isoscore(moments: _Moments, d: int, reference: Tensor | None, shrinkage: float) -> Tensor:
    """IsoScore* of rows of width d with these moments; NaN, without a gradient, where it is not defined."""
    share = (1 - shrinkage) / (moments.n - 1).clamp_min(1)
    trace = share * moments.length
    squares = share * share * moments.squares
    if reference is not None:
        assert moments.both is not None
        trace = trace + shrinkage * reference.trace()
        squares = squares + 2 * share * shrinkage * moments.both + shrinkage**2 * reference.square().sum()
    # One dimension has no directions to spread over.
    defined = (moments.n >= 2) & (squares > 0) & (d > 1)
    ratio = trace * trace / squares.where(defined, 1.0)
    return ((ratio - 1) / max(d - 1, 1)).where(defined, math.nan)
