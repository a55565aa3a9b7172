"""How a command ends: exit codes, and signals that end a run in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cone_kernels.runs.progress import Progress

FAILED, TOO_MUCH_DROPPED, INTERRUPTED = 1, 3, 75

# Python drops what is raised inside a destructor, so a signal that arrives there is only remembered.
_interrupted = threading.Event()


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does; a second one of either ends it at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)
        _interrupted.set()
        if not _in_destructor(frame):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that the parent process has switched off (nohup, a background job) stays off.
    names = [name for name in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(name) != signal.SIG_IGN]
    _interrupted.clear()
    before = {name: signal.signal(name, interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _in_destructor(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interruptible(progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """`progress`, but that a signal which was only remembered ends the run at the next report."""

    def report(done: Progress) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        progress(done)

    return report
