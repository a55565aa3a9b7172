"""A run that tasks of Ray share, on this machine or a cluster: they report, and their files are brought here."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.extras import require
from cone_kernels.runs.measure_part import measure_part, reported
from cone_kernels.runs.measurement import Measurement
from cone_kernels.runs.options import SharedOptions
from cone_kernels.runs.sharing.shared_run import SharedRun, merged_parts, refuse_unopenable
from cone_kernels.runs.sharing.workers import GRACE_S, WorkerError, added_up, message_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cone_kernels.runs.progress import Progress

logger = logging.getLogger(__name__)

# Between two looks at how far the tasks are, and between two reports of a task.
_EVERY_S = 1.0


def measure_by_ray(
    model: Any,
    corpus: Any,
    gathered: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: SharedOptions,
) -> Measurement:
    """As `measure`: each task reads the whole corpus and runs its shards, and the parts are merged here.

    Tasks, and not the blocks of Ray Data: which sentences share a block there depends on the files and the cluster, and
    with it the order of the sums and their last bits. Task i of N has the same shards as worker i of N.

    Args:
        model: a folder or a hub id, which every node of the cluster can open.
        corpus: a file, or whatever else `Corpus` can read, or a `Corpus` of such, which every node can open too.
        gathered: `second_moment`, `unit_second_moment`, `pooling`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions` with `ray`; each task has a checkpoint of its own on its node, FILE.0-of-4 and so on. A
            task that Ray calls again there, as its process has died, goes on from it.

    Raises:
        ModuleNotFoundError: ray is not installed.
        TypeError: a task cannot open the model or the corpus.
        ValueError: `ray` is below 1.
        WorkerError: a task failed.
    """
    tasks = options["ray"] or 0
    if tasks < 1:
        raise ValueError(f"ray: got {tasks}; it must be at least 1")
    refuse_unopenable(model, corpus, "ray")
    require("ray", "ray", f"ray={tasks}")

    import ray

    shared = SharedRun(model, corpus, gathered, save_state, options)
    with cluster(), tempfile.TemporaryDirectory() as folder, reported(model, options) as progress:
        largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        offered = ray.cluster_resources()
        threads = options.get("threads") or max(1, min(largest, int(offered.get("CPU", 1)) // tasks))
        gpus = int(offered.get("GPU", 0) > 0 and str(options.get("device") or "cuda").startswith("cuda"))
        each = [shared.keywords(task, tasks, threads=threads) for task in range(tasks)]
        arguments = [{"name": str(task), "keywords": keywords} for task, keywords in enumerate(each)]
        # A task that asks for more CPUs than any node has would wait for ever.
        run_tasks(_measure_to_folder, arguments, Path(folder), progress, num_cpus=min(threads, largest), num_gpus=gpus)
        for task, keywords in enumerate(each):
            # The vectors that a task wrote next to its checkpoint have been brought here too, next to its part.
            keywords |= {"save_state": Path(folder, str(task)), "checkpoint": None}
        part, vectors = merged_parts(each)
    return shared.measurement(part, vectors, {"ray": tasks})


def _measure_to_folder(name: str, keywords: Mapping[str, Any], folder: Path, progress: Any) -> None:
    """Writes a part to a file of this name in `folder`, and its sentence vectors next to it."""
    from cone_kernels.runs.vector_keeper import layer_file

    part, checkpoint = folder / name, keywords.get("checkpoint")
    with _begun_before() as again:
        resumed = {"resume": True} if again and checkpoint is not None else {}
        measurement = measure_part(**{**keywords, **resumed}, save_state=part, progress=progress)
    if checkpoint is not None:
        for layer in measurement.vectors:
            shutil.copyfile(layer_file(checkpoint, layer), layer_file(part, layer))


@contextmanager
def _begun_before() -> Iterator[bool]:
    """Whether this task of Ray was begun on this machine before: Ray calls a task again whose process has died."""
    import ray

    mark = Path(tempfile.gettempdir(), f"cone_kernels-{ray.get_runtime_context().get_task_id()}")
    again = mark.exists()
    mark.touch()
    try:
        yield again
    finally:  # not where the process dies
        mark.unlink(missing_ok=True)


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster that is connected already, else that of RAY_ADDRESS, else one of this machine that ends with this."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def run_tasks(
    work: Callable[..., Any],
    arguments: Sequence[dict[str, Any]],
    folder: Path,
    progress: Callable[[Progress], None] | None = None,
    **resources: float,
) -> None:
    """Calls `work` once in a task of its own for each set of keywords, and returns when all are done.

    Args:
        work: a function that other machines can import, called with the keywords, `folder` and `progress`; the files
            that it writes to that folder, which is on the machine of the task, are brought to this one.
        arguments: the keywords of each task.
        folder: where the files are put here; tasks must not write files of the same name.
        progress: called with the progress of all tasks as one.
        resources: `num_cpus` and `num_gpus` of a task.

    Raises:
        WorkerError: one failed; the others have been ended.
        KeyboardInterrupt: the tasks have been interrupted too, and have ended.

    Examples:
        >>> with cluster():
        ...     run_tasks(write_part, [{"number": 0}, {"number": 1}], Path("parts"), num_cpus=1)
    """
    import ray

    board = ray.remote(num_cpus=0)(_ProgressBoard).remote() if progress is not None else None
    remote = ray.remote(scheduling_strategy="SPREAD", **resources)(_files_written)
    running = [remote.remote(work, keywords, number, board) for number, keywords in enumerate(arguments)]
    try:
        while running:
            done, running = ray.wait(running, timeout=_EVERY_S)
            for task in done:
                for name, content in ray.get(task).items():
                    (folder / name).write_bytes(content)
            if progress is not None and board is not None:
                try:
                    latest = ray.get(board.latest.remote())
                except ray.exceptions.RayActorError as error:
                    logger.warning("ray: the progress is no longer told, the run goes on: %s", error)
                    board = None
                    continue
                if latest:
                    progress(added_up(latest, len(arguments)))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise WorkerError(message_of(cause if isinstance(cause, Exception) else error)) from error
    except KeyboardInterrupt:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(running, num_returns=len(running), timeout=GRACE_S)
        raise
    finally:
        for task in running:
            ray.cancel(task, force=True)


class _ProgressBoard:
    """An actor of Ray that holds the latest progress of each task."""

    def __init__(self) -> None:
        self._latest: dict[int, Progress] = {}

    def put(self, number: int, done: Progress) -> None:
        self._latest[number] = done

    def latest(self) -> list[Progress]:
        return list(self._latest.values())


def _files_written(work: Callable[..., Any], keywords: Mapping[str, Any], number: int, board: Any) -> dict[str, Any]:
    """All that a task does: calls `work`, and returns the content of the files that it wrote, by name."""
    due = 0.0

    def report(done: Progress) -> None:
        nonlocal due
        if board is not None and time.monotonic() >= due:
            due = time.monotonic() + _EVERY_S
            board.put.remote(number, done)

    with tempfile.TemporaryDirectory() as folder:
        work(**keywords, folder=Path(folder), progress=report)
        return {file.name: _memory_mapped(file) for file in Path(folder).iterdir()}


def _memory_mapped(file: Path) -> NDArray[np.uint8]:
    """The content of a file, which goes from the disk to Ray's store without a copy in this process."""
    import numpy as np

    return np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
