"""Uniformity of sentence vectors on the sphere, and the alignment of those that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cone_kernels.loss.hidden_layers import chosen_layers, usable_rows, vectors_of
from cone_kernels.loss.ranks import largest, process_group, rows_of_all, summed
from cone_kernels.ops.arguments import require

_EPS = 1e-12  # that of torch.nn.functional.normalize


def uniformity_loss(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    t: float = 2.0,
    layers: int | Sequence[int] | None = None,
    group: Any = None,
) -> Tensor:
    """The mean over layers of log of the mean of exp(−t‖u − v‖²) over distinct pairs of sentence vectors at length 1.

    It is 0 where all point the same way, and least where they are spread evenly over the sphere (Wang & Isola 2020).
    Pairs are taken exactly, (n, n) float64 of them: 8n² bytes. Vectors that are zero or not finite are left out and
    get the gradient 0; those shorter than 1e-12 are divided by that. All is float64, also under autocast; the gradient
    is rounded once, to the dtype of `hidden`. With fewer than two vectors the loss is NaN and its gradient 0.

    With `group`, pairs are those of the N vectors of all ranks: their unit vectors are gathered, and each rank takes
    its own n against all, 8nN bytes. Which batches ranks may have, and that the gradient is W times that of one process
    with the whole batch, is as `isotropy_loss` says.

    Args:
        hidden, mask, cu_seqlens, layers, group: as in `isotropy_loss`.
        t: above 0; the greater it is, the more the closest pairs count.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above, or there is no process group for `group`.
        RuntimeError: on a double backward with `group`.

    Examples:
        >>> uniformity_loss(torch.eye(2))
        tensor(-4., dtype=torch.float64)
    """
    _require_positive("t", t)
    found = [_units(vectors_of(one, mask, cu_seqlens)) for one in chosen_layers(hidden, mask, cu_seqlens, layers)]
    if group is None:
        losses = torch.stack([_uniformity(units, used, t) for units, used in found])
    else:
        losses = _uniformities_of_all_ranks(found, t, process_group(group))
    return losses.mean()


def alignment_loss(
    hidden: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    pairs: Tensor,
    cu_seqlens: Tensor | None = None,
    alpha: float = 2.0,
    layers: int | Sequence[int] | None = None,
    group: Any = None,
) -> Tensor:
    """The mean over layers of the mean of ‖u − v‖^α over pairs that belong together, vectors at length 1.

    With `uniformity_loss` it says what contrastive training does (Wang & Isola 2020): a loss that spreads sentences
    tells nothing of quality where those that mean the same are spread too. Pairs with a vector that is zero or not
    finite are left out and get the gradient 0; without a pair the loss is NaN and its gradient 0. Precision as
    `uniformity_loss`. With `group`, the mean is that over the pairs of all ranks, each of which is of one rank's batch;
    a rank may have none. The gradient is as `isotropy_loss` says.

    Args:
        hidden, mask, cu_seqlens, layers, group: as in `isotropy_loss`.
        pairs: (P, 2) int64: which sentences of this process's batch belong together, by their indices.
        alpha: α, above 0. Of equal vectors the gradient is 0.

    Returns:
        () float64.

    Raises:
        TypeError: a dtype or type is not taken.
        ValueError: a shape or value is not as above, or there is no process group for `group`.
        RuntimeError: on a double backward with `group`.

    Examples:
        >>> pairs = torch.arange(2 * b).reshape(2, b).mT  # texts, and then in the same order what they go with
        >>> loss = alignment_loss(hidden, mask, pairs=pairs) + uniformity_loss(hidden[:b], mask[:b])
    """
    _require_positive("alpha", alpha)
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
        raise TypeError(f"pairs: got {getattr(pairs, 'dtype', type(pairs).__name__)}; it must be a tensor of int64")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: got shape {tuple(pairs.shape)}; it must be (P, 2)")
    sums, counts = [], []
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
        sums.append(powers.sum())
        counts.append(both.sum())
    total, count = torch.stack(sums), torch.stack(counts)
    if group is not None:
        total, count = _summed_pairs(total, count, process_group(group))
    return (total / count.clamp_min(1)).where(count > 0, math.nan).mean()


def _require_positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(f"{name}: got {value!r}; it must be a number above 0")


def _units(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors (n, D) divided by max(‖x‖, 1e-12), float64, and which of them are used."""
    rows, used = usable_rows(vectors)
    return torch.nn.functional.normalize(rows, dim=-1, eps=_EPS), used


def _uniformity(units: Tensor, used: Tensor, t: float) -> Tensor:
    total, count = _log_of_sum(units, used, units, used, 0, t)
    return (total - count.clamp_min(1).double().log()).where(count > 0, math.nan)


def _log_of_sum(
    units: Tensor, used: Tensor, others: Tensor, others_used: Tensor, first: int, t: float
) -> tuple[Tensor, Tensor]:
    """The log of the sum of exp(−t‖u − v‖²) over pairs of rows (n, D) and others (N, D), and how many pairs they are.

    Row 0 is the other of index `first`, and so on: these are no pairs. Without a pair the log is some finite number.
    """
    products = units @ others.mT
    squares = units.square().sum(1)[:, None] + others.square().sum(1) - 2 * products
    own = torch.arange(first, first + len(units), device=units.device)
    pairs = used[:, None] & others_used & (own[:, None] != torch.arange(len(others), device=units.device))
    count = pairs.sum()
    # Without a pair every entry stands in, so that the sum has a finite gradient, which is then not used.
    entries = (-t * squares).where(pairs | (count == 0), -math.inf)
    return entries.flatten().logsumexp(0) if len(units) else units.sum(), count


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _uniformities_of_all_ranks(layers: Sequence[tuple[Tensor, Tensor]], t: float, group: dist.ProcessGroup) -> Tensor:
    """(L,): the uniformity of each layer's vectors of all ranks."""
    columns = [torch.cat([units, used.double()[:, None]], 1) for units, used in layers]
    of_all, first = rows_of_all(torch.cat(columns, 1), group)
    logs, counts = [], []
    for (units, used), whole in zip(layers, torch.split(of_all, [one.shape[1] for one in columns], dim=1), strict=True):
        others, others_used = whole[:, :-1], whole[:, -1] > 0
        # A vector is in as many pairs of its own rank, as a row, as in those of all ranks as a column, with the same
        # slope: what is taken of the rows alone counts twice.
        twice = units + (units - units.detach())
        total, count = _log_of_sum(twice, used, others, others_used, first, t)
        logs.append(total)
        counts.append(count)
    log, some = torch.stack(logs), torch.stack(counts) > 0
    highest = largest(log.detach().where(some, -math.inf), group)
    highest = highest.where(highest.isfinite(), 0.0)
    parts = (log - highest).exp().where(some, 0.0)
    total, count = summed([parts, torch.stack(counts).double()], group)
    pairs = count > 0
    return (total.where(pairs, 1.0).log() + highest - count.clamp_min(1).log()).where(pairs, math.nan)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _summed_pairs(total: Tensor, count: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    return summed([total, count.double()], group)
