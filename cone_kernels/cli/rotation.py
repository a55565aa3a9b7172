"""`cone rotation`."""

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
    models_options,
    shared_options,
)


@click.command(cls=ConeCommand, example="cone rotation --model M --model N --corpus sentences.txt --k 8")
@models_options(required=False)
@click.option("--state", multiple=True, metavar="FILE", help="A state saved with second moments; may be repeated.")
@layer_option("The layer compared; once, or once for each model and state.", multiple=True)
@layer_pooling_option
@click.option("--k", type=click.IntRange(min=1), default=4, show_default=True, help="Axes of the subspaces compared.")
@shared_options()
@json_option
@debuggable
def rotation(json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """Whether models share their cone's axis, and whether a centring vector carries over.

    One --model with several --corpus is compared with itself over each corpus: does the axis move with the corpus?
    With several models, or a state, several --corpus are read as one.
    """
    models, states, layers = (len(options[name]) for name in ("model", "state", "layer"))
    corpora = options["corpus"] if isinstance(options["corpus"], tuple) and (models, states) == (1, 0) else ()
    compared = len(corpora) or models + states
    if compared < 2:
        raise click.UsageError(
            f"--model and --state: got {models + states} in all; a comparison needs at least two, or one --model and "
            "two --corpus"
        )
    if (options["corpus"] is None) != (models == 0):
        raise click.UsageError("--model and --corpus go together: each model is run over the corpus")
    if layers not in (0, 1, compared):
        raise click.UsageError(f"--layer: got {layers}; give it once, or once for each of {compared}")

    options["layer"] = options["layer"] or None
    if corpora:
        options |= {"corpora": corpora, "corpus": None}

    from cone_kernels.experiments.rotation import rotation as compare
    from cone_kernels.terminal.rotation import print_rotation

    run_experiment(compare, print_rotation, options, json_out=json_out, max_bad=max_bad, outputs=("checkpoint",))
