"""A panel: one drawing of a result with its title, its caption and what it says to those who do not see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from cone_kernels.report.figures.canvas import NARROW, NORMAL, WIDE, Canvas, drawing, points
from cone_kernels.report.figures.svg import inline_svg
from cone_kernels.report.inline import Parts, escape, markup

_TITLE = 34  # pixels above a panel of a stack
_GAP = 26


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        name: short and unique within a result; part of ids.
        title: what is drawn.
        caption: how to read it.
        description: what it shows, in words and numbers, for those who do not see it.
        height: pixels that it takes at a width.
        draw: draws it on a canvas of that size.
        least_width: pixels below which it would not be readable; a page scrolls it sideways instead.
    """

    name: str
    title: str
    caption: Parts
    description: Parts
    height: Callable[[float], float]
    draw: Callable[[Canvas], None]
    least_width: float = 0


def stacked(panels: Sequence[Panel]) -> Figure:
    """The panels one above the other in one matplotlib figure."""
    width = max(WIDE, *(panel.least_width for panel in panels))
    heights = [_TITLE + panel.height(width) for panel in panels]
    with drawing():
        margin = 16
        canvas = Canvas(width + 2 * margin, sum(heights) + _GAP * (len(panels) - 1) + 2 * margin)
        top: float = margin
        for panel, height in zip(panels, heights, strict=True):
            canvas.write(margin, top + 15, [panel.title], weight="bold", fontsize=points(NORMAL + 1.5))
            panel.draw(canvas.region(margin, top + _TITLE, width, height - _TITLE))
            top += height + _GAP
        # Ticks are made when they are first drawn, with the settings of that moment.
        canvas.figure.draw_without_rendering()
    return canvas.figure


def figure_html(panel: Panel, prefix: str, *, narrow: bool) -> str:
    """The panel as `<figure>`: drawn once for a page and, where asked for, once for a phone; the style shows one."""
    drawn = {"drawing wide": WIDE, "drawing narrow": NARROW} if narrow else {"drawing": WIDE}
    images = "".join(
        f'<div class="{kind}">{_svg(panel, width, f"{prefix}-{width}", hovers=width > NARROW)}</div>'
        for kind, width in drawn.items()
    )
    title = f'<p class="figure-title">{escape(panel.title)}</p>'
    caption = f"<figcaption>{markup(panel.caption)}</figcaption>" if panel.caption else ""
    return f"<figure>{title}{images}{caption}</figure>"


def _svg(panel: Panel, width: float, prefix: str, *, hovers: bool) -> str:
    width = max(width, panel.least_width)
    with drawing():
        canvas = Canvas(width, panel.height(width))
        panel.draw(canvas)
        return inline_svg(canvas, prefix, panel.title, panel.description, panel.least_width, hovers=hovers)
