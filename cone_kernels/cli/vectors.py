"""`cone vectors`."""

from __future__ import annotations

from typing import Any

import click

from cone_kernels.cli.experiment import measure_and_show
from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.outputs import check_outputs
from cone_kernels.cli.vectors_options import vectors_options
from cone_kernels.names import GEOMETRY


@click.command(cls=ConeCommand, example="cone vectors part-*.parquet --field vector --axis 2 --ids text")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@vectors_options(
    click.option(
        "--second-moment", is_flag=True, help=f"Also {', '.join(metric.label for metric in GEOMETRY.values())}."
    ),
    click.option("--rogue", type=click.IntRange(min=0), default=3, show_default=True, help="Dimensions listed."),
    click.option(
        "--axis", type=click.IntRange(min=1), metavar="K", help="Also the top K axes; the files are read twice."
    ),
    click.option(
        "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Vectors at each end of an axis."
    ),
)
def vectors(files: tuple[str, ...], json_out: str | None, max_bad: int | None, **options: Any) -> None:
    """How tight the cone of vectors is that are there already: files of embeddings, without a model.

    FILEs are of one width and dtype, and are read as one: arrays of NumPy, safetensors, parquet and arrow, JSON lines,
    the plain formats of nearest-neighbour benchmarks, faiss indexes, and folders that datasets has saved.
    """
    if options["axis"] is not None and options["shard"] is not None:
        raise click.UsageError("--axis and --shard: give one of them; the axes are those of all vectors")
    if options["resume"] and options["checkpoint"] is None:
        raise click.UsageError("--resume goes with --checkpoint FILE")
    written = [options[name] for name in ("save_state", "checkpoint")]
    check_outputs(json_out, whole=written, inputs=files, state=options["save_state"], overwrite=options["overwrite"])

    from cone_kernels import experiments
    from cone_kernels.terminal.notes import print_notes
    from cone_kernels.terminal.vectors import print_vectors

    measure_and_show(
        experiments.vectors,
        print_notes,
        print_vectors,
        {"source": list(files), **options},
        json_out=json_out,
        max_bad=max_bad,
        begins="opening the files",
    )
