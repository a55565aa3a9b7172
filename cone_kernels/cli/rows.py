"""`cone rows`, which is `cone compare --rows` too."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import measure_and_show
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, json_option, max_bad_option
from cone_kernels.cli.outputs import check_outputs
from cone_kernels.cli.vectors_options import vectors_field_option, vectors_format_option, vectors_limit_option


@click.command(cls=ConeCommand, example="cone rows float32.npy bfloat16.npy --ids texts.txt")
@click.argument("a")
@click.argument("b")
@vectors_format_option
@vectors_field_option
@click.option("--ids", metavar="FILE|COLUMN", help="Texts or ids of the rows.")
@vectors_limit_option
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Nearest rows that are compared.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Rows listed that differ most.")
@max_bad_option
@json_option
@debuggable
def rows(a: str, b: str, json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """Are the vectors in the files A and B, row by row, the same? Of the same texts by two sources: in another
    precision, by another runtime, from another server.

    The formats are those of `cone vectors`.
    """
    show_rows(a, b, json_out, max_bad, **options)


def show_rows(a: str, b: str, json_out: str | None, max_bad: int | None = None, **options: Any) -> None:
    """Compares two files of vectors and shows what was found.

    Args:
        a, b: the files.
        json_out: where the JSON goes; "-" is stdout, alone.
        max_bad: leaving out more pairs than this ends with exit code 3.
        options: keywords of `experiments.rows`.
    """
    check_outputs(json_out, inputs=[a, b])

    from cone_kernels import experiments
    from cone_kernels.terminal.notes import print_rows_notes
    from cone_kernels.terminal.tables import print_tables

    measure_and_show(
        experiments.rows,
        print_rows_notes,
        print_tables,
        {"a": a, "b": b, **options},
        json_out=json_out,
        max_bad=max_bad,
        begins="opening the files",
    )
