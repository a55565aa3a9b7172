"""One pass of a model over a corpus by tasks of Ray, on this machine or on a cluster."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cone_kernels.extras import require
from cone_kernels.runs.measurement import Measurement, measure, reported
from cone_kernels.runs.options import SharedOptions
from cone_kernels.runs.sharing.shared_run import SharedRun, merged, require_openable


def measure_by_ray(
    model: Any,
    corpus: Any,
    kept: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: SharedOptions,
) -> Measurement:
    """As `measure`: each task reads the whole corpus and runs its shards, and the parts are merged here.

    Tasks, and not the blocks of Ray Data: which sentences share a block there depends on the files and the cluster, and
    with it the order of the sums and their last bits. A task has the fixed shards i/N, as worker i of N has.

    Args:
        model: a folder or a hub id, which every node of the cluster can open.
        corpus: a file, or what else a path of a `Corpus` can be, or a `Corpus` of such; likewise.
        kept: `second_moment`, `unit_second_moment`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions` with `ray`; a checkpoint becomes one of each task, FILE.0-of-4 and so on, on its node.

    Raises:
        ModuleNotFoundError: ray is not installed.
        TypeError: the model or the corpus cannot be read by every task.
        ValueError: `ray` is below 1.
        WorkerError: a task failed.
    """
    tasks = options["ray"] or 0
    if tasks < 1:
        raise ValueError(f"ray: got {tasks}; it must be at least 1")
    require_openable(model, corpus, "ray")
    require("ray", "ray", f"ray={tasks}")

    import ray

    from cone_kernels.runs.sharing.ray_tasks import cluster, run_tasks

    shared = SharedRun(model, corpus, kept, save_state, options)
    with cluster(), tempfile.TemporaryDirectory() as folder, reported(model, options) as progress:
        largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        offered = ray.cluster_resources()
        threads = options.get("threads") or max(1, min(largest, int(offered.get("CPU", 1)) // tasks))
        gpus = int(offered.get("GPU", 0) > 0 and str(options.get("device") or "cuda").startswith("cuda"))
        each = [shared.keywords(task, tasks, threads=threads) for task in range(tasks)]
        arguments = [{"name": str(task), "keywords": keywords} for task, keywords in enumerate(each)]
        # A task that asks for more than any node has would wait for ever.
        run_tasks(_measure_part, arguments, Path(folder), progress, num_cpus=min(threads, largest), num_gpus=gpus)
        for task, keywords in enumerate(each):
            # What a task wrote beside its checkpoint has come here too, beside its part.
            keywords |= {"save_state": Path(folder, str(task)), "checkpoint": None}
        part, vectors = merged(each)
    return shared.measurement(part, vectors, {"ray": tasks})


def _measure_part(name: str, keywords: Mapping[str, Any], folder: Path, progress: Any) -> None:
    """Writes a part to `folder`, and its sentence vectors beside it."""
    from cone_kernels.runs.vector_keeper import layer_file

    part = folder / name
    measured = measure(**keywords, save_state=part, progress=progress)
    if (checkpoint := keywords.get("checkpoint")) is not None:
        for layer in measured.vectors:
            shutil.copyfile(layer_file(checkpoint, layer), layer_file(part, layer))
