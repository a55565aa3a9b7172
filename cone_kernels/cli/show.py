"""`cone show`."""

from __future__ import annotations

from functools import partial

import click

from cone_kernels.cli.options import debuggable, json_option
from cone_kernels.cli.outputs import check_outputs, write_json


@click.command()
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
    from cone_kernels.terminal.console import stdout_console
    from cone_kernels.terminal.show import print_state, print_vectors_state

    found = from_state(state)
    if found.state.layers:
        of_model = layers_of(found)
        result, show_it = of_model.to_dict(), partial(print_state, result=of_model)
    else:
        of_vectors = vectors_of(found)
        result, show_it = of_vectors.to_dict(), partial(print_vectors_state, result=of_vectors)
    if json_out:
        write_json(json_out, result)
    if json_out != "-":
        show_it(stdout_console())
