"""The options of commands that read vectors, which no model is needed for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cone_kernels.cli.options import (
    all_of,
    backend_option,
    checkpoint_options,
    debuggable,
    json_option,
    max_bad_option,
    one_or_several,
    overwrite_option,
    save_state_option,
    shard_option,
    workers_option,
)
from cone_kernels.names import VECTOR_FORMATS

_Command = TypeVar("_Command", bound=Callable[..., Any])

vectors_format_option = click.option(
    "--format",
    type=click.Choice(list(VECTOR_FORMATS)),
    metavar="NAME",
    help="Of the files.  [default: by the endings of their names]  "
    + "; ".join(f"{name}: {about.holds}" for name, about in VECTOR_FORMATS.items())
    + ".",
)

vectors_field_option = click.option(
    "--field", metavar="NAME", help="The array, tensor or column that holds the vectors."
)

vectors_limit_option = click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N vectors."
)


def vectors_options(*own: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """All options of a command that reads vectors, which no model is needed for: the keywords of `VectorsOptions`.

    Args:
        own: the options that only this command has.
    """
    threads = "CPU threads of a process; the bits do not depend on them.  [default: all, shared among workers]"
    options = (
        vectors_format_option,
        vectors_field_option,
        click.option(
            "--ids",
            multiple=True,
            callback=one_or_several,
            metavar="FILE|COLUMN",
            help="Texts or ids of the vectors: a file with a line for each (may be repeated), or a column beside them.",
        ),
        click.option("--scale", type=float, metavar="X", help="What int8 and uint8 are multiplied by."),
        vectors_limit_option,
        *own,
        backend_option,
        max_bad_option,
        workers_option,
        click.option("--threads", type=click.IntRange(min=1), metavar="N", help=threads),
        *checkpoint_options,
        shard_option,
        save_state_option,
        overwrite_option("the state that --save-state names"),
        json_option,
        debuggable,
    )
    return all_of(options)
