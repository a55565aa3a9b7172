"""The table of tokens against sentences, and the table of the poolings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cone_kernels.names import spaced
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
    # Numbers are never cut: where they would be, bars and standard errors are not shown.
    wide = console.width >= 80
    width = min(36, _BAR_WIDTH + console.width - 80)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("layer", justify="right", no_wrap=True)
    for heading, style in (("token", _TOKEN), ("sentence", _SENTENCE)):
        table.add_column(heading, justify="right", no_wrap=True, style=style)
    if wide:
        table.add_column("", no_wrap=True)
    for heading in ("gap", "predicted"):
        table.add_column(heading, justify="right", no_wrap=True)
        if wide:
            table.add_column("s.e.", justify="right", style="dim", no_wrap=True)
    for heading in ("within", "between"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.layers:
        gap = f"{row.gap.value:+.4f}" if math.isfinite(row.gap.value) else "-"
        cells: list[str | Text] = [str(row.layer), number(row.token.anisotropy), number(row.sentence.anisotropy)]
        cells += [_gap_bar(row, width, console), gap, number(row.gap.stderr)] if wide else [gap]
        cells += [number(row.predicted.value), *([number(row.predicted.stderr)] if wide else [])]
        table.add_row(*cells, number(row.within.value), number(row.between.value))
    console.print(table)
    whole, shade = _drawn_with(console)
    bars = f", {shade} beside {whole}" if wide else ""
    legend = (
        "token, sentence: mean cosine of two of them" + ("; s.e.: standard error" if wide else ""),
        f"gap: what pooling adds{bars}; predicted: what averaging alone gives",
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", justify="right", no_wrap=True, vertical="bottom")
    for name in result.layers[0].poolings:
        table.add_column(spaced(name), justify="right", max_width=9)
    for row in result.layers:
        values = [level.anisotropy for level in row.poolings.values()]
        narrowest = max((value for value in values if math.isfinite(value)), default=math.nan)
        table.add_row(str(row.layer), *(Text(number(value), "bold" if value == narrowest else "") for value in values))
    console.print(table)
    errors = [level.stderr for row in result.layers for level in row.poolings.values() if math.isfinite(level.stderr)]
    error = f"; s.e. at most {max(errors):.4f}" if errors else ""
    console.print(Text(f"mean cosine of two sentences under each pooling{error}", "dim"))
    for name, level in result.layers[-1].poolings.items():
        if level.reason:
            console.print(f"- {spaced(name)}: {level.reason}", style="yellow")
