"""The mean cosine before and after a centering."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cone_kernels.experiments.quality_result import Quality
from cone_kernels.names import place
from cone_kernels.terminal.columns import BARS, Column, print_columns
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
    levels = [result.before, result.after]
    width = min(_BAR_WIDTH, max(8, console.width - 30))
    bars = [
        Text("" if level is None else bar(level.anisotropy, width, console), colour)
        for level, colour in zip(levels, ("magenta", "cyan"), strict=True)
    ]
    columns = [
        Column("", ["before", "after"], justify="left"),
        Column(result.rows[:-1], ["-" if level is None else number(level.anisotropy) for level in levels]),
        Column("s.e.", ["" if level is None else number(level.stderr) for level in levels], style="dim"),
        Column("", bars, BARS, justify="left"),
    ]
    print_columns(console, columns)
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
