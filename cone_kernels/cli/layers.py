"""`cone layers`."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import run_experiment
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import layer_pooling_option, model_or_state_options, require_model_or_state
from cone_kernels.names import GEOMETRY


@click.command(
    cls=ConeCommand,
    example="cone layers --model sentence-transformers/all-MiniLM-L6-v2 --corpus sentences.jsonl --field text",
)
@model_or_state_options(
    layer_pooling_option,
    click.option(
        "--second-moment", is_flag=True, help=f"Also {', '.join(metric.label for metric in GEOMETRY.values())}."
    ),
    click.option(
        "--rogue", type=click.IntRange(min=0), default=3, show_default=True, help="Dimensions listed a layer."
    ),
    click.option("--published", is_flag=True, help="Show the published curve of mxbai-embed-large-v1 too."),
)
def layers(json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """The anisotropy of every layer, for sentences and for tokens."""
    require_model_or_state(options["model"], options["corpus"], options["state"])

    from cone_kernels import experiments
    from cone_kernels.terminal.layers import print_layers

    files = ("save_state", "checkpoint")
    run_experiment(experiments.layers, print_layers, options, json_out=json_out, max_bad=max_bad, outputs=files)
