"""A matplotlib figure measured in CSS pixels from its top left corner; the only module here that draws with matplotlib.

Whatever the reader has set in matplotlib neither changes a figure nor is changed by one: no pyplot, no global settings.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cone_kernels.report.inline import MINUS, Parts, plain
from cone_kernels.report.palette import INK, MUTED, PAPER, RULE

WIDE, NARROW = 736, 340
"""Widths of a figure on a page and on a phone, in CSS pixels."""
SMALL, NORMAL = 11.5, 12.5
"""Sizes of text, in CSS pixels."""

_INCH = 96.0  # CSS pixels
_POINT = 0.75  # points a CSS pixel
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cone_kernels",
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "figure.facecolor": PAPER,
    "savefig.facecolor": "auto",
    "text.color": INK,
    "hatch.linewidth": 0.6,
}


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's own defaults and ours, until the block ends."""
    with style.context(("default", _SETTINGS)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Letters that matplotlib's font lacks are drawn by the browser's.
        yield


class ReportFigure(Figure):
    """A figure that shows itself in a notebook without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_figure(buffer, format="png")
        return buffer.getvalue()


@dataclass(frozen=True)
class Hover:
    """A point of the data and what it says where a pointer rests on it."""

    ax: Axes
    at: tuple[float, float]
    parts: Parts
    series: str = ""


class Canvas:
    """A rectangle of a figure; every method takes pixels from its own top left corner.

    Attributes:
        width, height: of the rectangle.
        figure: the figure it lies in.
        labels: what each text of the figure with a number of the results says, by the text's gid.
        series: which of several series an artist belongs to, by the artist's gid; a page can hide a series.
        hovers: the points of the data that say their value where a pointer rests on them.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure: Figure = ReportFigure(figsize=(width / _INCH, height / _INCH))
        self.labels: dict[str, Parts] = {}
        self.series: dict[str, str] = {}
        self.hovers: list[Hover] = []
        self._left, self._top = 0.0, 0.0
        self._size = (width, height)

    def region(self, left: float, top: float, width: float, height: float) -> Canvas:
        """A rectangle of the same figure."""
        part = Canvas.__new__(Canvas)
        part.__dict__.update(self.__dict__, width=width, height=height, _left=self._left + left, _top=self._top + top)
        return part

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes with no frame and no ticks yet."""
        x, y = self._fraction(left, top + height)
        ax: Axes = self.figure.add_axes((x, y, width / self._size[0], height / self._size[1]))
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelsize=points(SMALL), labelcolor=MUTED, pad=4)
        ax.xaxis.set_major_locator(NullLocator())
        ax.yaxis.set_major_locator(NullLocator())
        ax.set_axisbelow(True)
        return ax

    def write(self, x: float, y: float, parts: Parts, *, halo: bool = False, **options: Any) -> None:
        """Text at a place of the rectangle; y is its baseline unless `va` says otherwise. A halo keeps lines off it."""
        chosen: dict[str, Any] = {"va": "baseline", "ha": "left", "fontsize": points(NORMAL), "color": INK, **options}
        drawn = self.figure.text(*self._fraction(x, y), plain(parts), **chosen)
        drawn.set_gid(self._remember(parts, halo))

    def note(
        self,
        ax: Axes,
        at: tuple[float, float],
        parts: Parts,
        *,
        dx: float = 0,
        dy: float = 0,
        halo: bool = True,
        series: str = "",
        **options: Any,
    ) -> None:
        """Text at a point of the data, moved by pixels to the right and upwards; it belongs to a series, if to any."""
        chosen: dict[str, Any] = {"va": "center", "ha": "left", "fontsize": points(SMALL), "color": INK, **options}
        chosen |= {"xytext": (points(dx), points(dy)), "textcoords": "offset points", "annotation_clip": False}
        gid = self._remember(parts, halo)
        ax.annotate(plain(parts), at, **chosen).set_gid(gid)
        if series:
            self.series[gid] = series

    def gid(self, series: str) -> str | None:
        """The gid of an artist that belongs to a series; None for one that belongs to none."""
        if not series:
            return None
        gid = f"series-{len(self.series)}"
        self.series[gid] = series
        return gid

    def _remember(self, parts: Parts, halo: bool) -> str:
        gid = f"{'halo' if halo else 'label'}-{len(self.labels)}"
        self.labels[gid] = parts
        return gid

    def _fraction(self, x: float, y: float) -> tuple[float, float]:
        return (self._left + x) / self._size[0], 1 - (self._top + y) / self._size[1]


def points(pixels: float) -> float:
    """CSS pixels as points, the unit of line widths and text sizes."""
    return pixels * _POINT


def scale(
    ax: Axes,
    low: float,
    high: float,
    *,
    axis: Literal["x", "y"] = "y",
    steps: int = 5,
    percent: bool = False,
    grid: bool = True,
) -> None:
    """Round ticks from about `low` to about `high`, on faint lines; the baseline at 0 is stronger."""
    found = MaxNLocator(nbins=steps, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high if high > low else low + 1)
    ticks = [float(tick) for tick in found]
    slack = (ticks[1] - ticks[0]) / 4  # a cosine of 1.00001 needs no tick at 1.5
    while len(ticks) > 2 and ticks[1] <= low + slack:
        ticks.pop(0)
    while len(ticks) > 2 and ticks[-2] >= high - slack:
        ticks.pop()
    decimals = _decimals([tick * (100 if percent else 1) for tick in ticks])
    along = ax.yaxis if axis == "y" else ax.xaxis
    along.set_major_locator(FixedLocator(ticks))
    along.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, decimals, percent)))
    (ax.set_ylim if axis == "y" else ax.set_xlim)(min(ticks[0], low), max(ticks[-1], high))
    if grid:
        ax.grid(axis=axis, color=RULE, linewidth=points(1), clip_on=False)
    if grid and ticks[0] <= 0 <= ticks[-1]:
        line = ax.axhline if axis == "y" else ax.axvline
        line(0, color=MUTED, linewidth=points(1), clip_on=False, zorder=1.5)


def layer_scale(ax: Axes, numbers: Sequence[int], width: float, *, margin: float = 0) -> None:
    """The layers from left to right, as many of them numbered as there is room for; first and last always."""
    step = next(
        step for step in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 96, len(numbers)) if len(numbers) / step * 26 <= width
    )
    ticks = [number for at, number in enumerate(numbers) if at % step == 0]
    if ticks[-1] != numbers[-1]:
        crowded = (len(numbers) - 1) % step <= step / 2 and len(ticks) > 1
        ticks = [*(ticks[:-1] if crowded else ticks), numbers[-1]]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    pad = margin or (0.5 if len(numbers) == 1 else 0)
    ax.set_xlim(numbers[0] - pad, numbers[-1] + pad)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions moved as little as it takes for neighbours to be `gap` apart, within `low` and `high`.

    Examples:
        >>> spread([5.0, 5.0], 2, 0, 10)
        [4.0, 6.0]
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    groups: list[tuple[float, int]] = []  # centre and size of runs of labels that touch
    for index in order:
        centre, size = min(max(positions[index], low), high), 1
        while groups and centre - groups[-1][0] < gap * (size + groups[-1][1]) / 2:
            other, others = groups.pop()
            centre, size = (centre * size + other * others) / (size + others), size + others
        groups.append((centre, size))
    placed = [centre + gap * (at - (size - 1) / 2) for centre, size in groups for at in range(size)]
    over = max(0.0, placed[-1] - high) if placed else 0.0
    for at in range(len(placed) - 1, -1, -1):
        placed[at] = min(placed[at], high - gap * (len(placed) - 1 - at)) if over else placed[at]
    for at in range(len(placed)):
        placed[at] = max(placed[at], low + gap * at)
    return [placed[order.index(index)] for index in range(len(positions))]


def _decimals(ticks: Sequence[float]) -> int:
    return next((digits for digits in range(10) if all(abs(round(tick, digits) - tick) < 1e-9 for tick in ticks)), 10)


def _tick(value: float, decimals: int, percent: bool) -> str:
    shown = f"{value * 100:.{decimals}f}%" if percent else f"{value:,.{decimals}f}"
    return shown.replace("-", MINUS)
