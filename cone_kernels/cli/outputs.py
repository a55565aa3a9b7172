"""Where results go: checked before a run, written whole or not at all after it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cone_kernels.files import write_whole


def check_outputs(*files: str | None, whole: Sequence[str | None] = (), inputs: Sequence[str] = ()) -> None:
    """Finds before the run what cannot be written after it.

    Args:
        files: the outputs; None and "-" are no file.
        whole: outputs that are written aside and renamed, so they must be regular files.
        inputs: what the command reads; no output may be one of them.

    Raises:
        click.UsageError: a file is named twice.
        click.ClickException: a file cannot be written.
    """
    for file in whole:
        if file and Path(file).exists() and not Path(file).is_file():
            raise click.ClickException(
                f"{file} is not a regular file; it must be one, for it is written aside and renamed"
            )
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
                tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None


def write_json(file: str, data: dict[str, Any]) -> None:
    """Writes JSON aside and renames it; "-" is stdout."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if file == "-":
        click.echo(text, nl=False)
        return
    path = Path(file).resolve()
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    write_whole(path, text.encode())
