"""Processes forked from one that has imported torch and transformers and started no thread: at once, not in seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cone_kernels.runs.sharing import workers

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["torch", "torch.distributed", "transformers.trainer"])


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test, the workers of a run are forked too; all else that they do is the same."""
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: forked)


def run_python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `python FILE ...` or `python -m MODULE ...` prints, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        process = forked.Process(target=_python, args=([str(argument) for argument in arguments], printed))
        process.start()
        process.join()
        stdout, stderr = (file.read_text() for file in printed)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _python(arguments: list[str], printed: list[Path]) -> None:
    for stream, file in zip((1, 2), printed, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
