"""The matrices of a comparison of models, each model named by a letter."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cone_kernels.terminal.columns import Column, print_columns
from cone_kernels.terminal.console import number

if TYPE_CHECKING:
    from cone_kernels.experiments.axes_pair import AxesPair, Matrix
    from cone_kernels.experiments.rotation_result import RotationResult

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


def _letter(i: int) -> str:
    """A to Z, then A1, B1, ..."""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def _print_models(console: Console, result: RotationResult) -> None:
    models = result.models
    compared = "model" if result.corpora is None else "corpus"
    columns = [
        Column("", [_letter(i) for i in range(len(models))], justify="left"),
        Column(compared, [Text(model.name) for model in models], justify="left", most=_NAME_WIDTH),
        Column("layer", [str(model.layer) for model in models]),
        Column("width", [str(model.hidden_size) for model in models]),
        Column("sentence", [number(model.level.anisotropy) for model in models]),
        Column("s.e.", [number(model.level.stderr) for model in models], style="dim"),
        Column("λ1 share", [f"{model.explained_variance_ratio:.1%}" for model in models]),
    ]
    print_columns(console, columns, keys=2)
    console.print("sentence: mean cosine of two sentences; s.e.: standard error", style="dim")


def _print_matrix(
    console: Console,
    result: RotationResult,
    title: str,
    matrix: Matrix,
    style: Callable[[int, int, float], str],
) -> None:
    """A matrix whose columns are the models' letters; `style` of row, column and value colours a cell."""
    letters = [_letter(i) for i in range(len(result.models))]
    columns = [Column("", letters, justify="left")]
    columns.append(Column(title, [model.name for model in result.models], justify="left", most=_NAME_WIDTH))
    for j, letter in enumerate(letters):
        values = [row[j] for row in matrix]
        styles = ["" if math.isnan(value) else style(i, j, value) for i, value in enumerate(values)]
        cells = [Text(number(value), chosen) for value, chosen in zip(values, styles, strict=True)]
        columns.append(Column(letter, cells))
    console.print()
    print_columns(console, columns, keys=2)


def _print_angles(console: Console, result: RotationResult) -> None:
    found = [(i, j, result.principal_angles[i][j]) for i, j in combinations(range(len(result.models)), 2)]
    drawn = ["-" if angles is None else " ".join(f"{angle:6.2f}" for angle in angles) for _, _, angles in found]
    console.print()
    print_columns(
        console,
        [
            Column("", [_pair(i, j) for i, j, _ in found], justify="left"),
            Column(f"principal angles of the top {result.k} axes, degrees", drawn, justify="left", wraps=True),
        ],
    )


def _print_overlaps(console: Console, result: RotationResult) -> None:
    """What is said of each pair of models, and what it is said from."""
    pairs = list(combinations(range(len(result.models)), 2))
    rows = [_overlap(result.pairs[i][j]) for i, j in pairs]
    columns = [Column("", [_pair(i, j) for i, j in pairs], justify="left")]
    headings = ("axes", "overlap", "corrected", "s.e.", "own halves", "by chance")
    for at, heading in enumerate(headings):
        columns.append(Column(heading, [row[at] for row in rows], style="dim" if heading == "s.e." else None))
    columns.append(Column("verdict", [row[-1] for row in rows], justify="left"))
    console.print()
    print_columns(console, columns)
    legend = (
        "overlap: mean cos² between the spaces of the top axes; corrected: less the noise of the",
        "sentences; own halves: that of two halves of them; by chance: once in twenty",
    )
    console.print(Text("\n".join(legend), "dim"))


def _overlap(pair: AxesPair | None) -> tuple[str, ...]:
    """How many axes were compared, their overlap, what it is judged by, and the verdict; dashes where there is none."""
    if pair is None:
        return ("-",) * 7
    halves = " ".join(number(half) for half in pair.halves)
    found = (number(pair.overlap.value), number(pair.overlap.corrected), number(pair.overlap.stderr))
    return (str(pair.overlap.axes), *found, halves, number(pair.drawn.p95), pair.verdict)


def _pair(i: int, j: int) -> str:
    return f"{_letter(i)} {_letter(j)}"
