"""Uniformity of sentence vectors on the sphere, and the alignment of those that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cone_kernels.loss.hidden_layers import chosen_layers, usable_rows, vectors_of
from cone_kernels.ops.arguments import require

_EPS = 1e-12  # that of torch.nn.functional.normalize


def uniformity_loss(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    t: float = 2.0,
    layers: int | Sequence[int] | None = None,
) -> Tensor:
    """The mean over layers of log of the mean of exp(−t‖u − v‖²) over distinct pairs of sentence vectors at length 1.

    It is 0 where all point the same way, and least where they are spread evenly over the sphere (Wang & Isola 2020).
    Pairs are taken exactly, (n, n) float64 of them: 8n² bytes. Vectors that are zero or not finite are left out and
    get the gradient 0; those shorter than 1e-12 are divided by that. All is float64, also under autocast; the gradient
    is rounded once, to the dtype of `hidden`. With fewer than two vectors the loss is NaN and its gradient 0. It is
    that of this process's batch alone.

    Args:
        hidden, mask, cu_seqlens, layers: as in `isotropy_loss`.
        t: above 0; the greater it is, the more the closest pairs count.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above.

    Examples:
        >>> uniformity_loss(torch.eye(2))
        tensor(-4., dtype=torch.float64)
    """
    _require_positive("t", t)
    found = [_units(vectors_of(one, mask, cu_seqlens)) for one in chosen_layers(hidden, mask, cu_seqlens, layers)]
    return torch.stack([_uniformity(units, used, t) for units, used in found]).mean()


def alignment_loss(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    pairs: Tensor,
    cu_seqlens: Tensor | None = None,
    alpha: float = 2.0,
    layers: int | Sequence[int] | None = None,
) -> Tensor:
    """The mean over layers of the mean of ‖u − v‖^α over pairs that belong together, vectors at length 1.

    With `uniformity_loss` it says what contrastive training does (Wang & Isola 2020): a loss that spreads sentences
    tells nothing of quality where those that mean the same are spread too. Pairs with a vector that is zero or not
    finite are left out and get the gradient 0; without a pair the loss is NaN and its gradient 0. Precision as
    `uniformity_loss`.

    Args:
        hidden, mask, cu_seqlens, layers: as in `isotropy_loss`.
        pairs: (P, 2) int64: which sentences of the batch belong together, by their indices.
        alpha: α, above 0. Of equal vectors the gradient is 0.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above.

    Examples:
        >>> pairs = torch.arange(2 * b).reshape(2, b).mT  # texts, and then in the same order what they go with
        >>> loss = alignment_loss(hidden, mask, pairs=pairs) + uniformity_loss(hidden[:b], mask[:b])
    """
    _require_positive("alpha", alpha)
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
        raise TypeError(f"pairs: got {getattr(pairs, 'dtype', type(pairs).__name__)}; it must be a tensor of int64")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: got shape {tuple(pairs.shape)}; it must be (P, 2)")
    losses = []
    for layer in chosen_layers(hidden, mask, cu_seqlens, layers):
        units, used = _units(vectors_of(layer, mask, cu_seqlens))
        n = len(units)
        inside = ((pairs >= 0) & (pairs < n)).all()
        require(inside, "pairs", lambda: "indices outside the batch", "they must be from 0 to the number of sentences")
        both = used[pairs].all(1)
        squares = (units[pairs[:, 0]] - units[pairs[:, 1]]).square().sum(1)
        # A root has no slope at 0.
        apart = both & (squares > 0)
        powers = squares.where(apart, 1.0).pow(alpha / 2).where(apart, 0.0)
        count = both.sum()
        losses.append((powers.sum() / count.clamp_min(1)).where(count > 0, math.nan))
    return torch.stack(losses).mean()


def _require_positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(f"{name}: got {value!r}; it must be a number above 0")


def _units(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors (n, D) divided by max(‖x‖, 1e-12), float64, and which of them are used."""
    rows, used = usable_rows(vectors)
    return torch.nn.functional.normalize(rows, dim=-1, eps=_EPS), used


def _uniformity(units: Tensor, used: Tensor, t: float) -> Tensor:
    products = units @ units.mT
    lengths = units.square().sum(1)
    squares = lengths[:, None] + lengths - 2 * products
    pairs = used[:, None] & used & ~torch.eye(len(units), dtype=torch.bool, device=units.device)
    count = pairs.sum()
    # Without a pair every entry stands in, so that the sum has a finite gradient, which is then not used.
    entries = (-t * squares).where(pairs | (count == 0), -math.inf)
    total = entries.flatten().logsumexp(0) if len(units) else units.sum()
    return (total - count.clamp_min(1).double().log()).where(count > 0, math.nan)
