"""`cone rows`, which is `cone compare --rows` too."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, json_option
from cone_kernels.cli.outputs import check_outputs, show_and_write


@click.command(cls=ConeCommand, example="cone rows float32.npy bfloat16.npy --ids texts.txt")
@click.argument("a")
@click.argument("b")
@click.option("--field", metavar="NAME", help="The array, tensor or column that holds the vectors.")
@click.option("--ids", metavar="FILE|COLUMN", help="Texts or ids of the rows.")
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Nearest rows that are compared.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Rows listed that differ most.")
@json_option
@debuggable
def rows(a: str, b: str, json_out: str | None, **options: Any) -> None:
    """Are the vectors in the files A and B, row by row, the same? Of the same texts by two sources: in another
    precision, by another runtime, from another server.

    The formats are those of `cone vectors`.
    """
    show_rows(a, b, json_out, **options)


def show_rows(a: str, b: str, json_out: str | None, **options: Any) -> None:
    """Compares two files of vectors and shows what was found.

    Args:
        a, b: the files.
        json_out: where the JSON goes; "-" is stdout, alone.
        options: keywords of `experiments.rows`.
    """
    check_outputs(json_out, inputs=[a, b])

    from cone_kernels import experiments
    from cone_kernels.terminal.tables import print_tables

    result = experiments.rows(a, b, **options)
    show_and_write(result, print_tables, json_out)
