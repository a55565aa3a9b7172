"""`cone merge`."""

from __future__ import annotations

import click

from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable, overwrite_option
from cone_kernels.cli.outputs import check_outputs


@click.command(
    cls=ConeCommand, example="cone merge 0.safetensors 1.safetensors 2.safetensors --output whole.safetensors"
)
@click.argument("parts", nargs=-1, required=True, metavar="PART...")
@click.option("--output", "-o", required=True, metavar="FILE", help="The state of the whole.")
@click.option("--incomplete", is_flag=True, help="Where shards are missing, write a part that can be merged further.")
@overwrite_option("the state that --output names")
@debuggable
def merge(parts: tuple[str, ...], output: str, incomplete: bool, overwrite: bool) -> None:
    """Unite what runs with --shard have saved: the state that a single run saves, to the last bit."""
    check_outputs(whole=[output], inputs=parts)

    from cone_kernels.runs.part import merge as unite

    whole = unite(parts, output, incomplete=incomplete, overwrite=overwrite)
    missing = whole.missing()
    state = f"a part: it lacks {missing}" if missing else "the state of the whole corpus"
    if whole.unit == "vectors" and not missing:
        state = "the state of all"
    click.echo(f"{output}: {whole.counts['sentences']:,} of {whole.sentences:,} {whole.unit}, {state}", err=True)
