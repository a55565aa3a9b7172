"""`cone show`."""

from __future__ import annotations

import click

from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, json_option
from cone_kernels.cli.outputs import check_outputs, show_and_write


@click.command(cls=ConeCommand, example="cone show state.safetensors")
@click.argument("state", metavar="STATE")
@json_option
@debuggable
def show(state: str, json_out: str | None) -> None:
    """What a saved state holds: the model it is of, counts, fields, and the anisotropy of every layer.

    The JSON is that of `cone layers`, or of a state of vectors that of `cone vectors`. Nothing is run, and no model is
    needed.
    """
    check_outputs(json_out, inputs=[state])

    from cone_kernels.experiments.layers import layers_of
    from cone_kernels.experiments.vectors import vectors_of
    from cone_kernels.runs.measurement import from_state
    from cone_kernels.terminal.show import print_state, print_vectors_state

    found = from_state(state)
    if found.state.layers:
        show_and_write(layers_of(found), print_state, json_out)
    else:
        show_and_write(vectors_of(found), print_vectors_state, json_out)
