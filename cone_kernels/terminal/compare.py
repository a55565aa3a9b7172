"""The table of two states compared, an arrow where a change is more than chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cone_kernels.terminal.columns import Column, print_columns
from cone_kernels.terminal.console import number

if TYPE_CHECKING:
    from cone_kernels.experiments.compare_result import Change, CompareResult

_ROSE, _FELL = "magenta", "cyan"


def print_compare(console: Console, result: CompareResult) -> None:
    """The two states, the change of every layer with its error, what lies behind it, and the plain sentences."""
    for letter, state in (("a", result.a), ("b", result.b)):
        console.print(f"{letter}: {_described(state)}", style="bold", markup=False, soft_wrap=True)
    how = "paired by jackknife group" if result.paired else "unpaired"
    console.print(f"{how}: {result.pairing}", style="dim", soft_wrap=True)
    console.print()
    _print_levels(console, result)
    console.print()
    if not result.of_vectors:
        _print_token_pairs(console, result)
    for reason in dict.fromkeys(one.reason for row in result.layers for one in row.changes().values() if one.reason):
        console.print(f"- is not defined: {reason}", style="yellow")
    console.print()
    for line in result.summary():
        console.print(line, markup=False)


def _described(state: dict[str, Any]) -> str:
    weights = state["model"].get("weights_sha256")
    parts = [str(state["model"].get("architecture") or "unknown model"), str(state["model"].get("dtype") or "")]
    parts.append(f"weights {weights[:12]}" if isinstance(weights, str) else "")
    if "vectors" in state["model"]:
        parts = [f"{state['sentences']:,} vectors", f"{state['model']['vectors'].get('dim')} wide"]
    else:
        parts += [f"{state['sentences']:,} sentences", f"{state['tokens']:,} tokens"]
    return f"{state['name']} ({', '.join(part for part in parts if part)})"


def _print_levels(console: Console, result: CompareResult) -> None:
    with_axes = any(not math.isnan(row.axis.cosine) for row in result.layers)
    cosines = ("axis", "mean") if with_axes else ("mean",)
    rows = result.layers
    columns = [
        Column("layer", [str(row.layer) for row in rows]),
        Column("a", [number(row.sentence.a) for row in rows]),
        Column("b", [number(row.sentence.b) for row in rows]),
        Column("b - a", [_drawn(row.sentence, console) for row in rows]),
        Column("s.e.", [number(row.sentence.stderr) for row in rows], style="dim"),
        Column("p", [_p_value(row.sentence.p_adjusted) for row in rows]),
    ]
    if not result.of_vectors:
        columns.append(Column("token", [_drawn(row.token, console) for row in rows]))
        columns.append(Column("gap", [_drawn(row.gap, console) for row in rows]))
    for name in cosines:
        turns = [getattr(row, name) for row in rows]
        cells = [Text(number(turn.cosine), "" if turn.known else "dim") for turn in turns]
        columns.append(Column(name, cells))
    print_columns(console, columns)
    rose, fell = _arrows(console)
    random = result.random_cosine
    kind = "vectors" if result.of_vectors else "sentences"
    at_any = f" at any of {len(result.layers)} layers" if not result.of_vectors else ""
    legend = [
        f"a, b: mean cosine of two {kind}; s.e.: standard error of b - a",
        f"p: chance of such a change{at_any}; {rose} {fell}: below {result.alpha:g}",
    ]
    if not result.of_vectors:
        legend.append("token: change of the mean cosine of two tokens; gap: change of what pooling adds")
    what = "axis, mean: |cos| of the two" if with_axes else "mean: |cos| of the two"
    legend.append(f"{what}; of random directions 95% are below {random.p95:.3f}")
    console.print(Text("\n".join(legend), "dim"))


def _print_token_pairs(console: Console, result: CompareResult) -> None:
    rows = [row for row in result.layers if row.within is not None]
    columns = [Column("layer", [str(row.layer) for row in rows])]
    for name in ("within", "between", "predicted"):
        columns.append(Column(name, [_drawn(getattr(row, name), console) for row in rows]))
    print_columns(console, columns)
    legend = (
        "change of the mean cosine of two tokens of one sentence, of two sentences",
        "predicted: change of the mean cosine of two sentences that averaging alone gives",
    )
    console.print(Text("\n".join(legend), "dim"))


def _drawn(change: Change | None, console: Console) -> Text:
    """The difference, with an arrow where it is significant; nothing of what the output has not."""
    if change is None:
        return Text()
    if math.isnan(change.difference):
        return Text("-")
    value = f"{change.difference:+.4f}"
    if not change.significant:
        return Text(value, "dim")
    rose = change.difference > 0
    return Text(f"{_arrows(console)[0 if rose else 1]} {value}", _ROSE if rose else _FELL)


def _arrows(console: Console) -> tuple[str, str]:
    return ("^", "v") if console.options.ascii_only else ("▲", "▼")


def _p_value(p: float) -> str:
    return "<.0001" if p < 0.0001 else number(p)
