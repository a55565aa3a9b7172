"""The group of the commands: what each is called, and how errors and interruptions end it."""

from __future__ import annotations

import os
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any

import click

from cone_kernels.cli.ending import FAILED, INTERRUPTED, terminable
from cone_kernels.extras import explained
from cone_kernels.names import EXPERIMENTS

# Each is a module of this package with a command of its name, or an experiment that needs none: see `plain_command`.
_EXPERIMENTS = {about.command: name for name, about in EXPERIMENTS.items()}
_WHOLE = 1000  # letters, more than a sentence has
COMMANDS = ("run", *_EXPERIMENTS, "merge", "show", "report", "demo", "doctor", "completion")


class ConeGroup(click.Group):
    """Errors become one line and exit code 1 (wrong usage: 2), an interruption 75; commands load when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        if cmd_name in _EXPERIMENTS and find_spec(f"cone_kernels.cli.{module}") is None:
            from cone_kernels.cli.experiment import plain_command

            return plain_command(_EXPERIMENTS[cmd_name])
        command: click.Command = getattr(import_module(f"cone_kernels.cli.{module}"), module)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes every command with the whole first sentence of its description, cut nowhere."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(_WHOLE)) for name, one in found if one is not None])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for; of a name that is none, those that are nearly it are named."""
        near = get_close_matches(args[0], COMMANDS, n=2, cutoff=0.5) if args else []
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            hint = f" Did you mean {' or '.join(near)}?" if near else f" There are {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        _print_what_can_be()
        try:
            with terminable(), explained("this command", "hf"):
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


def _print_what_can_be() -> None:
    """A character that standard output cannot hold, as in Latin-1, becomes a question mark, and no error."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    expected = (ValueError, OSError, ImportError, RuntimeError)
    return text if text and isinstance(error, expected) else f"{type(error).__name__}: {text}"
