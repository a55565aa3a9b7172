"""The options that several commands share; each is a keyword of the same name in `cone_kernels.experiments`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cone_kernels.cli.corpus_options import file_options, order_options, policy_options
from cone_kernels.names import (
    BASELINES,
    MEASURES,
    MODEL_POOLING,
    OUTPUT,
    POOLINGS,
    listed_suffixes,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MODEL = "A model's folder or file (.gguf; .txt, .vec or word2vec's .bin of word vectors), or its id on the hub"


def all_of(options: tuple[Callable[[_Command], _Command], ...]) -> Callable[[_Command], _Command]:
    """A decorator that gives a command these options, in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def model_options(required: bool = True) -> Callable[[_Command], _Command]:
    """What to measure and how: the model, the corpus and the keywords of `MeasureOptions`."""
    options = (
        click.option(
            "--model",
            required=required,
            metavar="PATH_OR_HUB_ID",
            help=_MODEL + ".",
        ),
        *_measure_options(required),
    )
    return all_of(options)


def models_options(required: bool = True) -> Callable[[_Command], _Command]:
    """As `model_options`, with any number of models."""
    options = (
        click.option(
            "--model",
            required=required,
            multiple=True,
            metavar="PATH_OR_HUB_ID",
            help=_MODEL + "; may be repeated.",
        ),
        *_measure_options(required),
    )
    return all_of(options)


def one_or_several(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Any:
    """What was given once as itself, more often as a tuple; None where it was not."""
    return value if len(value) > 1 else value[0] if value else None


def _number_or_auto(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    number: Any = click.IntRange(min=1)
    return value if value in (None, "auto") else number.convert(value, parameter, ctx)


def _number_or_output(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_number_or_output(ctx, parameter, one) for one in value)
    return value if value in (None, OUTPUT) else click.INT.convert(value, parameter, ctx)


def layer_option(what: str, multiple: bool = False) -> Callable[[_Command], _Command]:
    """`--layer`; without it the output is taken, or the last layer of a model that has none.

    Args:
        what: what is done with the layer, for its help.
        multiple: it may be given once for each model and state.
    """
    return click.option(
        "--layer",
        callback=_number_or_output,
        multiple=multiple,
        metavar=f"N|{OUTPUT}",
        help=f"{what} As in hidden_states: 0 the embeddings, -1 the last; {OUTPUT}: what the model itself gives.  "
        f"[default: {OUTPUT}; the last with --pooling, or of a model without one]",
    )


layer_pooling_option = click.option(
    "--pooling",
    type=click.Choice([*POOLINGS, MODEL_POOLING]),
    default="mean",
    show_default=True,
    help=f"How the sentence vectors of the layers are made; {MODEL_POOLING}: as the model itself does.",
)


def pairs_options(command: _Command) -> _Command:
    """`--pairs` and `--measure`: whether centring helps, by labelled pairs."""
    options = (
        click.option(
            "--pairs",
            metavar="FILE",
            help="Labelled pairs of texts, .jsonl, .csv or .tsv: whether centring helps is measured by "
            "them. Columns: premise, hypothesis, label; sentence1, sentence2, score; query, positive; and the like.",
        ),
        click.option(
            "--measure",
            metavar="NAME",
            help="What the pairs are judged by: "
            + "; ".join(f"{name}: {measure.takes}" for name, measure in MEASURES.items())
            + "; recall@K.  [default: found from the columns]",
        ),
    )
    return all_of(options)(command)


backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "reference", "cpu", "triton", "cuda"]),
    default="auto",
    show_default=True,
    help="Who computes the sums; one asked for by name runs or fails.",
)

max_bad_option = click.option(
    "--max-bad", type=click.IntRange(min=0), metavar="N", help="Exit with 3 if more than N are left out."
)

device_option = click.option(
    "--device", metavar="D", help="cpu, cuda or cuda:N.  [default: the first GPU, else the CPU]"
)

dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64", "auto"]),
    default="float32",
    show_default=True,
    help="What the model computes in; auto: as its weights are stored.",
)

revision_option = click.option("--revision", help="Branch, tag or commit of a hub id.")

trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run the Python code that a model may bring along."
)

workers_option = click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Run in N processes side by side."
)

checkpoint_options = (
    click.option("--checkpoint", metavar="FILE", help="Write the run so far to FILE, and at an interruption."),
    click.option(
        "--checkpoint-every", type=click.FloatRange(min=0), metavar="SECONDS", help="At least.  [default: 300]"
    ),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint, where there is one."),
)


