"""The group of the commands: errors are one line, signals end a run in order, exit codes are as promised."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from cone_kernels.names import EXPERIMENTS

if TYPE_CHECKING:
    from cone_kernels.runs.progress import Progress

FAILED, TOO_MUCH_DROPPED, INTERRUPTED = 1, 3, 75

# Each is a module of this package with a command of its name, or an experiment that needs none: see `plain_command`.
_EXPERIMENTS = {about.command: name for name, about in EXPERIMENTS.items()}
COMMANDS = ("run", *_EXPERIMENTS, "merge", "show", "report", "demo", "doctor")

# Python drops what is raised inside a destructor, so a signal that arrives there is only remembered.
_interrupted = threading.Event()


class ConeGroup(click.Group):
    """Errors become one line and exit code 1 (wrong usage: 2), an interruption 75; commands load when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in _EXPERIMENTS and find_spec(f"cone_kernels.cli.{cmd_name}") is None:
            from cone_kernels.cli.experiment import plain_command

            return plain_command(_EXPERIMENTS[cmd_name])
        command: click.Command = getattr(import_module(f"cone_kernels.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort) as interruption:
            click.echo(f"Interrupted: {str(interruption) or 'nothing was written'}", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whoever read the output has left; pointing stdout elsewhere keeps the interpreter's last flush quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(FAILED)
        except Exception as error:
            if (ctx.obj or {}).get("debug"):
                traceback.print_exc()
            else:
                click.echo(f"Error: {_one_line(error)}", err=True)
            ctx.exit(FAILED)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    expected = (ValueError, OSError, ImportError, RuntimeError)
    return text if text and isinstance(error, expected) else f"{type(error).__name__}: {text}"


@contextmanager
def _terminable() -> Iterator[None]:
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
    def report(done: Progress) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        progress(done)

    return report
