"""One pass over vectors that somebody has already, in fixed shards of rows: no model is run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from cone_kernels import backends
from cone_kernels.devices import cpu_threads
from cone_kernels.runs.growing_part import GrowingPart
from cone_kernels.runs.options import RunOptions
from cone_kernels.runs.part import RunPart
from cone_kernels.runs.progress import Progress
from cone_kernels.state.cone_state import ConeState
from cone_kernels.vector_files import Vectors

# A state is made for each shard, and merged: of 8192 rows that would take a fifth of the time of reading them.
SHARD_ROWS = 65536

# A shard is added in blocks of so many rows, or so many numbers, so that memory stays flat.
_BLOCK_ROWS, _BLOCK_NUMBERS = 32768, 2**24


def pass_over(vectors: Vectors, limit: int | None, options: RunOptions) -> tuple[RunPart, ConeState]:
    """Adds up the rows shard by shard, those of this process alone where several share them.

    A shard is 65,536 rows by their number alone, and is added in blocks that depend on the width alone. So the sums
    have the same bits for any number of processes and threads, and however the rows lie in files or batches.

    Args:
        vectors: what is read, once.
        limit: only the first so many rows; None for all.
        options: `second_moment`, `unit_second_moment`, `backend`, `threads`, `shard`, `checkpoint`, `checkpoint_every`,
            `resume` and `progress` are used.

    Returns:
        The part that is saved for a merge, and its sums as one state.

    Raises:
        VectorFileError: a row cannot be read.
        ValueError: the checkpoint is of other vectors or options; vectors that nothing tells apart from others are to
            be resumed or shared.
        FileExistsError, FileNotFoundError, StateFileError, OSError, Interrupted: as `run` of a model.

    Examples:
        >>> part, state = pass_over(Vectors("minilm.npy"), None, RunOptions())
        >>> metrics.anisotropy(state.output)
    """
    identity = _identity(vectors, limit, options)
    if identity["vectors.fingerprint"] is None and (options.checkpoint or options.shard):
        name = "checkpoint" if options.checkpoint else "shard"
        raise ValueError(
            f"{name}: got {getattr(options, name)!r} for {vectors.name}; it must be vectors in files or in one array, "
            "for nothing shows whether an iterable gives the same rows again"
        )
    growing = GrowingPart(
        RunPart.begin(identity, options.shard or "0/1", SHARD_ROWS),
        checkpoint=options.checkpoint,
        every=options.checkpoint_every,
        resume=options.resume,
    )
    with growing.checkpointed(), cpu_threads(options.threads):
        return _pass(vectors, limit, options, growing)


def save_part(vectors: Vectors, *, limit: int | None, save_state: str | os.PathLike[str], **options: Any) -> None:
    """As `pass_over`, and writes the part; a worker calls this.

    Args:
        vectors, limit: as in `pass_over`.
        save_state: where the part is written.
        options: fields of `RunOptions`.
    """
    part, _ = pass_over(vectors, limit, RunOptions(**options))
    part.save(save_state)


def described(vectors: Vectors) -> dict[str, Any]:
    """What a state says of its vectors, wherever their files are: two states of one kind of vectors agree in it."""
    return {"dim": vectors.dim, "dtype": vectors.kind, "scale": vectors.scale}


def _pass(vectors: Vectors, limit: int | None, options: RunOptions, growing: GrowingPart) -> tuple[RunPart, ConeState]:
    def empty() -> ConeState:
        kept = {"second_moment": options.second_moment, "unit_second_moment": options.unit_second_moment}
        info = {"vectors": described(vectors)}
        return ConeState.of_vectors(vectors.dim, **kept, backend=options.backend, info=info)

    def report(done: int) -> None:
        if options.progress is not None:
            share = None if expected is None else round(expected / options.process[1])
            elapsed, resumed = time.perf_counter() - started, before.counts.get("sentences", 0)
            options.progress(Progress(done, 0, share, elapsed, resumed_sentences=resumed, unit="vectors"))

    started, before = time.perf_counter(), growing.part
    done = before.counts.get("sentences", 0)
    ran: dict[str, str] = dict(before.facts.get("backends", {}))
    expected = vectors.rows if limit is None else min(limit, vectors.rows or limit)
    for number, wanted, blocks, stop in _shards(vectors, limit, growing):
        state = empty() if wanted else None
        with backends.record() as used:
            for first, rows in blocks:
                stop = first + len(rows)
                if state is not None:
                    state.add_output(rows, torch.arange(first, stop))
                    done += len(rows)
                    report(done)
        ran |= {op: str(backend) for op, backend in used}
        if stop <= before.sentences:
            continue
        seconds = time.perf_counter() - started
        facts = {"backends": ran, "seconds": before.facts.get("seconds", 0.0) + seconds}
        growing.take(number, state, expected, sentences=stop, counts={"sentences": done}, facts=facts)
    part = growing.end()
    return part, growing.state(empty())


def _shards(
    vectors: Vectors, limit: int | None, growing: GrowingPart
) -> Iterator[tuple[int, bool, Iterable[tuple[int, Tensor]], int]]:
    """(number, whether it is run here, blocks, the row after the last where it is known) of every shard.

    What is not run here has no blocks; where the number of rows is not known ahead, it has, to be read over.
    """
    rows, known = _block_rows(vectors.dim), vectors.rows
    if known is not None:
        end = known if limit is None else min(limit, known)
        for number, start in enumerate(range(0, end, SHARD_ROWS)):
            stop = min(start + SHARD_ROWS, end)
            wanted = growing.runs_here(number, stop)
            yield number, wanted, vectors.blocks(start, stop, rows) if wanted else (), stop
        return
    for number, blocks in groupby(_up_to(vectors.blocks(rows=rows), limit), lambda block: block[0] // SHARD_ROWS):
        # An interrupted run had passed over whole shards, or all rows; so a shard that begins later is not done.
        yield number, growing.runs_here(number, number * SHARD_ROWS + 1), blocks, 0


def _up_to(blocks: Iterator[tuple[int, Tensor]], limit: int | None) -> Iterator[tuple[int, Tensor]]:
    for first, rows in blocks:
        yield first, rows if limit is None else rows[: limit - first]
        if limit is not None and first + len(rows) >= limit:
            return


def _block_rows(dim: int) -> int:
    """A power of two, so that every shard is a whole number of blocks."""
    return min(_BLOCK_ROWS, 1 << (max(1, _BLOCK_NUMBERS // dim).bit_length() - 1))


def _identity(vectors: Vectors, limit: int | None, options: RunOptions) -> dict[str, Any]:
    """All that decides the bits of a pass, as flat JSON."""
    of_vectors = {**described(vectors), "fingerprint": vectors.fingerprint}
    chosen = {name: getattr(options, name) for name in ("second_moment", "unit_second_moment", "backend")}
    groups = {"vectors": of_vectors, "options": {"limit": limit, **chosen}}
    return {f"{group}.{name}": value for group, found in groups.items() for name, value in found.items()}