def _measure_options(required: bool) -> tuple[Callable[[_Command], _Command], ...]:
    return (
        click.option(
            "--corpus",
            required=required,
            multiple=True,
            callback=one_or_several,
            metavar="FILE",
            help=f"Sentences: {listed_suffixes()}, also with .gz or .zst; a glob, a folder, a URL, datasets:NAME:SPLIT "
            "of the hub, or - for stdin; may be repeated, in the order of reading.",
        ),
        *order_options,
        *file_options,
        device_option,
        dtype_option,
        click.option(
            "--baseline",
            type=click.Choice(list(BASELINES)),
            help="In place of the model: " + "; ".join(f"{name}: {what}" for name, what in BASELINES.items()) + ".",
        ),
        backend_option,
        revision_option,
        click.option(
            "--gguf-file", metavar="NAME", help="The GGUF file that is the model, of a hub id or a folder with several."
        ),
        click.option("--prompt", metavar="TEXT", help="Put before every sentence.  [default: the model's own]"),
        click.option("--prompt-name", metavar="NAME", help="One of the model's prompts."),
        click.option("--no-prompt", is_flag=True, help="Not the model's own prompt either."),
        click.option(
            "--truncate-dim",
            type=click.IntRange(min=1),
            metavar="N",
            help="The first N dimensions of the model's output.  [default: as the model says]",
        ),
        trust_option,
        click.option(
            "--attention",
            metavar="NAME",
            help="One of transformers': sdpa, eager, flash_attention_2, ...; or varlen, torch's own, for --packed.",
        ),
        click.option(
            "--torch-compile", is_flag=True, help="Compile the model's blocks; the first batches take longer."
        ),
        *policy_options,
        click.option(
            "--token-budget",
            callback=_number_or_auto,
            metavar="N|auto",
            help="Tokens of a batch at most; auto: try.  [default: 4096 on a CPU, 65536 on a GPU]",
        ),
        click.option(
            "--packed", is_flag=True, help="Sentences of any length in one row of a batch; on a GPU, in 16 bits."
        ),
        click.option(
            "--log-json", metavar="FILE|-", help="Append the progress as JSON lines, one a second; - is stderr."
        ),
        max_bad_option,
    )


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads of a process; equal bits need equal threads.  [default: all, shared among workers]",
)

shard_size_option = click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sentences of a shard.  [default: 8192, on a GPU 65536]",
)


def text_options(command: _Command) -> _Command:
    """How a file of texts is read that is no `--corpus`: the keywords of `CorpusOptions`."""
    return all_of((*order_options, *file_options, *policy_options))(command)


def shared_options() -> Callable[[_Command], _Command]:
    """Many processes and checkpoints: the keywords of `SharedOptions`."""
    options = (
        workers_option,
        click.option(
            "--ray",
            type=click.IntRange(min=1),
            metavar="N",
            help="Run in N tasks of Ray, on the cluster of RAY_ADDRESS or on this machine.",
        ),
        click.option(
            "--distributed/--no-distributed",
            default=lambda: "TORCHELASTIC_RUN_ID" in os.environ,
            help="Share the work with the other ranks; rank 0 writes.  [default: under torchrun]",
        ),
        threads_option,
        shard_size_option,
        *checkpoint_options,
    )
    return all_of(options)


shard_option = click.option(
    "--shard", metavar="I/N", help="Only the part of process I of N, from 0; unite the parts by `cone merge`."
)


state_option = click.option(
    "--state", metavar="FILE", help="A state saved before, in place of a model and a corpus: nothing is run."
)


def require_model_or_state(model: str | None, corpus: str | None, state: str | None) -> None:
    """Refuses a state together with a run, and a run of which half is missing.

    Raises:
        click.UsageError: not exactly one of state, and model and corpus, is given.
    """
    given = {"--model": model, "--corpus": corpus}
    if state is not None and any(value is not None for value in given.values()):
        raise click.UsageError("--state takes the place of --model and --corpus")
    missing = [name for name, value in given.items() if value is None]
    if state is None and missing:
        raise click.UsageError(f"{' and '.join(missing)} missing; give a model and a corpus, or --state FILE")


save_state_option = click.option(
    "--save-state", metavar="FILE", help="Write the sums, which other runs can be merged with."
)


def overwrite_option(what: str) -> Callable[[_Command], _Command]:
    """`--overwrite`; without it, what is there already stays, for it may be of another run.

    Args:
        what: is replaced.
    """
    return click.option("--overwrite", is_flag=True, help=f"Replace {what}, if there is one already.")


json_option = click.option("--json", "json_out", metavar="FILE|-", help="Write the result as JSON; - is stdout, alone.")


def model_or_state_options(*own: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """All options of a command that measures a model or reads a state.

    Args:
        own: the options that only this command has.
    """
    source = (model_options(required=False), state_option)
    return all_of(
        (
            *source,
            *own,
            save_state_option,
            overwrite_option("the state that --save-state names"),
            shared_options(),
            shard_option,
            json_option,
            debuggable,
        )
    )


def _set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.ensure_object(dict)
    ctx.obj["debug"] = ctx.obj.get("debug", False) or value


def _set_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("cone_kernels").setLevel(logging.INFO)


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors."
)
_verbose_option = click.option(
    "--verbose", is_flag=True, expose_value=False, callback=_set_verbose, help="Log every line that is left out."
)


def debuggable(command: _Command) -> _Command:
    """The options that every command has."""
    return debug_option(_verbose_option(command))
