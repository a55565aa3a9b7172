"""What `cone run` prints: the answers, and where everything is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from cone_kernels.names import QUALITY_NOT_MEASURED
from cone_kernels.terminal.quality import print_quality

if TYPE_CHECKING:
    from cone_kernels.experiments.run import RunResult


def print_run(console: Console, result: RunResult) -> None:
    """The sentences of every experiment under the model's name, and the folder."""
    for model in result.models:
        console.print(
            f"{model.layers.model['name']} ({model.layers.model['architecture']})", style="bold", markup=False
        )
        for found in model.results.values():
            for line in found.summary():
                console.print(f"- {line}", markup=False)
        if model.undefined is not None:
            console.print(f"- There is no axis, and no way to open the cone: {model.undefined}.", markup=False)
        for centering in model.centerings:
            for line in centering.summary()[:1]:
                console.print(f"- {line}", markup=False)
        if model.quality is not None:
            print_quality(console, model.quality)
        for line in model.quality.summary() if model.quality else (QUALITY_NOT_MEASURED,):
            console.print(f"- {line}", markup=False)
        console.print()
    for line in result.rotation.summary() if result.rotation else ():
        console.print(f"- {line}", markup=False)
    console.print(f"written to {result.out}: results.json, report.html, manifest.json, the table, states and axes")
