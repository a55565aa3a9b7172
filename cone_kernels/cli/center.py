"""`cone center`."""

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
    pairs_options,
    shared_options,
)
from cone_kernels.names import METHODS


@click.command(
    cls=ConeCommand,
    example="cone center --model M --corpus sentences.txt --method all-but-the-top --output centering.safetensors",
)
@model_options(required=False)
@click.option("--state", metavar="FILE", help="Fit on this state; a model and a corpus only measure then.")
@layer_option("The layer that is centred.")
@layer_pooling_option
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="mean",
    show_default=True,
    help="; ".join(f"{name}: {method.help}" for name, method in METHODS.items()) + ".",
)
@click.option(
    "--components",
    type=click.IntRange(min=1),
    metavar="K",
    help="Directions projected out by all-but-the-top.  [default: a hundredth of the width]",
)
@click.option(
    "--shrinkage",
    type=click.FloatRange(0, 1),
    help="Of the covariance, for whitening.  [default: the oracle approximating shrinkage]",
)
@click.option(
    "--vectors",
    multiple=True,
    metavar="FILE",
    help="Vectors that are there already, in place of a model and a corpus (see `cone vectors`); may be repeated.",
)
@click.option("--scale", type=float, metavar="X", help="What int8 and uint8 of --vectors are multiplied by.")
@click.option(
    "--write",
    metavar="FILE",
    help="Write the opened --vectors: .npy, .safetensors, .parquet, .fvecs or .fbin, by the ending of the name.",
)
@pairs_options
@click.option("--output", "-o", metavar="FILE", help="Write the centering, for Centering.load.")
@shared_options()
@json_option
@debuggable
def center(json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """Open the cone: a centering, and the anisotropy before and after it."""
    for name in ("scale", "write"):
        if options[name] is not None and not options["vectors"]:
            raise click.UsageError(f"--{name} goes with --vectors FILE")
    if options["vectors"] and (options["model"] is not None or options["corpus"] is not None):
        raise click.UsageError("--vectors takes the place of --model and --corpus")
    if (options["model"] is None) != (options["corpus"] is None):
        raise click.UsageError("--model and --corpus go together")
    if options["model"] is None and options["state"] is None and not options["vectors"]:
        raise click.UsageError("give --model and --corpus, or --vectors FILE, or --state FILE")
    if options["pairs"] and options["model"] is None:
        raise click.UsageError("--pairs goes with --model and --corpus: the texts of the pairs go through the model")
    if options["measure"] and not options["pairs"]:
        raise click.UsageError("--measure goes with --pairs FILE")
    for name, method in (("components", "all-but-the-top"), ("shrinkage", "whitening")):
        if options[name] is not None and options["method"] != method:
            raise click.UsageError(f"--{name} is for --method {method}")

    from cone_kernels.experiments.centering import center as open_cone
    from cone_kernels.terminal.centering import print_centering

    files = ("output", "checkpoint", "write")
    options["vectors"] = list(options["vectors"]) or None
    run_experiment(open_cone, print_centering, options, json_out=json_out, max_bad=max_bad, outputs=files)
