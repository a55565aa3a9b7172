"""A run that the processes of torchrun share, on one machine or several: each runs a part, and all get the whole."""

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
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous

from cone_kernels.names import Layer
from cone_kernels.runs.measure_part import measure_part
from cone_kernels.runs.measurement import Measurement
from cone_kernels.runs.options import SharedOptions
from cone_kernels.runs.part import RunPart
from cone_kernels.runs.sentence_vectors import SentenceVectors, united
from cone_kernels.runs.sharing.attendance import Attendance
from cone_kernels.runs.sharing.shared_run import SharedRun

# For all ranks to come together, and for one to receive what another sends; none sends before all are done.
_TIMEOUT = timedelta(minutes=30)

_groups = itertools.count()
# How often torchrun has started the ranks again after one of them failed.
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def measure_by_ranks(
    model: Any,
    corpus: Any,
    gathered: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: SharedOptions,
) -> Measurement:
    """As `measure`: each rank reads the whole corpus and runs its shards; all return the same, rank 0 alone writes.

    Args:
        model, corpus: as in `measure`, on every rank.
        gathered: `second_moment`, `unit_second_moment`, `pooling`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions` with `distributed`; each rank has a checkpoint of its own, FILE.0-of-4 and so on. Ranks
            that torchrun starts again go on from theirs.

    Raises:
        ValueError: torchrun has not started this process.
        WorkerError: another rank has given no sign of life for long.
    """
    with process_group() as store, tempfile.TemporaryDirectory() as folder:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        own: dict[str, Any] = {"save_state": Path(folder, "part"), "progress": options.get("progress")}
        if rank == 0:
            own["log_json"] = options.get("log_json")
        if options.get("checkpoint") is not None and int(os.environ.get(_RESTARTS, "0")) > 0:
            own["resume"] = True  # the checkpoint is that of the ranks that torchrun has ended and started again
        if options.get("device") is None and torch.cuda.is_available():
            number = int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count()
            # Before anything else takes memory on the current GPU, which is the first one and another rank's.
            torch.cuda.set_device(number)
            own["device"] = f"cuda:{number}"
        shared = SharedRun(model, corpus, gathered, save_state, options)
        with Attendance(store, rank, world_size) as ranks:
            here = measure_part(**shared.keywords(rank, world_size, **own))
            ranks.wait_for_all()
        part = all_merged(RunPart.load(own["save_state"]))
        vectors = all_united(here.vectors, part.sentences) if gathered["keep_vectors"] else {}
    return shared.measurement(part, vectors, {"distributed": world_size}, here.loaded, rank)


@contextmanager
def process_group() -> Iterator[Store]:
    """A gloo group of all ranks for as long as a run takes; a group that is there already is used and stays.

    Gives keys of its own in the store that the ranks share.

    Raises:
        ValueError: this process was not started by torchrun or the like.
    """
    if dist.is_initialized():
        yield PrefixStore(f"cone_kernels/run/{next(_groups)}", _get_default_store())
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "distributed: got True outside of torchrun, which sets RANK and WORLD_SIZE; start the program by it"
        )
    store, rank, world_size = _rendezvous()
    # A group needs keys of its own in the store: those of an earlier group lead to connections that are closed.
    number = next(_groups)
    own = PrefixStore(f"cone_kernels/{number}", store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    try:
        yield PrefixStore(f"cone_kernels/run/{number}", store)
    finally:
        dist.destroy_process_group()


@cache
def _rendezvous() -> tuple[Store, int, int]:
    """The store that all ranks share, which is made once in a process; the rank and the world size."""
    found: tuple[Store, int, int] = next(rendezvous("env://", timeout=_TIMEOUT))
    return found


def all_merged(part: RunPart) -> RunPart:
    """The parts of all ranks as one, the same on every rank. Every rank calls it.

    Rank 0 receives the parts in the order of the ranks, merges them, and sends the result to all.

    Args:
        part: of this rank.

    Raises:
        ValueError: as `RunPart.merge`, on rank 0.
    """
    rank = dist.get_rank()
    if rank > 0:
        _send(_bytes_of(part), 0)
        return _part_of(_receive(0))
    others = range(1, dist.get_world_size())
    merged = reduce(RunPart.merge, [_part_of(_receive(other)) for other in others], part)
    for other in others:
        _send(_bytes_of(merged), other)
    return merged


def all_united(vectors: Mapping[Layer, SentenceVectors], sentences: int) -> dict[Layer, SentenceVectors]:
    """The sentence vectors of the whole corpus by layer, the same on every rank. Every rank calls it.

    Each block of sentences is sent to all by the rank that has it.

    Args:
        vectors: those of this rank's shards.
        sentences: how many the corpus has.

    Raises:
        ValueError: as `united`, on every rank.
    """
    found: list[dict[Layer, dict[str, Any]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, {layer: kept.header() for layer, kept in vectors.items()})
    whole = {}
    for layer in sorted(set().union(*found), key=str):
        ranks = [rank for rank, headers in enumerate(found) if layer in headers]

        def block(which: int, first_id: int, n: int, layer: Layer = layer, ranks: list[int] = ranks) -> torch.Tensor:
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


def _bytes_of(part: RunPart) -> bytes:
    """The bytes of a file of the part, whose fingerprint is checked when they are read."""
    with tempfile.TemporaryDirectory() as folder:
        part.save(Path(folder, "part"))
        return Path(folder, "part").read_bytes()


def _part_of(content: bytes) -> RunPart:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "part").write_bytes(content)
        return RunPart.load(Path(folder, "part"))
