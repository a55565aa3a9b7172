"""A key above axes: a square in the colour of each series, and its name."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.report.figures.canvas import SMALL, Canvas, points
from cone_kernels.report.inline import Parts, plain
from cone_kernels.report.palette import INK

_LINE = 18
_LETTER, _SQUARE, _GAP = 6.4, 13, 16  # pixels, of a letter on average


def draw_key(canvas: Canvas, entries: Sequence[tuple[str, Parts]], top: float) -> None:
    """Draws it.

    Args:
        canvas: what it is drawn on.
        entries: colour and name of each series.
        top: of the baseline of the first line.
    """
    for (colour, words), (x, line) in zip(entries, _places(entries, canvas.width), strict=True):
        y = top + line * _LINE
        canvas.write(x, y, ["■"], fontsize=points(SMALL), color=colour)
        canvas.write(x + _SQUARE, y, words, fontsize=points(SMALL), color=INK)


def key_height(entries: Sequence[tuple[str, Parts]], width: float) -> float:
    """Pixels that it takes at a width."""
    places = _places(entries, width)
    return _LINE * (places[-1][1] + 1) if places else 0


def _places(entries: Sequence[tuple[str, Parts]], width: float) -> list[tuple[float, int]]:
    """Where each entry begins, and in which line: a line that is full is followed by another."""
    places, x, line = [], 0.0, 0
    for _, words in entries:
        room = _SQUARE + _LETTER * len(plain(words)) + _GAP
        if x and x + room > width:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += room
    return places
