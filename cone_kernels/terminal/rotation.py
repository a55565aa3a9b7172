"""The matrices of a comparison of models, each model named by a letter."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cone_kernels.terminal.console import number

if TYPE_CHECKING:
    from cone_kernels.experiments.rotation_result import Matrix, RotationResult

_NAME_WIDTH = 34


def print_rotation(console: Console, result: RotationResult) -> None:
    """What was compared, a table for each comparison, and what they say."""
    _print_models(console, result)

    def chance(i: int, j: int, cosine: float) -> str:
        random = result.null[i][j]
        return "dim" if random is not None and cosine <= random.p95 else "cyan"

    def plain(i: int, j: int, value: float) -> str:
        return "dim" if i == j else ""

    _print_matrix(console, result, "|cos| of the axes", result.axis_cosine, chance)
    for i, model in enumerate(result.models):
        random = result.null[i][i]
        if random is not None and model.hidden_size not in [other.hidden_size for other in result.models[:i]]:
            console.print(
                f"random directions, {model.hidden_size} wide: {random.mean:.4f} on average, "
                f"{random.p95:.4f} or more once in twenty",
                style="dim",
            )
    _print_matrix(console, result, "|cos| of the means", result.mean_cosine, chance)
    _print_matrix(console, result, "|r| along the axes", result.functional_cosine, plain)
    console.print("correlation of the same sentences' projections on the two axes", style="dim")
    _print_angles(console, result)
    _print_overlaps(console, result)
    _print_matrix(console, result, "mean cosine of … less the mean of", result.centered_anisotropy, plain)
    for reason in result.reasons:
        console.print(f"- is not defined: {reason}", style="yellow", markup=False)
    console.print()
    for sentence in result.summary():
        console.print(sentence, markup=False)


def _table() -> Table:
    return Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")


def _letter(i: int) -> str:
    """A to Z, then A1, B1, ..."""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def _print_models(console: Console, result: RotationResult) -> None:
    table = _table()
    table.add_column("")
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=_NAME_WIDTH)
    for heading in ("layer", "width", "sentence", "s.e.", "λ1 share"):
        table.add_column(heading, justify="right", no_wrap=True, style="dim" if heading == "s.e." else None)
    for i, model in enumerate(result.models):
        share = f"{model.explained_variance_ratio:.1%}"
        level = (number(model.level.anisotropy), number(model.level.stderr))
        table.add_row(_letter(i), Text(model.name), str(model.layer), str(model.hidden_size), *level, share)
    console.print(table)
    console.print("sentence: mean cosine of two sentences; s.e.: standard error", style="dim")


def _print_matrix(
    console: Console,
    result: RotationResult,
    title: str,
    matrix: Matrix,
    style: Callable[[int, int, float], str],
) -> None:
    """A matrix whose columns are the models' letters; `style` of row, column and value colours a cell."""
    table = _table()
    table.add_column("")
    table.add_column(title, no_wrap=True, overflow="ellipsis", max_width=_NAME_WIDTH)
    for i in range(len(result.models)):
        table.add_column(_letter(i), justify="right", no_wrap=True)
    for i, (model, row) in enumerate(zip(result.models, matrix, strict=True)):
        cells = [Text(number(value), "" if math.isnan(value) else style(i, j, value)) for j, value in enumerate(row)]
        table.add_row(_letter(i), Text(model.name), *cells)
    console.print()
    console.print(table)


def _print_angles(console: Console, result: RotationResult) -> None:
    table = _table()
    table.add_column("")
    table.add_column(f"principal angles of the top {result.k} axes, degrees")
    for i, j in combinations(range(len(result.models)), 2):
        angles = result.principal_angles[i][j]
        drawn = "-" if angles is None else " ".join(f"{angle:6.2f}" for angle in angles)
        table.add_row(f"{_letter(i)} {_letter(j)}", drawn)
    console.print()
    console.print(table)


def _print_overlaps(console: Console, result: RotationResult) -> None:
    """What is said of each pair of models, and what it is said from."""
    table = _table()
    table.add_column("")
    for heading in ("axes", "overlap", "corrected", "s.e.", "own halves", "by chance"):
        table.add_column(heading, justify="right", no_wrap=True, style="dim" if heading == "s.e." else None)
    table.add_column("verdict", no_wrap=True)
    for i, j in combinations(range(len(result.models)), 2):
        pair = result.pairs[i][j]
        if pair is None:
            table.add_row(f"{_letter(i)} {_letter(j)}", *"------", "-")
            continue
        halves = " ".join(number(half) for half in pair.halves)
        found = (number(pair.overlap.value), number(pair.overlap.corrected), number(pair.overlap.stderr))
        cells = (str(pair.overlap.axes), *found, halves, number(pair.drawn.p95))
        table.add_row(f"{_letter(i)} {_letter(j)}", *cells, pair.verdict)
    console.print()
    console.print(table)
    legend = (
        "overlap: mean cos² between the spaces of the top axes; corrected: less the noise of the",
        "sentences; own halves: that of two halves of them; by chance: once in twenty",
    )
    console.print(Text("\n".join(legend), "dim"))
