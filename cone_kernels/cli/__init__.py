"""The command `cone`. What a command needs is imported when it runs, so that `cone --help` is quick."""

from __future__ import annotations

import click

from cone_kernels import __version__
from cone_kernels.cli.group import ConeGroup
from cone_kernels.cli.options import debug_option


@click.group(cls=ConeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cone")
@debug_option
def main() -> None:
    """Measure the cone that transformer sentence vectors crowd into.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but more was left out than --max-bad allows;
    75 interrupted.
    """
