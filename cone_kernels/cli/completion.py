"""`cone completion`."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable

_SHELLS = ("bash", "zsh", "fish")


@click.command(cls=ConeCommand, example='eval "$(cone completion bash)"')
@click.argument("shell", type=click.Choice(_SHELLS))
@debuggable
def completion(shell: str) -> None:
    """Print what completes commands and options in a SHELL.

    In bash and zsh put `eval "$(cone completion SHELL)"` into .bashrc or .zshrc; in fish write the output to
    ~/.config/fish/completions/cone.fish.
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.ClickException(f"click has no completion for {shell}")
    command = click.get_current_context().find_root().command
    # Without the check of its version, for which bash would have to run.
    click.echo(ShellComplete.source(made(command, {}, "cone", "_CONE_COMPLETE")))
