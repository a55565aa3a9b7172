"""`cone report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import click

from cone_kernels.cli.help import ConeCommand
from cone_kernels.cli.options import debuggable
from cone_kernels.cli.outputs import check_outputs


@click.command(cls=ConeCommand, example="cone report cone/ --output report.html")
@click.argument("folder", metavar="DIR|FILE")
@click.option(
    "--output", metavar="FILE", help="Where the page goes.  [default: DIR/report.html, or FILE ending in .html]"
)
@debuggable
def report(folder: str, output: str | None) -> None:
    """Make report.html again from the results.json that `cone run` wrote to DIR.

    Or make the page of one result, from the FILE that --json of any command wrote.
    """
    if output == "-":
        raise click.UsageError("--output: got -; the page is written to a file")
    given = Path(folder)
    source = given if given.is_file() else given / "results.json"
    target = output or str(given.with_suffix(".html") if given.is_file() else given / "report.html")
    results = _read(source)
    check_outputs(whole=[target], inputs=[str(source)])

    from cone_kernels.report import write_report

    try:
        write_report(results, target)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    click.echo(target)


def _read(source: Path) -> dict[str, Any]:
    """The results; anything but a strict JSON object is refused here, an object that is not a run by the report."""
    try:
        found = json.loads(source.read_bytes(), parse_constant=_refuse)
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: there is no such file; `cone run --out DIR` writes one") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source}: got a JSON {type(found).__name__}; it must be an object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
