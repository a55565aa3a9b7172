"""A loss on IsoScore*, how evenly the vectors of a batch spread over all directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from cone_kernels.loss.hidden_layers import chosen_layers, tokens_of, usable_rows, vectors_of
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
    `hidden`. Where fewer than two vectors are left, or none varies, the loss is NaN and its gradient 0. It is that of
    this process's batch alone.

    Args:
        hidden, mask, cu_seqlens, layers: as in `isotropy_loss`.
        target: the IsoScore* wanted, in [0, 1]; None for 1 − IsoScore*.
        reference: S, (D, D), or (L, D, D) one for each of `layers`, such as `metrics.covariance` gives of a state of
            many sentences; no gradient goes there. Given exactly where `shrinkage` is above 0.
        shrinkage: ζ, from 0 to below 1.
        level: "sentence" takes sentence vectors, "token" all tokens that count, as I-STAR does.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above.

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
    scores = []
    for layer, one in zip(tokens, references, strict=True):
        if level == "token":
            rows, used = usable_rows(*tokens_of(layer, mask, cu_seqlens))
        else:
            rows, used = usable_rows(vectors_of(layer, mask, cu_seqlens))
        scores.append(_isoscore(rows, used, one, shrinkage))
    found = torch.stack(scores)
    return (1 - found).mean() if target is None else (found - target).square().mean()


def _references(reference: Tensor | None, shrinkage: float, layers: Sequence[Tensor]) -> list[Tensor | None]:
    """The reference of each layer, float64."""
    if not (isinstance(shrinkage, (int, float)) and 0 <= shrinkage < 1):
        raise ValueError(f"shrinkage: got {shrinkage!r}; it must be a number from 0 to below 1")
    if (reference is None) != (shrinkage == 0):
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


def _isoscore(rows: Tensor, used: Tensor, reference: Tensor | None, shrinkage: float) -> Tensor:
    """IsoScore* of the rows (n, D) that are used; NaN, without a gradient, where it is not defined."""
    n, d = used.sum().double(), rows.shape[-1]
    weights = used.double()[:, None]
    # Deviations from a row of theirs are exactly zero where all are equal.
    first = rows.detach().index_select(0, used.long().argmax(0, keepdim=True)) if len(rows) else rows
    shifted = weights * (rows - first)
    centered = shifted - weights * (shifted.sum(0) / n.clamp_min(1))
    share = (1 - shrinkage) / (n - 1).clamp_min(1)
    # The smaller of XᵀX and XXᵀ: their squares have the same sum.
    product = centered.mT @ centered if len(rows) >= d else centered @ centered.mT
    trace = share * centered.square().sum()
    squares = share * share * product.square().sum()
    if reference is not None:
        trace = trace + shrinkage * reference.trace()
        both = (centered * (centered @ reference)).sum()
        squares = squares + 2 * share * shrinkage * both + shrinkage**2 * reference.square().sum()
    # One dimension has no directions to spread over.
    defined = (n >= 2) & (squares > 0) & (d > 1)
    ratio = trace * trace / squares.where(defined, 1.0)
    return ((ratio - 1) / max(d - 1, 1)).where(defined, math.nan)
