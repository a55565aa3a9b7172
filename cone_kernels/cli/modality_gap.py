"""`cone modality-gap`."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import measure_and_show
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import (
    backend_option,
    debuggable,
    device_option,
    dtype_option,
    json_option,
    max_bad_option,
    revision_option,
    text_options,
    threads_option,
    trust_option,
)
from cone_kernels.cli.outputs import check_outputs
from cone_kernels.cli.stdin import STDIN, guessed_format
from cone_kernels.names import IMAGE_SUFFIXES, listed_suffixes


@click.command(
    "modality-gap",
    cls=ConeCommand,
    example="cone modality-gap --model openai/clip-vit-base-patch32 --images photos/ --captions captions.txt",
)
@click.option("--model", required=True, metavar="PATH_OR_HUB_ID", help="A model of both, as CLIP or SigLIP.")
@click.option(
    "--images", required=True, metavar="DIR", help=f"A folder: every {', '.join(IMAGE_SUFFIXES)} in it and below."
)
@click.option(
    "--captions", required=True, metavar="FILE", help=f"Texts, of these images or of others: {listed_suffixes()}, or -."
)
@text_options
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images, and texts, of a forward."
)
@device_option
@dtype_option
@revision_option
@trust_option
@backend_option
@threads_option
@max_bad_option
@json_option
@debuggable
def modality_gap(captions: str, json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """How far apart the cones of images and texts are in a model of both, and how tight each is at every layer."""
    check_outputs(json_out, inputs=[captions])

    from cone_kernels import experiments
    from cone_kernels.runs.options import CORPUS_OPTIONS, open_files
    from cone_kernels.terminal.notes import print_towers_notes
    from cone_kernels.terminal.tables import print_tables

    reading: Any = {name: options.pop(name) for name in CORPUS_OPTIONS if name in options}
    reading["field"] = list(reading["field"]) or None
    if captions == STDIN and reading["format"] is None:
        reading["format"] = guessed_format()
    measure_and_show(
        experiments.modality_gap,
        print_towers_notes,
        print_tables,
        {"texts": open_files([captions], reading), **options},
        json_out=json_out,
        max_bad=max_bad,
        begins="loading the model",
    )
