"""What the workers of the tests do; imports nothing heavy, as each worker is a new interpreter."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from cone_kernels.runs.progress import Progress

Report = Callable[[Progress], None]


def count(number: int, file: str, progress: Report) -> None:
    """Reports two batches and writes its number."""
    for done in (10, 20 * (number + 1)):
        progress(Progress(done, 8 * done, 50, elapsed=1.0 + number, padding=0.2 * number, resumed_sentences=1))
    Path(file).write_text(str(number))


def fail(number: int, progress: Report) -> None:
    """The first fails; the others would go on for long."""
    if number == 0:
        raise ValueError("line 3: no sentence")
    time.sleep(60)


def die(number: int, progress: Report) -> None:
    """The first is killed."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def wait(file: str, progress: Report) -> None:
    """Goes on until it is interrupted, which it writes down."""
    try:
        progress(Progress(1, 1, None, elapsed=1.0))
        time.sleep(60)
    except KeyboardInterrupt:
        Path(file).write_text("interrupted")
        raise KeyboardInterrupt(f"{file} is written") from None
