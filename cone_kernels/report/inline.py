"""What stands inside a line of the report: plain words, numbers and texts of the results, each with its origin."""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import TypeAlias

from cone_kernels.models.names import short_name
from cone_kernels.report.node import Node, place_within

MISSING = "–"
MINUS = "\u2212"
_EXACT = Context(prec=1100)  # digits that any float has at most
_RAISED = str.maketrans(f"{MINUS}0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Number:
    """A number of the results and how it is shown; made by the functions below."""

    node: Node
    shown: str
    minor: bool = False


@dataclass(frozen=True)
class Text:
    """A string of the results, shown as it is; `shown` may be the end of it (a model's name without its folder)."""

    node: Node
    shown: str
    code: bool = False


@dataclass(frozen=True)
class Key:
    """Where a value stands in the results: the last parts of its pointer, joined by dots."""

    node: Node
    parts: int = 1

    @property
    def shown(self) -> str:
        """The names, or the places in a list."""
        names = self.node.pointer.split("/")[-self.parts :]
        return ".".join(name.replace("~1", "/").replace("~0", "~") for name in names)


Inline: TypeAlias = str | Number | Text | Key
Parts: TypeAlias = Sequence[Inline]


def fixed(node: Node, digits: int = 4, *, sign: bool = False) -> Number:
    """A number with a fixed count of decimals: cosines.

    Examples:
        >>> fixed(Node(-0.04567), 2).shown
        '−0.05'
    """
    if not node.known:
        return Number(node, MISSING)
    return Number(node, _with_minus(f"{node.number:{'+' if sign else ''}.{digits}f}"))


def stderr(node: Node, digits: int = 4) -> Number:
    """A standard error: as many decimals as its value has, or one significant digit where it would show as zero."""
    tiny = node.known and 0 < node.number < 0.5 * 10**-digits
    return Number(node, (significant(node, 1) if tiny else fixed(node, digits)).shown, minor=True)


def count(node: Node) -> Number:
    """A whole number, with separators."""
    if not node.known:
        return Number(node, MISSING)
    if node.number != int(node.number):
        raise ValueError(f"results: {node.pointer} is {node.value}; it must be a whole number")
    return Number(node, _with_minus(f"{node.number:,.0f}"))


def percent(node: Node, digits: int = 1) -> Number:
    """A share of one as a percentage."""
    if not node.known:
        return Number(node, MISSING)
    # A product of two floats is rounded once before it is rounded to be shown.
    exact = _EXACT.multiply(Decimal(node.number), 100)
    return Number(node, _with_minus(f"{exact:.{digits}f}%"))


def significant(node: Node, digits: int = 4) -> Number:
    """A number of any size, with so many significant digits."""
    if not node.known:
        return Number(node, MISSING)
    value = node.number
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return count(node)
    if 10 ** -max(digits, 1) <= abs(value) < 1e7:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return Number(node, _with_minus(f"{value:,.{decimals}f}"))
    mantissa, exponent = f"{value:.{min(digits, 2) - 1}e}".split("e")
    raised = str(int(exponent)).replace("-", MINUS).translate(_RAISED)
    return Number(node, f"{mantissa.replace('-', MINUS)}×10{raised}")


def estimate(value: Node, error: Node, digits: int = 4, *, sign: bool = False) -> Parts:
    """A value ± its standard error."""
    if not value.known and not error.known:
        return (fixed(value),)
    return (fixed(value, digits, sign=sign), " ± ", stderr(error, digits))


def text(node: Node) -> Text:
    """A string of the results, whole."""
    return Text(node, node.text if node.known else MISSING)


def code(node: Node) -> Text:
    """A string of the results in which every blank counts: tokens, names of modules."""
    return Text(node, node.text if node.known else MISSING, code=True)


def name(model: Node) -> Text:
    """The last part of a model's folder or hub id; the last two where the last one says nothing."""
    node = model["name"]
    return Text(node, short_name(node.text))


def markup(parts: Parts, place: str = "") -> str:
    """The parts as HTML: each number in `<data>` with its full value, each with its place in the results.

    Args:
        parts: what is shown.
        place: what the nearest element around it with `data-in` has there: places are told from there on.
    """
    return "".join(_element(part, place) for part in parts)


def nodes_of(parts: Parts) -> list[Node]:
    """The places in the results that the parts are of."""
    return [part.node for part in parts if not isinstance(part, str)]


def plain(parts: Parts) -> str:
    """The parts as plain text."""
    return "".join(part if isinstance(part, str) else part.shown for part in parts)


def escape(words: str) -> str:
    """Text as HTML. NUL, which HTML cannot hold, becomes U+FFFD, as a browser would show it."""
    return html.escape(words.replace("\0", "\ufffd"))


def full(node: Node) -> str:
    """The value as the JSON file has it; empty for null."""
    return "" if not node.known else node.value if isinstance(node.value, str) else json.dumps(node.value)


def one_line(words: str, width: int) -> str:
    """The text in one line of at most `width` columns, cut with an ellipsis; what cannot be drawn is U+FFFD."""
    spaced = " ".join(words.split())
    drawn = "".join("\ufffd" if unicodedata.category(letter) in ("Cc", "Cs", "Cn") else letter for letter in spaced)
    columns = 0
    for at, letter in enumerate(drawn):
        columns += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if columns > width:
            return drawn[: max(0, at - 1)].rstrip() + "…"
    return drawn


def joined(items: Sequence[Parts], last: str = " and ") -> Parts:
    """A list in words: a, b and c."""
    parts: list[Inline] = []
    for at, item in enumerate(items):
        parts += [] if at == 0 else [last if at == len(items) - 1 else ", "]
        parts += item
    return parts


def _with_minus(shown: str) -> str:
    """The number with a minus sign in place of a hyphen, and without one where all its digits are 0."""
    return shown.replace("-", MINUS if shown.strip("-0.%") else "")


def _element(part: Inline, place: str) -> str:
    if isinstance(part, str):
        return escape(part)
    pointer = escape(place_within(part.node.pointer, place))
    if isinstance(part, Key):
        return f'<span data-key="{pointer}">{escape(part.shown)}</span>'
    at = f'data-at="{pointer}"'
    if not part.node.known:
        return f'<span class="null" title="not defined" {at}>{MISSING}</span>'
    if isinstance(part, Text):
        opened = f'<bdi {at} class="code">' if part.code else f"<bdi {at}>"
        # Long names may break after a slash or an underscore.
        shown = escape(part.shown) if part.code else re.sub("([/_])", r"\1<wbr>", escape(part.shown))
        return f"{opened}{shown}</bdi>"
    minor = ' class="minor"' if part.minor else ""
    return f'<data value="{escape(full(part.node))}" {at}{minor}>{escape(part.shown)}</data>'
