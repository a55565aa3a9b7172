"""Tasks of Ray that work side by side, tell how far they are, and bring back the files that they wrote."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from cone_kernels.runs.sharing.workers import GRACE_S, WorkerError, in_words, together

if TYPE_CHECKING:
    from cone_kernels.runs.progress import Progress

# Between two looks at how far the tasks are, and between two reports of a task.
_EVERY_S = 1.0


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or one of this machine that ends here; where there is one already, that."""
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
        work: a function of a module, called with its keywords, `folder` and `progress`; what it writes to that folder,
            which is on the machine of the task, is brought here.
        arguments: the keywords of each task.
        folder: where the files go; tasks do not write equal names.
        progress: called with the progress of all of them together.
        resources: `num_cpus` and `num_gpus` of a task.

    Raises:
        WorkerError: one failed; the others are ended.
        KeyboardInterrupt: the others are told, and have ended.

    Example:
        >>> with cluster():
        ...     run_tasks(write_part, [{"number": 0}, {"number": 1}], Path("parts"), num_cpus=1)
    """
    told = ray.remote(num_cpus=0)(_Told).remote() if progress is not None else None
    remote = ray.remote(scheduling_strategy="SPREAD", **resources)(_brought_back)
    running = [remote.remote(work, keywords, number, told) for number, keywords in enumerate(arguments)]
    try:
        while running:
            done, running = ray.wait(running, timeout=_EVERY_S)
            for task in done:
                for name, content in ray.get(task).items():
                    (folder / name).write_bytes(content)
            if progress is not None and told is not None and (latest := ray.get(told.latest.remote())):
                progress(together(latest, len(arguments)))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise WorkerError(in_words(cause if isinstance(cause, Exception) else error)) from error
    except KeyboardInterrupt:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(running, num_returns=len(running), timeout=GRACE_S)
        raise
    finally:
        for task in running:
            ray.cancel(task, force=True)


class _Told:
    """An actor that holds what each task told last."""

    def __init__(self) -> None:
        self._latest: dict[int, Progress] = {}

    def tell(self, number: int, done: Progress) -> None:
        self._latest[number] = done

    def latest(self) -> list[Progress]:
        return list(self._latest.values())


def _brought_back(work: Callable[..., Any], keywords: Mapping[str, Any], number: int, told: Any) -> dict[str, Any]:
    """What a task does; returns the files that it wrote, by name."""
    due = 0.0

    def tell(done: Progress) -> None:
        nonlocal due
        if told is not None and time.monotonic() >= due:
            due = time.monotonic() + _EVERY_S
            told.tell.remote(number, done)

    with tempfile.TemporaryDirectory() as folder:
        work(**keywords, folder=Path(folder), progress=tell)
        return {file.name: _mapped(file) for file in Path(folder).iterdir()}


def _mapped(file: Path) -> NDArray[np.uint8]:
    """The content, which goes from the disk to Ray's store without a copy in this process."""
    return np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
