"""`cone tokens`."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import run_experiment
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, json_option, model_options, shard_size_option, threads_option


@click.command(cls=ConeCommand, example="cone tokens --model bert-base-uncased --corpus sentences.txt")
@model_options()
@threads_option
@shard_size_option
@json_option
@debuggable
def tokens(json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """Which tokens make the cone: special ones, by place, by frequency, by norm; and how contextual words are."""
    from cone_kernels import experiments
    from cone_kernels.terminal.tables import print_tables

    run_experiment(experiments.tokens, print_tables, options, json_out=json_out, max_bad=max_bad)
