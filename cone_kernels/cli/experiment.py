"""What every command that measures does: check the outputs, run with a progress line, show, write, judge the losses."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cone_kernels.cli.ending import TOO_MUCH_DROPPED, interruptible
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import model_or_state_options, require_model_or_state
from cone_kernels.cli.outputs import check_outputs, show_and_write
from cone_kernels.cli.stdin import STDIN, guessed_format
from cone_kernels.files import every_output
from cone_kernels.names import EXPERIMENTS

if TYPE_CHECKING:
    from rich.console import Console

    from cone_kernels.terminal.notes import Shown

_Result = TypeVar("_Result", bound="Shown")


def run_experiment(
    experiment: Callable[..., _Result],
    show: Callable[[Console, _Result], None],
    options: dict[str, Any],
    *,
    json_out: str | None,
    max_bad: int | None,
    outputs: Sequence[str] = (),
) -> _Result:
    """Runs an experiment as a command does.

    Args:
        experiment: the function of `cone_kernels.experiments`.
        show: prints its result.
        options: the keywords of the function; those named in `outputs` are files that it writes.
        json_out: where the JSON goes; "-" is stdout, and then nothing else is printed there.
        max_bad: leaving out more than this ends with exit code 3.
        outputs: names of options.
    """
    _refuse_two_prompts(options)
    inputs = [options.get(name) for name in ("corpus", "corpora", "state", "vectors", "pairs")]
    named = [file for value in inputs for file in ([value] if isinstance(value, str) else value or ())]
    check_outputs(
        json_out,
        options.get("log_json"),
        whole=[options[name] for name in outputs],
        inputs=named,
        state=options.get("save_state"),
        overwrite=options.get("overwrite", False),
    )

    from cone_kernels.terminal.notes import print_notes

    rank = _rank(options)
    options["field"] = list(options["field"]) or None
    if options.pop("no_prompt"):
        options["prompt"] = ""
    if options["corpus"] == STDIN and options["format"] is None:
        options["format"] = guessed_format()
    if isinstance(options["corpus"], tuple):
        options |= _one_corpus(options)
    return measure_and_show(
        experiment,
        print_notes,
        show,
        options,
        json_out=json_out,
        max_bad=max_bad,
        begins="loading the model",
        rank=rank,
    )


def measure_and_show(
    experiment: Callable[..., _Result],
    note: Callable[[Console, _Result], None],
    show: Callable[[Console, _Result], None],
    options: dict[str, Any],
    *,
    json_out: str | None,
    max_bad: int | None,
    begins: str,
    rank: int = 0,
) -> _Result:
    """Measures with a progress line, prints notes to stderr, shows the result, writes the JSON, judges the losses.

    A file that cannot be written costs neither the table nor the other files.

    Args:
        experiment, show, json_out, max_bad: as in `run_experiment`.
        note: prints how it went.
        options: the keywords of the function.
        begins: what is said before there is any progress.
        rank: of this process; all but 0 are quiet.
    """
    from cone_kernels.terminal.console import stderr_console
    from cone_kernels.terminal.progress import progress_line

    stderr = stderr_console()
    stderr.quiet = rank > 0
    with every_output():
        with progress_line(stderr, begins) as progress:
            result = experiment(**options, progress=interruptible(progress))
        if rank > 0:
            return result
        note(stderr, result)
        show_and_write(result, show, json_out)
    if max_bad is not None and result.n_bad > max_bad:
        click.echo(f"Error: {result.n_bad:,} were left out; --max-bad allows {max_bad:,}", err=True)
        click.get_current_context().exit(TOO_MUCH_DROPPED)
    return result


def _refuse_two_prompts(options: dict[str, Any]) -> None:
    given = [name for name in ("prompt", "prompt_name", "no_prompt") if options[name] not in (None, False)]
    if len(given) > 1:
        named = " and ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"{named}: give one of them")


def plain_command(name: str) -> click.Command:
    """The command of an experiment that has no options of its own and no module here.

    It takes a model and a corpus, or a state; the tables of the report are what it prints.

    Args:
        name: of `cone_kernels.names.EXPERIMENTS`.
    """
    about = EXPERIMENTS[name]

    @click.command(
        about.command,
        cls=ConeCommand,
        help=about.question,
        example=f"cone {about.command} --model M --corpus sentences.txt",
    )
    @model_or_state_options()
    def command(json_out: str | None, max_bad: int | None, **options: Any) -> None:
        require_model_or_state(options["model"], options["corpus"], options["state"])

        from cone_kernels import experiments
        from cone_kernels.terminal.tables import print_tables

        files = ("save_state", "checkpoint")
        experiment = getattr(experiments, about.function)
        run_experiment(experiment, print_tables, options, json_out=json_out, max_bad=max_bad, outputs=files)

    return command


def _one_corpus(options: Any) -> dict[str, Any]:
    """Several paths as one corpus. It is opened with the corpus options, which are then set back to their defaults."""
    from cone_kernels.runs.options import CORPUS_OPTIONS, DEFAULTS, open_files

    return {"corpus": open_files(options["corpus"], options), **{name: DEFAULTS[name] for name in CORPUS_OPTIONS}}


def _rank(options: Any) -> int:
    """Of this process among those of torchrun; every rank runs, and rank 0 shows and writes.

    Raises:
        click.ClickException: torchrun has started several processes, and they are not to share the work.
    """
    from cone_kernels.runs.options import rank_of

    if not options.get("distributed") and "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        instead = "each would do all of it with --no-distributed" if "distributed" in options else "this is done by one"
        raise click.ClickException(f"torchrun starts several processes; {instead}")
    return rank_of(options)
