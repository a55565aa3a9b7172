"""Processes forked from one that has imported torch and transformers and started no thread: at once, not in seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import pytest

from bench.gpu import process as gpu_process
from cone_kernels.runs.sharing import workers

forked = multiprocessing.get_context("forkserver")
# What most of the processes need; what is imported here is not imported in each of them.
forked.set_forkserver_preload(
    ["torch", "torch.distributed", "transformers.trainer", "pytest", "cone_kernels.experiments.run"]
)
# Where all tests run it imports them while the first ones do; the processes that it forks come by here, too.
if "PYTEST_XDIST_WORKER" in os.environ and multiprocessing.current_process().name == "MainProcess":
    forkserver.ensure_running()


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test, the workers of a run are forked too; all else that they do is the same."""
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: forked)


@pytest.fixture
def forked_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test, the Python programs that `bench.gpu.process.run` starts are forked too."""
    monkeypatch.setattr(gpu_process, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": _ForkedProgram}))


class _ForkedProgram:
    """A Python program, with as much of `subprocess.Popen` as `bench.gpu.process.run` asks for."""

    def __init__(self, command: list[str], *, env: dict[str, str], stdout: IO[str], **others: Any) -> None:
        assert command[0] == sys.executable
        assert others == {
            "cwd": gpu_process.ROOT,
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "start_new_session": True,
        }
        printed = Path(f"/proc/{os.getpid()}/fd/{stdout.fileno()}")
        self._process = forked.Process(target=_python_of_a_session, args=(command[1:], printed, env))
        self._process.start()
        self.pid: int = self._process.pid or 0
        # The session is killed as a whole, so it has to be there first.
        while self._process.is_alive() and os.getsid(self.pid) != self.pid:
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)


class StartedPython(NamedTuple):
    """A Python program that is running, and the files that it prints to."""

    arguments: tuple[str | Path, ...]
    process: BaseProcess
    stdout: Path
    stderr: Path
    encoding: str

    def ended(self, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """What it printed, and its exit code, when it has ended."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"{self.arguments}: still running after {timeout} s"
        printed = (file.read_text(self.encoding) for file in (self.stdout, self.stderr))
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *printed)


@contextmanager
def started_python(*arguments: str | Path, encoding: str = "utf-8") -> Iterator[StartedPython]:
    """`python FILE ...` or `python -m MODULE ...`; it is killed at the end of the block if it has not ended.

    Args:
        arguments: those of `python`.
        encoding: of what it prints, as PYTHONIOENCODING sets it.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        for file in printed:
            file.touch()
        words = [str(argument) for argument in arguments]
        process = forked.Process(target=_python, args=(words, printed, encoding))
        process.start()
        try:
            yield StartedPython(arguments, process, *printed, encoding)
        finally:
            process.kill()
            process.join()


def run_python(*arguments: str | Path, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """What `python FILE ...` or `python -m MODULE ...` prints, and its exit code."""
    with started_python(*arguments, encoding=encoding) as program:
        return program.ended()


def _python_of_a_session(arguments: list[str], printed: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(gpu_process.ROOT)
    os.environ.clear()
    os.environ.update(environment)
    _python(arguments, [printed, printed], "utf-8")


def _python(arguments: list[str], printed: list[Path], encoding: str) -> None:
    for number, file, stream in zip((1, 2), printed, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        stream.reconfigure(encoding=encoding)  # type: ignore[attr-defined] - always a TextIOWrapper here
    # Tests that are themselves run in the background hand on a SIGINT that is switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
