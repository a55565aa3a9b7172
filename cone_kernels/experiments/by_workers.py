"""One pass of a model over a corpus by several processes of this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from functools import reduce
from pathlib import Path
from typing import Any

from cone_kernels.experiments.measurement import Measurement, measure, measurement_of, reported
from cone_kernels.experiments.options import ShardOptions


def measure_by_workers(
    model: Any,
    corpus: Any,
    kept: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: ShardOptions,
) -> Measurement:
    """As `measure`: each worker reads the whole corpus and runs its shards, and the parts are merged here.

    Args:
        model: a folder or a hub id.
        corpus: a file, or what else a path of a `Corpus` can be.
        kept: `second_moment`, `unit_second_moment`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `ShardOptions` with `workers`; a checkpoint becomes one of each worker, FILE.0-of-4 and so on.

    Raises:
        TypeError: the model or the corpus cannot be read by every worker.
        ValueError: `workers` is below 1, or there is `shard` or `keep_vectors` beside it.
        WorkerError: one of them failed.
    """
    workers, rest = options["workers"] or 0, dict[str, Any](options)
    if workers < 1:
        raise ValueError(f"workers: got {workers}; it must be at least 1")
    if kept["keep_vectors"] or rest.get("shard") is not None:
        beside = "shard" if rest.get("shard") is not None else "keep_vectors"
        raise ValueError(f"workers: got {workers} beside {beside}; they do not go together")
    for name, value in (("model", model), ("corpus", corpus)):
        if not isinstance(value, (str, os.PathLike)) or str(value) == "-":
            got = "standard input" if isinstance(value, (str, os.PathLike)) else type(value).__name__
            raise TypeError(f"{name}: got {got} beside workers; each opens it anew, so it must be a path or an id")

    import torch

    from cone_kernels.partial_run import PartialRun
    from cone_kernels.runner import Run
    from cone_kernels.workers import run_workers

    started, clock = datetime.now(timezone.utc), time.perf_counter()
    # Left over from the options: what this process does itself.
    for name in ("workers", "distributed", "progress", "log_json"):
        rest.pop(name, None)
    if rest.get("threads") is None:
        rest["threads"] = max(1, torch.get_num_threads() // workers)
    with tempfile.TemporaryDirectory() as folder, reported(model, options) as progress:
        each = []
        for worker in range(workers):
            own: dict[str, Any] = {"shard": f"{worker}/{workers}", "save_state": Path(folder, str(worker))}
            if rest.get("checkpoint") is not None:
                own["checkpoint"] = f"{os.fspath(rest['checkpoint'])}.{worker}-of-{workers}"
            if rest.get("device") is None and torch.cuda.device_count() > 1:
                own["device"] = f"cuda:{worker % torch.cuda.device_count()}"
            each.append({"model": model, "corpus": corpus, **kept, **rest, **own})
        run_workers(measure, each, progress)
        part = reduce(PartialRun.merge, [PartialRun.load(one["save_state"]) for one in each])
    part = replace(part, facts={**part.facts, "seconds": time.perf_counter() - clock})
    ran = Run.of(part, part.close())
    if save_state is not None:
        ran.state.save(save_state)
    asked = {**kept, **{name: options.get(name) for name in ("token_budget", "threads", "shard_size", "workers")}}
    asked["backend"] = options.get("backend", "auto")
    asked.pop("keep_vectors")
    return measurement_of(ran, asked, {"started": started.isoformat(timespec="seconds"), "load": 0.0})
