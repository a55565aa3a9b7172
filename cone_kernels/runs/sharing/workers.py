"""Processes of one machine that work side by side, tell how far they are, and end together."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from cone_kernels.runs.progress import Progress

# How long workers get to write their checkpoints after an interruption.
GRACE_S = 60.0


class WorkerError(RuntimeError):
    """A worker failed; the message is its own."""


def run_workers(
    work: Callable[..., Any],
    arguments: Sequence[dict[str, Any]],
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Calls `work` once in a process of its own for each set of keywords, and returns when all are done.

    Args:
        work: a function of a module, called with its keywords and `progress`.
        arguments: the keywords of each process.
        progress: called with the progress of all of them together.

    Raises:
        WorkerError: one failed; the others are ended.
        KeyboardInterrupt: the others are told, and have ended; the message is that of the first.

    Example:
        >>> run_workers(measure, [{"model": "m", "corpus": "c.txt", "shard": f"{i}/2", ...} for i in range(2)])
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    try:
        for keywords in arguments:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(sender, work, keywords), daemon=True)
            process.start()
            sender.close()  # so that the worker's end is the only one, and its death is seen
            processes[receiver] = process
        _follow(processes, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*_interrupt(processes)) from None
    finally:
        for process in processes.values():
            if process.is_alive():
                process.kill()
            process.join()


def _follow(processes: dict[Connection, SpawnProcess], progress: Callable[[Progress], None] | None) -> None:
    """Passes on what the workers tell until all are done."""
    running = dict(processes)
    latest: dict[Connection, Progress] = {}
    while running:
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            kind, content = _received(ready, running[ready])
            if kind == "progress":
                latest[ready] = content
                if progress is not None:
                    progress(together(list(latest.values()), len(processes)))
            elif kind == "done":
                del running[ready]
            elif kind == "interrupted":
                raise KeyboardInterrupt(content)
            else:
                raise WorkerError(content)


def _received(connection: Connection, process: SpawnProcess) -> tuple[str, Any]:
    try:
        kind, content = connection.recv()
    except EOFError:
        process.join()
        return "failed", f"a worker ended without a word, with exit code {process.exitcode} (out of memory?)"
    return kind, content


def _interrupt(processes: dict[Connection, SpawnProcess]) -> list[str]:
    """Ends the workers in order; returns what the first of them said."""
    for process in processes.values():
        if process.is_alive():
            process.terminate()
    said = []
    for connection, process in processes.items():
        process.join(GRACE_S)
        while connection.poll():
            try:
                kind, content = connection.recv()
            except EOFError:
                break
            if kind == "interrupted" and content:
                said.append(content)
    return said[:1]


def _serve(connection: Connection, work: Callable[..., Any], keywords: dict[str, Any]) -> None:
    """What a worker process does."""
    # Ctrl-C reaches every process of a terminal; the parent alone answers it, and tells the workers by SIGTERM.
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
        connection.send(("failed", in_words(error)))
        sys.exit(1)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def in_words(error: Exception) -> str:
    """What a worker's error says to whoever started it."""
    expected = isinstance(error, (ValueError, OSError, ImportError, RuntimeError)) and str(error)
    return str(error) if expected else f"{type(error).__name__}: {error}"


def together(each: Sequence[Progress], processes: int) -> Progress:
    """The progress of all workers, of which some may not have begun."""
    first = each[0]
    positions = [done.tokens / (1 - done.padding) for done in each]
    tokens = sum(done.tokens for done in each)
    return replace(
        first,
        sentences=sum(done.sentences for done in each),
        tokens=tokens,
        expected=None if first.expected is None else first.expected * processes,
        elapsed=max(done.elapsed for done in each),
        padding=1 - tokens / sum(positions),
        statistics=sum(done.statistics for done in each) / len(each),
        resumed_sentences=sum(done.resumed_sentences for done in each),
        resumed_tokens=sum(done.resumed_tokens for done in each),
    )
