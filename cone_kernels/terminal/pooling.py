"""The table of tokens against sentences, and the table of the poolings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cone_kernels.names import spaced
from cone_kernels.terminal.columns import BARS, ERRORS, Column, print_columns
from cone_kernels.terminal.console import number

if TYPE_CHECKING:
    from cone_kernels.experiments.pooling_result import PoolingLayer, PoolingResult

_BAR_WIDTH = 10
_TOKEN, _SENTENCE = "magenta", "cyan"


def print_pooling(console: Console, result: PoolingResult) -> None:
    """Tokens against sentences with a bar a layer, the poolings where there are several, and the plain sentences."""
    _print_levels(console, result)
    if len(result.layers[0].poolings) > 1:
        console.print()
        _print_poolings(console, result)
    for reason in dict.fromkeys(row.reason for row in result.layers if row.reason):
        console.print(f"- is not defined: {reason}", style="yellow")
    if result.summary():
        console.print()
    for line in result.summary():
        console.print(Text(line.replace("±", "+/-") if console.options.ascii_only else line))


def _print_levels(console: Console, result: PoolingResult) -> None:
    width = min(36, _BAR_WIDTH + max(0, console.width - 80))
    rows = result.layers
    gaps = [f"{row.gap.value:+.4f}" if math.isfinite(row.gap.value) else "-" for row in rows]
    columns = [
        Column("layer", [str(row.layer) for row in rows]),
        Column("token", [number(row.token.anisotropy) for row in rows], style=_TOKEN),
        Column("sentence", [number(row.sentence.anisotropy) for row in rows], style=_SENTENCE),
        Column("", [_gap_bar(row, width, console) for row in rows], BARS, justify="left"),
        Column("gap", gaps),
        Column("s.e.", [number(row.gap.stderr) for row in rows], ERRORS, style="dim"),
        Column("predicted", [number(row.predicted.value) for row in rows]),
        Column("s.e.", [number(row.predicted.stderr) for row in rows], ERRORS, style="dim"),
        Column("within", [number(row.within.value) for row in rows]),
        Column("between", [number(row.between.value) for row in rows]),
    ]
    headings = print_columns(console, columns)
    whole, shade = _drawn_with(console)
    bars = f", {shade} beside {whole}" if "" in headings else ""
    legend = (
        "token, sentence: mean cosine of two of them" + ("; s.e.: standard error" if "s.e." in headings else ""),
        f"gap: what pooling adds{bars}; predicted: by averaging tokens of length 1",
        "within, between: mean cosine of two tokens of one sentence, of two sentences",
    )
    console.print(Text("\n".join(legend), "dim"))


def _gap_bar(row: PoolingLayer, width: int, console: Console) -> Text:
    """A bar from 0 to 1: up to the lower level whole, from there to the higher one shaded."""
    if not math.isfinite(row.gap.value):
        return Text("")
    token, sentence = (round(min(max(level.anisotropy, 0.0), 1.0) * width) for level in (row.token, row.sentence))
    whole, shade = _drawn_with(console)
    drawn = Text(whole * min(token, sentence), _TOKEN)
    drawn.append(shade * abs(sentence - token), _SENTENCE if sentence > token else _TOKEN)
    return drawn.append(" " * (width - max(token, sentence)))


def _drawn_with(console: Console) -> tuple[str, str]:
    return ("#", "-") if console.options.ascii_only else ("█", "▒")


def _print_poolings(console: Console, result: PoolingResult) -> None:
    """The mean cosine under each pooling; the narrowest cone of a layer is bold."""
    narrowest = [
        max((level.anisotropy for level in row.poolings.values() if math.isfinite(level.anisotropy)), default=math.nan)
        for row in result.layers
    ]
    columns = [Column("layer", [str(row.layer) for row in result.layers])]
    for name in result.layers[0].poolings:
        values = [row.poolings[name].anisotropy for row in result.layers]
        pairs = zip(values, narrowest, strict=True)
        cells = [Text(number(value), "bold" if value == most else "") for value, most in pairs]
        columns.append(Column(spaced(name), cells))
    print_columns(console, columns)
    errors = [level.stderr for row in result.layers for level in row.poolings.values() if math.isfinite(level.stderr)]
    error = f"; s.e. at most {max(errors):.4f}" if errors else ""
    console.print(Text(f"mean cosine of two sentences under each pooling{error}", "dim"))
    for name, level in result.layers[-1].poolings.items():
        if level.reason:
            console.print(f"- {spaced(name)}: {level.reason}", style="yellow")
