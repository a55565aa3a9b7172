"""Values as dots on stems from zero, a line of text to each: projections, correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cone_kernels.report.figures.canvas import SMALL, Canvas, points, scale
from cone_kernels.report.inline import Number, Parts
from cone_kernels.report.palette import INK, MUTED

_LABEL = 58  # room for a number next to a dot
_GAP = 14  # between groups


@dataclass(frozen=True)
class Stem:
    """One row: what it is, its value, its colour; `group` sets blocks of rows apart."""

    words: Parts
    value: Number
    colour: str
    group: int = 0


def stems_height(stems: Sequence[Stem], width: float, *, ticks: bool) -> float:
    """Pixels that `draw_stems` takes: on a phone the words stand above the stems."""
    row = 38 if width < 500 else 24
    return row * len(stems) + _GAP * (len({stem.group for stem in stems}) - 1) + (26 if ticks else 4)


def draw_stems(canvas: Canvas, stems: Sequence[Stem], *, room: float | None = None, ticks: bool = False) -> None:
    """Draws the rows from top to bottom.

    Args:
        canvas: as high as `stems_height` says.
        stems: rows in order; those of one group follow each other.
        room: pixels at the left for the words; None puts them on the other side of zero, where the stem is not.
        ticks: draw a scale from −1 to 1 below; else the values, which are all written out, set the scale.
    """
    narrow = canvas.width < 500
    left = 0 if narrow else room or 0
    row = 38 if narrow else 24
    width, height = canvas.width - left - 2 * _LABEL, canvas.height - (26 if ticks else 4)
    ax = canvas.axes(left + _LABEL, 0, width, height)
    ax.set_ylim(height, 0)
    values = [float(stem.value.node.number) for stem in stems if stem.value.node.known]
    furthest = max(map(abs, values), default=1.0) or 1.0
    if ticks:
        scale(ax, -1, 1, axis="x", steps=4)
    elif room is None:
        ax.set_xlim(-furthest, furthest)
    top, group = 0.0, stems[0].group
    for stem in stems:
        top += _GAP * (stem.group != group)
        group = stem.group
        y = top + (26 if narrow else row / 2)
        value = float(stem.value.node.number) if stem.value.node.known else 0.0
        if room is None and not narrow:
            side = ("right", -10) if value >= 0 else ("left", 10)
            canvas.note(ax, (0, y), stem.words, ha=side[0], dx=side[1])
        else:
            canvas.write(
                0, top + (13 if narrow else row / 2 + 4), stem.words, halo=True, fontsize=points(SMALL), color=INK
            )
        if stem.value.node.known:
            ax.plot([0, value], [y, y], color=stem.colour, linewidth=points(2), clip_on=False)
            ax.plot(value, y, "o", color=stem.colour, markersize=points(8), markeredgewidth=0, clip_on=False)
            ahead = value >= 0
            canvas.note(ax, (value, y), [stem.value], dx=9 if ahead else -9, ha="left" if ahead else "right")
        else:
            canvas.note(ax, (0, y), [stem.value], dx=9, color=MUTED)
        top += row
    if not ticks:
        ax.axvline(0, color=MUTED, linewidth=points(1), clip_on=False, zorder=1.5)
