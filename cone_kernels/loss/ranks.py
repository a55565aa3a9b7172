"""What the losses need of the other ranks of a process group, with gradients that need no further communication.

Every rank computes the same loss from sums over all of them. The transpose of a SUM sums the ranks' gradients, which
are the same where all ranks weight the loss alike, so it is W times a rank's own: no rank waits in the backward for one
whose vectors need no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def process_group(group: Any) -> dist.ProcessGroup:
    """The process group that an argument `group` means, True the default one.

    Raises:
        TypeError: it is none.
        ValueError: this rank is not in it, or torch.distributed is not initialized.
    """
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:  # what new_group gives to other ranks
        raise ValueError("group: got a process group that this rank is not in; it must be its own")
    if group is not True and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group: got {type(group).__name__} {group!r}; it must be None, True or a process group")
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"group: got {group!r}; it must be None while torch.distributed is not initialized (init_process_group)"
        )
    chosen: Any = dist.group.WORLD if group is True else group
    return chosen  # type: ignore[no-any-return]


def summed(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """The sums over all ranks of tensors of one dtype, in one all-reduce; the gradient is W times that of a sum."""
    flat: Tensor = _Summed.apply(group, torch.cat([one.flatten() for one in tensors]))  # type: ignore[no-untyped-call]
    sizes = [one.numel() for one in tensors]
    return [part.view(one.shape) for part, one in zip(torch.split(flat, sizes), tensors, strict=True)]


def largest(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The largest values over all ranks, without a gradient."""
    found = values.detach().clone()
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return found


def rows_of_all(rows: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, int]:
    """The rows (N, ...) of all ranks in their order, without a gradient, and where those of this rank begin."""
    rows = rows.detach()
    ranks = dist.get_world_size(group)
    size = torch.tensor([len(rows)], device=rows.device)
    given = [torch.empty_like(size) for _ in range(ranks)]
    dist.all_gather(given, size, group=group)
    sizes = torch.cat(given).tolist()
    # Not every backend gathers tensors of different sizes.
    filled = rows.new_zeros(max(sizes), *rows.shape[1:])
    filled[: len(rows)] = rows
    parts = [torch.empty_like(filled) for _ in range(ranks)]
    dist.all_gather(parts, filled, group=group)
    whole = torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])
    return whole, sum(sizes[: dist.get_rank(group)])


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, own: Tensor) -> Tensor:
        ctx.ranks = dist.get_world_size(group)
        total = own.clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.ranks * grad
