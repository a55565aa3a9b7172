"""`cone doctor`."""

from __future__ import annotations

import click

from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, json_option
from cone_kernels.cli.outputs import check_outputs, write_json


@click.command(cls=ConeCommand, example="cone doctor --json doctor.json")
@json_option
@debuggable
def doctor(json_out: str | None) -> None:
    """Versions, backends and why one is missing, threads, instruction sets, memory and its bandwidth."""
    check_outputs(json_out)

    from cone_kernels.doctor import examine
    from cone_kernels.terminal.console import stdout_console
    from cone_kernels.terminal.doctor import print_doctor

    found = examine()
    if json_out:
        write_json(json_out, found)
    if json_out != "-":
        print_doctor(stdout_console(), found)
