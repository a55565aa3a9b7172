"""The two consoles, and how numbers and bars are drawn on them."""

from __future__ import annotations

import math

from rich.console import Console

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def stdout_console() -> Console:
    """The console for results."""
    return Console(highlight=False, soft_wrap=False)


def stderr_console() -> Console:
    """The console for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


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
