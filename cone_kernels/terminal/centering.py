"""The mean cosine before and after a centering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cone_kernels.experiments.quality_result import Quality
from cone_kernels.names import place
from cone_kernels.terminal.console import bar, number
from cone_kernels.terminal.quality import print_quality

if TYPE_CHECKING:
    from cone_kernels.experiments.centering_result import CenteringResult

_BAR_WIDTH = 30


def print_centering(console: Console, result: CenteringResult) -> None:
    """What was fitted, the mean cosine before and after, and what that says."""
    centering = result.centering
    how: str = centering.method
    if centering.components is not None:
        how += f", {centering.components} component{'s' if centering.components > 1 else ''}"
    elif centering.shrinkage is not None:
        how += f", shrinkage {centering.shrinkage:.3g}"
    where = f" at {place(result.layer)} ({result.layer_name})" if result.rows == "sentences" else ""
    console.print(Text.assemble((how, "bold"), where))
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("")
    table.add_column(result.rows[:-1], justify="right", no_wrap=True)
    table.add_column("s.e.", justify="right", style="dim", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, level, colour in (("before", result.before, "magenta"), ("after", result.after, "cyan")):
        if level is None:
            table.add_row(name, "-")
        else:
            drawn = Text(bar(level.anisotropy, _BAR_WIDTH, console), colour)
            table.add_row(name, number(level.anisotropy), number(level.stderr), drawn)
    console.print(table)
    console.print(f"mean cosine of two {result.rows}; s.e.: standard error", style="dim")
    if isinstance(result.quality, Quality):
        print_quality(console, result.quality)
    for reason in result.reasons:
        console.print(f"- is not defined: {reason}", style="yellow")
    for sentence in result.summary():
        console.print(sentence.replace("±", "+/-") if console.options.ascii_only else sentence, markup=False)
    for file in (result.file, result.manifest.get("written")):
        if file is not None:
            console.print(f"written to {file}", style="dim", markup=False)
