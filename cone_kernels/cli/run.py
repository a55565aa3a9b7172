"""`cone run`."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import run_experiment
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import (
    debuggable,
    json_option,
    layer_option,
    models_options,
    overwrite_option,
    pairs_options,
    shared_options,
)
from cone_kernels.cli.pooling import pooling_option


@click.command(cls=ConeCommand, example="cone run --model M --model N --corpus sentences.txt --out cone/")
@models_options()
@click.option("--out", required=True, metavar="DIR", help="The folder that everything is written to.")
@overwrite_option("the run in the folder")
@layer_option("The layer whose axes are looked at.")
@click.option("--k", type=click.IntRange(min=1), default=3, show_default=True, help="How many axes.")
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Sentences at each end of an axis."
)
@click.option("--tokens", type=click.IntRange(min=1), default=20, show_default=True, help="Tokens at each end.")
@click.option("--rogue", type=click.IntRange(min=0), default=3, show_default=True, help="Dimensions listed a layer.")
@pooling_option
@pairs_options
@click.option("--published", is_flag=True, help="Show the published curve of mxbai-embed-large-v1 too.")
@click.option(
    "--table",
    type=click.Choice(["parquet", "csv"]),
    help="The format of the table of all layers; default: parquet, or csv where pyarrow is not installed.",
)
@shared_options()
@json_option
@debuggable
def run(json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """All experiments in one pass of each model: a folder with the results and a report."""
    if options["measure"] and not options["pairs"]:
        raise click.UsageError("--measure goes with --pairs FILE")

    from cone_kernels.experiments.run import run as run_all
    from cone_kernels.terminal.run import print_run

    run_experiment(run_all, print_run, options, json_out=json_out, max_bad=max_bad, outputs=("checkpoint",))
