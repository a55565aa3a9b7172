"""Vectors that somebody has already as a measurement: one pass over them, in this process or shared among several."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, TypedDict

from cone_kernels.doctor import versions
from cone_kernels.files import writing
from cone_kernels.runs.machine import processor
from cone_kernels.runs.measurement import Measurement, without_corpus
from cone_kernels.runs.options import RunOptions, refuse_replacing
from cone_kernels.runs.part import RunPart
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.vectors_pass import SHARD_ROWS, described, pass_over
from cone_kernels.state.cone_state import ConeState
from cone_kernels.vector_files import Vectors


class VectorsOptions(TypedDict, total=False):
    """The keywords of a pass over vectors, as those of these names in `ShardOptions`."""

    limit: int | None
    """Only the first so many rows."""
    backend: str
    threads: int | None
    workers: int | None
    """So many processes of this machine, each of which opens the files anew."""
    shard: str | None
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: float | None
    resume: bool
    overwrite: bool
    progress: Callable[[Progress], None] | None


def measure_vectors(
    vectors: Vectors,
    *,
    second_moment: bool = False,
    save_state: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Measurement:
    """Reads all rows once, and adds them up as the `output` of a state without layers.

    Args:
        vectors: what is measured.
        second_moment: also keep Σ x xᵀ, which geometry, axes and whitening are computed from.
        save_state: where to write the state; with `shard` the `RunPart`.
        limit, workers, overwrite, options: `VectorsOptions`.

    Raises:
        TypeError: an option is unknown; other processes cannot open the vectors.
        VectorFileError: a row cannot be read.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: an option is out of range or does not go with another; `shard` without `save_state`; and as
            `pass_over`.
        WorkerError: a worker failed.

    Examples:
        >>> measured = measure_vectors(Vectors("minilm.npy"))
        >>> metrics.anisotropy(measured.moments("output"))
    """
    refuse_replacing(save_state, overwrite)
    unknown = sorted(set(options) - set(VectorsOptions.__annotations__))
    if unknown:
        raise TypeError(
            f"options: got {', '.join(unknown)}; they must be of {', '.join(VectorsOptions.__annotations__)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}; it must be at least 1")
    chosen = RunOptions(second_moment=second_moment, **options)
    if chosen.shard is not None and workers is not None:
        raise ValueError(f"workers: got {workers} together with shard; give one of them")
    if chosen.shard is not None and save_state is None:
        raise ValueError(f"shard: got {chosen.shard!r} without save_state; name the file to be merged with the others")
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    if workers is None:
        part, state = pass_over(vectors, limit, chosen)
    else:
        from cone_kernels.runs.sharing.vector_workers import pass_over_by_workers

        part = pass_over_by_workers(vectors, limit, workers, {**options, "second_moment": second_moment})
        part = replace(part, facts={**part.facts, "seconds": time.perf_counter() - clock})
        state = part.close()
    if save_state is not None:
        with writing(save_state):
            (state if chosen.shard is None else part).save(save_state)
    asked = {"limit": limit, "second_moment": second_moment, "workers": workers, "shard": chosen.shard}
    return _measurement(vectors, part, state, asked, chosen, started.isoformat(timespec="seconds"))


def _measurement(
    vectors: Vectors, part: RunPart, state: ConeState, asked: dict[str, Any], options: RunOptions, started: str
) -> Measurement:
    import torch

    about = {**described(vectors), "rows": part.sentences, "fingerprint": part.identity["vectors.fingerprint"]}
    return Measurement(
        model={"name": vectors.name, "architecture": None, "vectors": about},
        corpus=without_corpus(state, vectors.name),
        manifest={
            "versions": versions(),
            "started": started,
            "seconds": {"run": round(part.facts["seconds"], 3)},
            "options": {**asked, "shard_size": SHARD_ROWS, "backend": options.backend},
            **processor(torch.device("cpu"), part.facts["backends"]),
            "threads": options.threads or torch.get_num_threads(),
            "state_fingerprint": state.fingerprint(),
        },
        layer_names=(),
        state=state,
        vectors={},
    )
