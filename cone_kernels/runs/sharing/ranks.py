"""One run by the processes that torchrun starts, on one machine or several: each runs a part, and all get the whole."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from cone_kernels.runs.part import PartialRun
from cone_kernels.runs.sentence_vectors import SentenceVectors, united

# Ranks wait for the slowest one at the end, which may be long after the first is done.
_PATIENCE = timedelta(days=7)

_groups = itertools.count()


@contextmanager
def process_group() -> Iterator[None]:
    """A gloo group of all ranks for as long as a run takes; one that is there already is used.

    Raises:
        ValueError: this process was not started by torchrun or the like.
    """
    if dist.is_initialized():
        yield
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise ValueError("distributed: got True outside of torchrun, which sets RANK and WORLD_SIZE")
    store, rank, world_size = _rendezvous()
    # A group needs keys of its own in the store: those of an earlier one are of connections that are closed.
    own = PrefixStore(f"cone_kernels/{next(_groups)}", store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=world_size, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@cache
def _rendezvous() -> tuple[Store, int, int]:
    """The store of all ranks, which lives as long as the process; rank and world size."""
    found: tuple[Store, int, int] = next(rendezvous("env://", timeout=_PATIENCE))
    return found


def all_merged(part: PartialRun) -> PartialRun:
    """The parts of all ranks as one, the same on every rank. Every rank calls it.

    Rank 0 takes in the parts in the order of the ranks and sends round what they make.

    Args:
        part: this rank's.

    Raises:
        ValueError: as `PartialRun.merge`, on rank 0.
    """
    rank = dist.get_rank()
    if rank > 0:
        _send(_bytes_of(part), 0)
        return _part_of(_receive(0))
    others = range(1, dist.get_world_size())
    merged = reduce(PartialRun.merge, [_part_of(_receive(other)) for other in others], part)
    for other in others:
        _send(_bytes_of(merged), other)
    return merged


def all_united(vectors: Mapping[int, SentenceVectors], sentences: int) -> dict[int, SentenceVectors]:
    """The sentence vectors of the whole corpus by layer number, on every rank, block by block. Every rank calls it.

    Args:
        vectors: those of this rank's shards.
        sentences: of the corpus.

    Raises:
        ValueError: as `united`, on every rank.
    """
    found: list[dict[int, dict[str, Any]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, {layer: kept.header() for layer, kept in vectors.items()})
    whole = {}
    for layer in sorted(set().union(*found)):
        ranks = [rank for rank, headers in enumerate(found) if layer in headers]

        def block(which: int, first_id: int, n: int, layer: int = layer, ranks: list[int] = ranks) -> torch.Tensor:
            rank = ranks[which]
            if rank == dist.get_rank():
                rows = vectors[layer].read(first_id, n)
            else:
                header = found[rank][layer]
                rows = torch.empty(n, header["dim"], dtype=getattr(torch, header["dtype"]))
            dist.broadcast(rows, src=rank)
            return rows

        whole[layer] = united([found[rank][layer] for rank in ranks], sentences, block)
    return whole


def _send(content: bytes, rank: int) -> None:
    dist.send(torch.tensor([len(content)]), dst=rank)
    dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), dst=rank)


def _receive(rank: int) -> bytes:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, src=rank)
    content = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(content, src=rank)
    return content.numpy().tobytes()


def _bytes_of(part: PartialRun) -> bytes:
    """Those of its file, which are checked when they are read."""
    with tempfile.TemporaryDirectory() as folder:
        part.save(Path(folder, "part"))
        return Path(folder, "part").read_bytes()


def _part_of(content: bytes) -> PartialRun:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "part").write_bytes(content)
        return PartialRun.load(Path(folder, "part"))
