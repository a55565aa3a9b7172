"""A run that several processes of this machine share: they work at the same time, report, and end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cone_kernels.runs.measure_part import measure_part, reported
from cone_kernels.runs.measurement import Measurement
from cone_kernels.runs.options import SharedOptions
from cone_kernels.runs.sharing.shared_run import SharedRun, merged_parts, refuse_unopenable

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from cone_kernels.runs.progress import Progress

# How long workers get to write their checkpoints after an interruption.
GRACE_S = 60.0


class WorkerError(RuntimeError):
    """A worker failed; the message is its own."""


def measure_by_workers(
    model: Any,
    corpus: Any,
    gathered: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: SharedOptions,
) -> Measurement:
    """As `measure`: each worker reads the whole corpus and runs its shards, and the parts are merged here.

    Args:
        model: a folder or a hub id.
        corpus: a file, or whatever else `Corpus` can read, or a `Corpus` of such.
        gathered: `second_moment`, `unit_second_moment`, `pooling`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions` with `workers`; each worker has a checkpoint of its own, FILE.0-of-4 and so on.

    Raises:
        TypeError: a worker cannot open the model or the corpus.
        ValueError: `workers` is below 1.
        WorkerError: one of them failed.
    """
    workers = options["workers"] or 0
    if workers < 1:
        raise ValueError(f"workers: got {workers}; it must be at least 1")
    refuse_unopenable(model, corpus, "workers")

    import torch

    shared = SharedRun(model, corpus, gathered, save_state, options)
    threads = options.get("threads") or max(1, torch.get_num_threads() // workers)
    gpus = torch.cuda.device_count() if options.get("device") is None else 0
    with tempfile.TemporaryDirectory() as folder, reported(model, options) as progress:
        each = []
        for worker in range(workers):
            device = {"device": f"cuda:{worker % gpus}"} if gpus > 1 else {}
            file = Path(folder, str(worker))
            each.append(shared.keywords(worker, workers, save_state=file, threads=threads, **device))
        run_workers(measure_part, each, progress)
        part, vectors = merged_parts(each)
    return shared.measurement(part, vectors, {"workers": workers})


def run_workers(
    work: Callable[..., Any],
    arguments: Sequence[dict[str, Any]],
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Calls `work` once in a process of its own for each set of keywords, and returns when all are done.

    Args:
        work: a function that a new interpreter can import, called with the keywords and `progress`.
        arguments: the keywords of each process.
        progress: called with the progress of all processes as one.

    Raises:
        WorkerError: one failed; the others have been ended.
        KeyboardInterrupt: the workers have been interrupted too, and have ended; the message is that of the first.

    Examples:
        >>> run_workers(measure_part, [{"model": "m", "corpus": "c.txt", "shard": f"{i}/2", ...} for i in range(2)])
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    try:
        for keywords in arguments:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work_in_process, args=(sender, work, keywords), daemon=True)
            process.start()
            sender.close()  # so that only the worker can send, and the pipe ends when the worker dies
            processes[receiver] = process
        _follow(processes, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*_interrupted(processes)) from None
    finally:
        for process in processes.values():
            if process.is_alive():
                process.kill()
            process.join()


def _follow(processes: dict[Connection, SpawnProcess], progress: Callable[[Progress], None] | None) -> None:
    """Passes the progress of the workers on until all are done; raises when one has failed or was interrupted."""
    running = dict(processes)
    latest: dict[Connection, Progress] = {}
    while running:
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            kind, content = _received(ready, running[ready])
            if kind == "progress":
                latest[ready] = content
                if progress is not None:
                    progress(added_up(list(latest.values()), len(processes)))
            elif kind == "done":
                del running[ready]
            elif kind == "interrupted":
                raise KeyboardInterrupt(content)
            else:
                raise WorkerError(content)


def _received(connection: Connection, process: SpawnProcess) -> tuple[str, Any]:
    """What a worker sent: "progress", "done", "interrupted" or "failed", and what goes with it."""
    try:
        kind, content = connection.recv()
    except EOFError:
        process.join()
        return "failed", f"a worker ended without a message, with exit code {process.exitcode} (out of memory?)"
    return kind, content


def _interrupted(processes: dict[Connection, SpawnProcess]) -> list[str]:
    """Interrupts the workers and waits for their checkpoints; returns the message of the first that sent one."""
    for process in processes.values():
        if process.is_alive():
            process.terminate()
    messages = []
    for connection, process in processes.items():
        process.join(GRACE_S)
        while connection.poll():
            try:
                kind, content = connection.recv()
            except EOFError:
                break
            if kind == "interrupted" and content:
                messages.append(content)
    return messages[:1]


def _work_in_process(connection: Connection, work: Callable[..., Any], keywords: dict[str, Any]) -> None:
    """All that a worker process does; it sends its progress, and at the end how it went."""
    # Ctrl-C reaches every process of a terminal; the parent alone acts on it, and interrupts the workers by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        work(**keywords, progress=lambda done: connection.send(("progress", done)))
        connection.send(("done", None))
    except KeyboardInterrupt as interrupt:
        connection.send(("interrupted", str(interrupt)))
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except Exception as error:
        connection.send(("failed", message_of(error)))
        sys.exit(1)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def message_of(error: Exception) -> str:
    """The message of a worker's error, with its type where it is none that a user can do something about."""
    expected = isinstance(error, (ValueError, OSError, ImportError, RuntimeError)) and str(error)
    return str(error) if expected else f"{type(error).__name__}: {error}"


def added_up(each: Sequence[Progress], processes: int) -> Progress:
    """The progress of several processes as one.

    Args:
        each: the latest of those that have begun, at least one.
        processes: how many there are.
    """
    first = each[0]
    positions = [done.tokens / (1 - done.padding) for done in each]
    tokens = sum(done.tokens for done in each)
    return replace(
        first,
        sentences=sum(done.sentences for done in each),
        tokens=tokens,
        expected=None if first.expected is None else first.expected * processes,
        elapsed=max(done.elapsed for done in each),
        padding=1 - tokens / sum(positions) if tokens else 0.0,
        statistics=sum(done.statistics for done in each) / len(each),
        resumed_sentences=sum(done.resumed_sentences for done in each),
        resumed_tokens=sum(done.resumed_tokens for done in each),
    )
