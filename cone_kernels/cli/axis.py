"""`cone axis`."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import run_experiment
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import (
    debuggable,
    json_option,
    layer_option,
    layer_pooling_option,
    model_options,
    shared_options,
)


@click.command(
    cls=ConeCommand, example="cone axis --model sentence-transformers/all-MiniLM-L6-v2 --corpus sentences.txt --k 3"
)
@model_options()
@layer_option("The layer whose axes are looked at.")
@layer_pooling_option
@click.option("--k", type=click.IntRange(min=1), default=1, show_default=True, help="How many axes.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Sentences at each end.")
@click.option("--tokens", type=click.IntRange(min=1), default=20, show_default=True, help="Tokens at each end.")
@click.option("--save-vectors", metavar="FILE", help="Write axes, mean and mean direction (safetensors).")
@shared_options()
@json_option
@debuggable
def axis(json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """What the top principal axes encode: the sentences and tokens at their ends, what they go with."""
    from cone_kernels.experiments.axis import axis as find_axis
    from cone_kernels.terminal.axis import print_axis

    files = ("save_vectors", "checkpoint")
    run_experiment(find_axis, print_axis, options, json_out=json_out, max_bad=max_bad, outputs=files)
