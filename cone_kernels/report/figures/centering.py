"""Figure of the fix: the anisotropy as it is and after each centring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes

from cone_kernels.report.figures.canvas import SMALL, Canvas, points, scale
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.figures.quality import quality_panels
from cone_kernels.report.inline import Parts, fixed
from cone_kernels.report.node import Node, known
from cone_kernels.report.palette import GREEN, INK, ORANGE
from cone_kernels.report.words import after_centering, centering_method, centering_model

_HEAD, _ROW, _BAR, _GAP, _SCALE = 26, 26, 16, 12, 26
_CAPTION = (
    "Anisotropy of the sentence vectors, with lines of two standard errors on both sides: after the fix it is that of "
    "sentences which it was not fitted on."
)
_NUMBER = 64  # room for the number next to the longest bar


def panels(result: Node) -> list[Panel]:
    """The figure of one centring, and that of what labelled pairs say of it."""
    return centering_panels([result]) + quality_panels(result.get("quality"))


def centering_panels(results: Sequence[Node]) -> list[Panel]:
    """One figure for all centrings; none without a number."""
    drawn = [result for result in results if result.get("before").get("value").known]
    if not drawn:
        return []
    groups = [list(group) for _, group in groupby(drawn, key=_subject)]
    return [
        Panel(
            "centering",
            "The cone as it is and after the fix",
            [_CAPTION if any(result.get("held_out").known for result in drawn) else f"{_CAPTION.partition(':')[0]}."],
            [part for result in drawn for part in _description(result)],
            lambda width: sum(_HEAD + _ROW * (len(group) + 1) + _GAP for group in groups) + _SCALE,
            lambda canvas: _draw(canvas, groups),
        )
    ]


def _subject(result: Node) -> tuple[object, ...]:
    """What is centred: centrings of the same vectors share one bar, of the vectors as they are."""
    before = result["before"]
    return result["model"]["name"].value, result["layer"].value, before["value"].value, before.get("stderr").value


def _description(result: Node) -> Parts:
    words = [*centering_model(result), ", ", *centering_method(result), ": before "]
    before, after = (found.get("value") for found in (result["before"], after_centering(result)))
    return [*words, fixed(before, 3), ", after ", fixed(after, 3), ". "]


def _draw(canvas: Canvas, groups: Sequence[Sequence[Node]]) -> None:
    left = 108 if canvas.width < 500 else 150
    height = canvas.height - _SCALE
    ax = canvas.axes(left, 0, canvas.width - left - _NUMBER, height)
    ax.set_ylim(height, 0)
    found = [one for group in groups for result in group for one in (result["before"], after_centering(result))]
    bounds = [bound for estimate in found for bound in _bounds(estimate)]
    scale(ax, min([0.0, *bounds]), max(bounds), axis="x", steps=4 if canvas.width < 500 else 6)
    top: float = 0
    for group in groups:
        canvas.write(0, top + 15, centering_model(group[0]), halo=True, weight="bold", fontsize=points(SMALL))
        top += _HEAD
        bars: list[tuple[Parts, Node, str]] = [(["as it is"], group[0]["before"], ORANGE)]
        bars += [(centering_method(result), after_centering(result), GREEN) for result in group]
        for words, estimate, colour in bars:
            canvas.write(0, top + _ROW / 2 + 4, words, fontsize=points(SMALL))
            _draw_bar(canvas, ax, estimate, colour, top + _ROW / 2)
            top += _ROW
        top += _GAP


def _draw_bar(canvas: Canvas, ax: Axes, estimate: Node, colour: str, y: float) -> None:
    value, error = estimate.get("value"), estimate.get("stderr")
    if value.known:
        ax.barh(y, float(value.number), _BAR, color=colour, alpha=0.8, linewidth=0, clip_on=False)
    if known(value, error):
        low, high = _bounds(estimate)
        ax.plot([low, high], [y, y], color=INK, linewidth=points(1.25), clip_on=False)
    end = max([0.0, *_bounds(estimate)])
    canvas.note(ax, (end, y), [fixed(value, 3)], dx=6)


def _bounds(estimate: Node) -> list[float]:
    """How far the bar and the line over it reach."""
    value, error = estimate.get("value"), estimate.get("stderr")
    if not value.known:
        return []
    spread = 2 * float(error.number) if error.known else 0.0
    return [float(value.number) - spread, float(value.number) + spread]
