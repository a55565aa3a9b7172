"""`cone pooling`."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import run_experiment
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import model_or_state_options, require_model_or_state
from cone_kernels.names import MODEL_POOLING, POOLINGS, asked_poolings


def _named(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return asked_poolings(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


pooling_option = click.option(
    "--pooling",
    multiple=True,
    default=["mean"],
    show_default=True,
    metavar="NAME",
    callback=_named,
    help=f"How a sentence's vector is made, side by side; may be repeated. {', '.join(POOLINGS)}, all, or "
    f"{MODEL_POOLING}: as the model itself does.",
)


@click.command(cls=ConeCommand, example="cone pooling --model bert-base-uncased --corpus sentences.txt --pooling all")
@model_or_state_options(pooling_option)
def pooling(json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """What pooling does to the cone: tokens against sentences at every layer."""
    require_model_or_state(options["model"], options["corpus"], options["state"])

    from cone_kernels import experiments
    from cone_kernels.terminal.pooling import print_pooling

    files = ("save_state", "checkpoint")
    run_experiment(experiments.pooling, print_pooling, options, json_out=json_out, max_bad=max_bad, outputs=files)
