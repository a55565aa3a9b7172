"""Forks a process for each piece of work from one that has imported what they need: several at once, each with a limit.

The process that forks must have no other threads and no context of a GPU, which a forked process cannot use.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from bench.gpu.process import Ended

_POLL_SECONDS = 0.02


def fork(work: Callable[[], object], stdout: IO[str], stderr: IO[str]) -> int:
    """Does work in a forked process, whose output goes to files.

    Args:
        work: what it does; a SystemExit is its exit code, as of a program, and an exception that leaves it is code 1.
        stdout: a file of the system.
        stderr: likewise, or the same.

    Returns:
        The id of the process, which is to be waited for.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # what it holds would be printed by both
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        code = _exit_code(work)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)  # what the process that forked does at its end is not to be done twice


def fork_each(
    work: Sequence[Callable[[], object]], at_once: int, limit: float, end: float
) -> Iterator[tuple[int, Ended]]:
    """Does each piece of work in a forked process of its own, and tells how each ended, as they end.

    A process leads a session of its own, all of which is killed when it ends, at its limit, and when this one ends.

    Args:
        work: begun in this order.
        at_once: the most processes at once.
        limit: the most seconds that one may take.
        end: when all are to have ended, as `time.perf_counter` counts; none is begun from then on.

    Yields:
        The place in `work` of one that was begun, and how it ended.
    """
    waiting, running = deque(enumerate(work)), list[_Forked]()
    # Its writing end is open in this process alone: that nothing is left to read says that this process has ended.
    watched, held = os.pipe()
    try:
        while running or (waiting and time.perf_counter() < end):
            while waiting and len(running) < at_once and time.perf_counter() < end:
                running.append(_Forked.begun(*waiting.popleft(), watched, held))
            for forked in list(running):
                ended = forked.ended(min(limit, end - forked.start))
                if ended is not None:
                    running.remove(forked)
                    yield forked.place, ended
            time.sleep(_POLL_SECONDS)
    finally:
        for forked in running:
            forked.kill()
        os.close(watched)
        os.close(held)


@dataclass(frozen=True)
class _Forked:
    place: int
    pid: int
    start: float
    output: IO[str]

    @classmethod
    def begun(cls, place: int, work: Callable[[], object], watched: int, held: int) -> _Forked:
        def watched_work() -> None:
            os.setsid()
            os.close(held)
            threading.Thread(target=_end_at_the_end_of, args=(watched,), daemon=True).start()
            work()

        output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - open until it has ended
        return cls(place, fork(watched_work, output, output), time.perf_counter(), output)

    def ended(self, limit: float) -> Ended | None:
        """How it ended; None: it goes on."""
        taken, why, code = time.perf_counter() - self.start, "", None
        # It stays a zombie, so that its id is of no other process, until its session is killed.
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            code = self.kill()
            if code:
                why = f"ended with exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        elif taken >= limit:
            self.kill()
            why = f"stopped after {taken:.0f} s"
        else:
            return None
        self.output.seek(0)
        with self.output:
            printed = self.output.read() + (f"\n{why}" if why else "")
        return Ended(code, taken, printed)

    def kill(self) -> int:
        """Ends it and its session; returns its exit code, that of a signal below 0."""
        # Both, as it may have led no session yet.
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _exit_code(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end_at_the_end_of(watched: int) -> None:
    os.read(watched, 1)
    os.killpg(0, signal.SIGKILL)
