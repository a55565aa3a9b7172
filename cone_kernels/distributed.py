"""The states of several ranks summed to one, and a sampler that reads every sample once."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from cone_kernels.state.agreement import refuse_differences
from cone_kernels.state.cone_state import ConeState, smallest_ids
from cone_kernels.state.moments import Moments


def all_reduce(state: ConeState | None, group: dist.ProcessGroup | None = None) -> ConeState:
    """The state of the sentences of all ranks, the same on each of them; the ranks' own states do not change.

    Every field is a sum, so this is a SUM all-reduce; counts are exact. Every rank of the group must call it.

    Args:
        state: this rank's; None from a rank that has seen no sentence.
        group: the process group; default: all ranks.

    Raises:
        ValueError: the states differ in `info`, poolings, layers, width or fields (each named, on every rank), or no
            rank has one.

    Examples:
        >>> total = all_reduce(probe.state)
        >>> metrics.anisotropy(total.sentence)  # (L,), over the sentences of all ranks
    """
    identities: list[dict[str, Any] | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(identities, None if state is None else _identity(state), group=group)
    known = [(rank, identity) for rank, identity in enumerate(identities) if identity is not None]
    if not known:
        raise ValueError(
            "state: got None on every rank; it must be a state on one of them at least, so count a forward first"
        )
    first_rank, first = known[0]
    for rank, identity in known[1:]:
        refuse_differences(f"ConeState of ranks {first_rank} and {rank}", first, identity)

    local = _empty(first) if state is None else state
    sums = {(key, name): value for key, part in local.all_moments.items() for name, value in part.sums.items()}
    for dtype in (torch.float64, torch.int64):
        names = [name for name, value in sums.items() if value.dtype == dtype]
        flat = torch.cat([sums[name].flatten() for name in names])
        dist.all_reduce(flat, group=group)
        for name, total in zip(names, torch.split(flat, [sums[name].numel() for name in names]), strict=True):
            sums[name] = total.view(sums[name].shape)

    left_out = [torch.empty_like(local.first_left_out) for _ in identities]
    dist.all_gather(left_out, local.first_left_out.contiguous(), group=group)
    smallest = smallest_ids(left_out[0], torch.cat(left_out, dim=1))

    parts = {
        key: Moments.of_sums(part.level, part.layers, part.dim, {name: sums[key, name] for name in part.fields})
        for key, part in local.all_moments.items()
    }
    sentence, token = parts.pop("sentence"), parts.pop("token")
    return ConeState(sentence, token, dict(local.info), smallest, local.backend, parts)


class ShardSampler(Sampler[int]):
    """Rank r's samples r, r + R, r + 2R, … of R ranks: each sample of the data set once, on one rank.

    `torch.utils.data.DistributedSampler` repeats samples so that all ranks get as many; here some ranks get one
    less, so this is for evaluation, where ranks need not take the same number of steps. The samples' indices, given
    to `ConeProbe.next_batch(sentence_ids=...)`, make the jackknife groups those of a single process.

    Args:
        data: the data set, or its length.
        rank, world_size: of the process group; default: those of all ranks.

    Raises:
        ValueError: `rank` is not below `world_size`, or the length is negative.

    Examples:
        >>> list(ShardSampler(7, rank=1, world_size=3))
        [1, 4]
    """

    def __init__(self, data: Sized | int, *, rank: int | None = None, world_size: int | None = None) -> None:
        self._length = data if isinstance(data, int) else len(data)
        self._rank = dist.get_rank() if rank is None else rank
        self._world_size = dist.get_world_size() if world_size is None else world_size
        if not 0 <= self._rank < self._world_size:
            raise ValueError(
                f"rank: got {self._rank} of world_size {self._world_size}; it must be 0 or more and below world_size"
            )
        if self._length < 0:
            raise ValueError(f"data: got length {self._length}; it must be 0 or more")

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._rank, self._length, self._world_size))

    def __len__(self) -> int:
        return len(range(self._rank, self._length, self._world_size))


def padding_repeats(first: int, size: int, length: int, *, rank: int, world_size: int) -> Tensor:
    """Which samples of a rank's batch a `DistributedSampler` repeats, for `ConeProbe.next_batch(repeats=...)`.

    The sampler deals positions 0, 1, 2, … out to the ranks in turn, and those from `length` on are repeats.

    Args:
        first: how many samples this rank has read in this epoch before this batch.
        size: B, the samples in this batch.
        length: of the data set.
        rank, world_size: the sampler's `rank` and `num_replicas`.

    Returns:
        (B,) bool.
    """
    return (first + torch.arange(size)) * world_size + rank >= length


def _identity(state: ConeState) -> dict[str, Any]:
    parts = {key: part.identity() for key, part in state.all_moments.items()}
    return {"info": state.info, "backend": state.backend, "device": state.first_left_out.device.type, **parts}


def _empty(identity: dict[str, Any]) -> ConeState:
    """The empty state of this identity, on this rank's own device."""
    sentence = identity["sentence"]
    device = torch.device(identity["device"])
    poolings = [key for key in identity if key not in ("info", "backend", "device", "sentence", "token")]
    return ConeState.empty(
        sentence["layers"],
        sentence["dim"],
        second_moment="second_moment" in sentence["fields"],
        unit_second_moment="unit_second_moment" in sentence["fields"],
        poolings=poolings,
        backend=identity["backend"],
        device=device,
        info=identity["info"],
    )
