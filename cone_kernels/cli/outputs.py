"""Where results go: checked before a run, written whole or not at all after it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from cone_kernels.files import every_output, require_local, write_whole, writing

if TYPE_CHECKING:
    from rich.console import Console

# What a disk must have room for that is to be written to: a disk that is full says so before the run.
_ROOM = 1 << 16


class _Result(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


_R = TypeVar("_R", bound=_Result)


def check_outputs(
    *files: str | None,
    whole: Sequence[str | None] = (),
    inputs: Sequence[str] = (),
    state: str | None = None,
    overwrite: bool = False,
) -> None:
    """Finds before the run what cannot be written after it.

    Args:
        files: the outputs; None and "-" are no file.
        whole: outputs that are written aside and renamed, so they must be regular files.
        inputs: what the command reads; no output may be one of them.
        state: one of `whole` that replaces no file, as that may be of another run,
        overwrite: but where this is asked for.

    Raises:
        click.UsageError: a file is named twice.
        click.ClickException: a file cannot be written.
    """
    for file in (*files, *whole):
        try:
            require_local("output", file)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    for file in whole:
        if file and Path(file).exists() and not Path(file).is_file():
            raise click.ClickException(
                f"{file} is not a regular file; it must be one, for it is written aside and renamed"
            )
    from cone_kernels.runs.options import refuse_replacing

    try:
        refuse_replacing(state, overwrite)
    except FileExistsError as error:
        raise click.ClickException(str(error)) from None
    paths = [Path(file) for file in (*files, *whole) if file and file != "-"]
    taken = [Path(file).resolve() for file in inputs]
    for path in paths:
        if path.resolve() in taken:
            raise click.UsageError(f"{path} is named twice; every output must be a file of its own")
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
                with tempfile.TemporaryFile(dir=path.resolve().parent) as probe:
                    probe.write(bytes(_ROOM))
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None


def show_and_write(result: _R, show: Callable[[Console, _R], None], json_out: str | None) -> None:
    """Prints a result, and writes its JSON after that: a file that cannot be written does not cost the table.

    Args:
        result: of an experiment.
        show: prints it.
        json_out: where the JSON goes; "-" is stdout, and then nothing else is printed there.

    Raises:
        OSError: the file cannot be written.
    """
    from cone_kernels.terminal.console import stdout_console

    with every_output():
        if json_out != "-":
            show(stdout_console(), result)
        if json_out:
            with writing(json_out):
                write_json(json_out, result.to_dict())


def write_json(file: str, data: dict[str, Any]) -> None:
    """Writes JSON aside and renames it; "-" is stdout."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    path = Path(file)
    if file == "-":
        click.echo(text, nl=False)
    elif path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        write_whole(path, text.encode())
