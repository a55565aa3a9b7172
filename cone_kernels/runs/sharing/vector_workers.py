"""A pass over vectors that several processes of this machine share: each opens the files anew and reads its shards."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.runs.options import with_checkpoint_of
from cone_kernels.runs.sharing.shared_run import merged_parts
from cone_kernels.runs.sharing.workers import run_workers
from cone_kernels.runs.vectors_pass import save_part

if TYPE_CHECKING:
    from cone_kernels.runs.part import RunPart
    from cone_kernels.vector_files import Vectors


def pass_over_by_workers(vectors: Vectors, limit: int | None, workers: int, options: Mapping[str, Any]) -> RunPart:
    """The part of all shards, as `pass_over` gives it in one process.

    Args:
        vectors, limit: as in `pass_over`.
        workers: how many processes.
        options: fields of `RunOptions`; each worker has a checkpoint of its own, FILE.0-of-4 and so on.

    Raises:
        TypeError: the vectors are not in files.
        ValueError: `workers` is below 1.
        WorkerError: one of them failed.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}; it must be at least 1")
    if not vectors.in_files:
        raise TypeError(
            f"vectors: got {vectors.name} with workers; they must be in files, as each process opens them again"
        )
    import torch

    rest = {name: value for name, value in options.items() if name != "progress"}
    rest["threads"] = options.get("threads") or max(1, torch.get_num_threads() // workers)
    with tempfile.TemporaryDirectory() as folder:
        each: list[dict[str, Any]] = [
            {
                **with_checkpoint_of(f"{worker}-of-{workers}", rest),
                "vectors": vectors,
                "limit": limit,
                "shard": f"{worker}/{workers}",
                "save_state": Path(folder, str(worker)),
            }
            for worker in range(workers)
        ]
        run_workers(save_part, each, options.get("progress"))
        part, _ = merged_parts(each)
    return part
