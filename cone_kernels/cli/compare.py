"""`cone compare`."""

from __future__ import annotations

import click

from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, json_option
from cone_kernels.cli.outputs import check_outputs, show_and_write
from cone_kernels.cli.rows import show_rows


@click.command(cls=ConeCommand, example="cone compare before.safetensors after.safetensors")
@click.argument("a")
@click.argument("b")
@click.option(
    "--paired/--unpaired",
    default=None,
    help="Whether A and B are of the same sentences in the same order.  [default: judged by their counts]",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Rate of false alarms, for all layers together.",
)
@click.option("--rows", is_flag=True, help="A and B are files of vectors, compared row by row, as `cone rows` does.")
@json_option
@debuggable
def compare(a: str, b: str, paired: bool | None, alpha: float, rows: bool, json_out: str | None) -> None:
    """Did the cone change from state A to state B (before and after fine-tuning, say), layer by layer?

    Both are files that --save-state wrote, of one architecture. Nothing is run, and no model is needed.
    """
    if rows:
        if paired is not None:
            raise click.UsageError("--paired and --rows: give one of them; rows are pairs")
        show_rows(a, b, json_out)
        return
    check_outputs(json_out, inputs=[a, b])

    from cone_kernels import experiments
    from cone_kernels.terminal.compare import print_compare

    result = experiments.compare(a, b, paired=paired, alpha=alpha)
    show_and_write(result, print_compare, json_out)
