"""`cone show`."""

from __future__ import annotations

import click

from cone_kernels.cli.options import debuggable, json_option
from cone_kernels.cli.outputs import check_outputs, write_json


@click.command()
@click.argument("state", metavar="STATE")
@json_option
@debuggable
def show(state: str, json_out: str | None) -> None:
    """What a saved state holds: the model it is of, counts, fields, and the anisotropy of every layer.

    The JSON is that of `cone layers`. Nothing is run, and no model is needed.
    """
    check_outputs(json_out, inputs=[state])

    from cone_kernels import experiments
    from cone_kernels.terminal.console import stdout_console
    from cone_kernels.terminal.show import print_state

    result = experiments.layers(state=state)
    if json_out:
        write_json(json_out, result.to_dict())
    if json_out != "-":
        print_state(stdout_console(), result)
