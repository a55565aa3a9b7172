"""`cone report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import click

from cone_kernels.cli.options import debuggable
from cone_kernels.cli.outputs import check_outputs


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--output", metavar="FILE", help="Where the page goes.  [default: DIR/report.html]")
@debuggable
def report(folder: str, output: str | None) -> None:
    """Make report.html again from the results.json that `cone run` wrote to DIR."""
    if output == "-":
        raise click.UsageError("--output: got -; the page is written to a file")
    source = Path(folder) / "results.json"
    target = output or str(Path(folder) / "report.html")
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
