"""Runs commands with a time limit that also ends every process that they started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
# The GPU's context is lost to the process, which says so by this exit code; a new process can go on.
LOST_DEVICE = 75
_POLL_SECONDS = 0.05
_interrupted = threading.Event()


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """Its exit code, None where it was stopped."""
    seconds: float
    printed: str

    @property
    def ok(self) -> bool:
        """Whether it succeeded within its limit."""
        return self.code == 0

    def result(self) -> dict[str, Any]:
        """What is kept of it."""
        last = self.printed.strip().splitlines()[-12 if self.ok else -60 :]
        return {"ok": self.ok, "seconds": round(self.seconds, 1), "last": "\n".join(last)}


def run(
    command: list[str],
    limit: float,
    environment: Mapping[str, str] | None = None,
    hangs: Callable[[], bool] = lambda: False,
    *,
    shown: bool = False,
) -> Ended:
    """Runs a command in the repository's root for at most `limit` seconds, or until `hangs` says so.

    It leads a session of its own, all of which is killed at the end: a child that it left would hold the GPU. Where
    `shown`, what it prints is printed at once.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **(environment or {})}
    start = time.perf_counter()
    # A file and not a pipe: whoever inherits it can live on without being waited for.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        why, told = "", 0
        try:
            while process.poll() is None and not why:
                taken = time.perf_counter() - start
                why = f"stopped after {taken:.0f} s" if taken >= limit or _interrupted.is_set() else ""
                why = why or ("stopped: it hangs" if hangs() else "")
                time.sleep(_POLL_SECONDS)
                told += _show(output.fileno(), told) if shown else 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        output.seek(0)
        printed = output.read() + (f"\n{why}" if why else "")
    return Ended(None if why else process.returncode, time.perf_counter() - start, printed)


def _show(file: int, told: int) -> int:
    """Prints what was written to a file after so many bytes; returns how many more that are."""
    # The process that writes has the same position in the file, which must not be moved.
    written = os.pread(file, os.fstat(file).st_size - told, told)
    print(written.decode(errors="replace"), end="", flush=True)
    return len(written)


def end_with_children() -> None:
    """From here on an interrupt or a termination of this process ends what `run` has started, too."""

    def stop(number: int, _: FrameType | None) -> None:
        _interrupted.set()
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def toolkit(program: str) -> str | None:
    """Where a program of the CUDA toolkit is: in $CUDA_HOME, on the PATH or at the toolkit's usual place."""
    home = os.environ.get("CUDA_HOME")
    folders = [str(Path(home) / "bin")] if home else []
    return shutil.which(program, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))


def write_aside(file: Path, text: str) -> None:
    """Writes a file whole or not at all, however the process ends."""
    aside = file.with_name(f".{file.name}.partial")
    aside.write_text(text)
    aside.replace(file)


def device_is_lost() -> bool:
    """Whether this process can do no more on the GPU, as after an illegal access."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
