"""The two consoles, and how numbers and bars are drawn on them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class _PlainConsole(Console):
    """A console on which text from files cannot act: what would move its cursor or recolour it is a mark."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed, those of text without control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def stdout_console() -> Console:
    """The console for results."""
    return _PlainConsole(highlight=False, soft_wrap=False)


def stderr_console() -> Console:
    """The console for progress, notes and errors."""
    return _PlainConsole(stderr=True, highlight=False)


def printable(text: str) -> str:
    """A text with marks in place of control characters, but for line feeds, and of halves of characters.

    Examples:
        >>> printable("\x1b[31mred")
        '\ufffd[31mred'
    """
    return _CONTROLS.sub("\ufffd", text)


def bar(value: float, width: int, console: Console) -> str:
    """A bar of `width` cells for 1, empty for values at or below 0."""
    if not math.isfinite(value):
        return ""
    eighths = round(min(max(value, 0.0), 1.0) * width * 8)
    if console.options.ascii_only:
        return "#" * (eighths // 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(width)


def number(value: float) -> str:
    """Four decimals, or a dash for what is not defined."""
    return f"{value:.4f}" if math.isfinite(value) else "-"
