"""Words that figures and tables share, besides the names of `cone_kernels.names`."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase

from cone_kernels.names import METHODS, OUTPUT
from cone_kernels.report.inline import Inline, Parts, count, fixed, name, text
from cone_kernels.report.node import Node

_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    *("eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth"),
    "nineteenth",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class Matrix:
    """One of the matrices of `rotation`: its key in the results, its question, how to read it, its table's title."""

    key: str
    title: str
    caption: str
    table: str


MATRICES = (
    Matrix(
        "axis_cosine",
        "Do the cone axes agree?",
        "|cos| of the first centred axes: 1 is the same direction, 0 a right angle.",
        "|cos| of the cone axes",
    ),
    Matrix(
        "mean_cosine",
        "Do the mean directions agree?",
        "|cos| of the mean directions.",
        "|cos| of the mean directions",
    ),
    Matrix(
        "centered_anisotropy",
        "Does one model's mean centre another?",
        "Anisotropy of the model of the row after the mean of the model of the column is taken away; near 0 the cone "
        "is gone.",
        "Anisotropy of each row after the mean of each column, ± standard errors",
    ),
    Matrix(
        "functional_cosine",
        "Do the axes order sentences alike?",
        "|correlation| of the projections of the same sentences on the two axes; models of different width "
        "compare too.",
        "|correlation| of the projections on the axes",
    ),
)


def measured_poolings(result: Node) -> list[str]:
    """The poolings that were asked for, in the order of the results."""
    return [key for key, _ in result["layers"][0].get("poolings").items()]


def widest_gap(result: Node) -> Node | None:
    """The layer of a result of `pooling` at which pooling changes the cone most; None where it is defined nowhere."""
    defined = [row for row in result["layers"] if row["gap"].get("value").known]
    return max(defined, key=lambda row: abs(row["gap"]["value"].number), default=None)


def ordinal(number: int) -> str:
    """first, second, ..., ninety-ninth: in words, because every digit in a table must come from the results."""
    if number < 20:
        return _ORDINALS[number - 1]
    tens, ones = divmod(number, 10)
    if tens > 9:
        return f"{number}th"
    stem = _TENS[tens - 2]
    return f"{stem}-{_ORDINALS[ones - 1]}" if ones else f"{stem.removesuffix('y')}ieth"


def letter(at: int) -> str:
    """A, B, ..., Z, AA, ...: the models as columns of a matrix."""
    first, second = divmod(at, len(ascii_uppercase))
    return (ascii_uppercase[first - 1] if first else "") + ascii_uppercase[second]


def chance(result: Node) -> Parts | None:
    """What two random directions would give, from the least to the largest of the pairs."""
    null = result.get("null").entries
    pairs = [null[i][j] for i in range(len(null)) for j in range(len(null)) if i != j and null[i][j].known]
    if not pairs:
        return None
    low, high = (pick(pairs, key=lambda pair: pair["p95"].number) for pick in (min, max))
    parts: list[Inline] = ["Of pairs of random directions in that width 95 in 100 stay below ", fixed(low["p95"], 3)]
    if low["p95"].value != high["p95"].value:
        parts += [" to ", fixed(high["p95"], 3), ", depending on the width"]
    return [*parts, "."]


def place(layer: Node) -> Parts:
    """A layer in a sentence: "layer 6", or "the output"."""
    return ["the ", text(layer)] if layer.value == OUTPUT else ["layer ", count(layer)]


def layer_cell(layer: Node) -> Parts:
    """A layer in a column of layers: "6", or "output"."""
    return [text(layer)] if layer.value == OUTPUT else [count(layer)]


def centering_model(result: Node) -> Parts:
    """Whose vectors are centred, and where."""
    return [name(result["model"]), ", ", *place(result["layer"])]


def after_centering(result: Node) -> Node:
    """The anisotropy after a centring: on sentences that it was not fitted on, where that was measured."""
    return result["held_out"] if result.get("held_out").known else result.get("after")


def centering_method(result: Node) -> Parts:
    """How they are centred."""
    method, top = result["method"], result.get("components")
    words: Inline = METHODS[method.text].label if method.text in METHODS else text(method)
    return [words, " ", count(top)] if top.known and method.text == "all-but-the-top" else [words]


def deployed_quality(model: Node) -> Node | None:
    """The row of a model's quality on pairs that says most of what is deployed: the output's, else the last layer's.

    Args:
        model: one of a run's.
    """
    rows = model.get("quality").get("layers").entries
    return next((row for row in rows if row["layer"].value == OUTPUT), rows[-1] if rows else None)
