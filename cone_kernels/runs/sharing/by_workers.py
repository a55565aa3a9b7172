"""One pass of a model over a corpus by several processes of this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cone_kernels.runs.measurement import Measurement, measure, reported
from cone_kernels.runs.options import SharedOptions
from cone_kernels.runs.sharing.shared_run import SharedRun, merged, require_openable


def measure_by_workers(
    model: Any,
    corpus: Any,
    kept: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: SharedOptions,
) -> Measurement:
    """As `measure`: each worker reads the whole corpus and runs its shards, and the parts are merged here.

    Args:
        model: a folder or a hub id.
        corpus: a file, or what else a path of a `Corpus` can be, or a `Corpus` of such.
        kept: `second_moment`, `unit_second_moment`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions` with `workers`; a checkpoint becomes one of each worker, FILE.0-of-4 and so on.

    Raises:
        TypeError: the model or the corpus cannot be read by every worker.
        ValueError: `workers` is below 1.
        WorkerError: one of them failed.
    """
    workers = options["workers"] or 0
    if workers < 1:
        raise ValueError(f"workers: got {workers}; it must be at least 1")
    require_openable(model, corpus, "workers")

    import torch

    from cone_kernels.runs.sharing.workers import run_workers

    shared = SharedRun(model, corpus, kept, save_state, options)
    threads = options.get("threads") or max(1, torch.get_num_threads() // workers)
    gpus = torch.cuda.device_count() if options.get("device") is None else 0
    with tempfile.TemporaryDirectory() as folder, reported(model, options) as progress:
        each = []
        for worker in range(workers):
            device = {"device": f"cuda:{worker % gpus}"} if gpus > 1 else {}
            file = Path(folder, str(worker))
            each.append(shared.keywords(worker, workers, save_state=file, threads=threads, **device))
        run_workers(measure, each, progress)
        part, vectors = merged(each)
    return shared.measurement(part, vectors, {"workers": workers})
