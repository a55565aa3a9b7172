"""A matplotlib figure as SVG inside an HTML page: colours from the page's CSS variables, traced numbers."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import groupby

from matplotlib.figure import Figure

from cone_kernels.report.figures.canvas import Canvas, Hover, drawing
from cone_kernels.report.inline import Inline, Number, Parts, escape, full, markup, nodes_of, plain
from cone_kernels.report.node import common_place, place_within
from cone_kernels.report.palette import VARIABLES

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_DROPPED = ("font-family", "stroke-linejoin")  # the page's own font; joints by the page's style sheet
_INCH = 72.0  # units of matplotlib's SVG
_UNSEEN = "fill: none"  # what matplotlib draws behind everything
_FILLED = re.compile(r"fill: (#[0-9a-fA-F]{6})")
# matplotlib's marker "o", and its radius.
_DISC = re.compile(r"M 0 ([\d.]+) C(?: [-\d.]+){6}(?: C(?: [-\d.]+){6}){7} z")
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(
    canvas: Canvas, prefix: str, title: str, description: Parts, least_width: float = 0, *, hovers: bool = True
) -> str:
    """The figure as an `<svg>` element that scales with the page; the same figure gives the same bytes.

    Args:
        canvas: a canvas drawn by our panels, whose every colour is one of the palette's.
        prefix: of every id in it; unique on the page.
        title, description: what a reader hears who does not see the figure.
        least_width: pixels below which it would not be readable.
        hovers: points say their values where a pointer rests on them; a phone has no pointer.
    """
    buffer = io.StringIO()
    with drawing():
        canvas.figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    root = ET.fromstring(buffer.getvalue())
    box = root.attrib["viewBox"]
    place = common_place(
        [
            *nodes_of(description),
            *(node for parts in canvas.labels.values() for node in nodes_of(parts)),
            *(node for point in canvas.hovers for node in nodes_of(point.parts)),
        ]
    )
    within = f' data-in="{escape(place)}"' if place else ""
    widths = f"--width: {canvas.width:g}px; --least: {least_width:g}px"
    shapes = _Shapes(root)
    drawn = [child for child in root if child.tag in (f"{_SVG}g", f"{_SVG}defs")]
    body = "".join(_rendered(child, canvas, prefix, place, shapes) for child in drawn)
    body += "".join(_hover(point, canvas.figure, place) for point in canvas.hovers) if hovers else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="{box}" style="{widths}"{within} '
        f'aria-labelledby="{prefix}-title {prefix}-desc"><title id="{prefix}-title">{escape(title)}</title>'
        f'<desc id="{prefix}-desc">{markup(description, place)}</desc>{body}</svg>'
    )


def _rendered(
    element: ET.Element, canvas: Canvas, prefix: str, place: str, shapes: _Shapes, *, tick: bool = False
) -> str:
    tag = element.tag.removeprefix(_SVG)
    gid = element.get("id", "")
    tick = tick or gid.startswith(("xtick_", "ytick_"))
    if tag == "style":  # matplotlib's rule for "*" would reach the whole page
        return ""
    if tag == "text":
        kind = ' class="tick"' if tick else ""
        return f"<text{_attributes(element, prefix)}{kind}>{escape(element.text or '')}</text>"
    series = f' data-series="{escape(canvas.series[gid])}"' if gid in canvas.series else ""
    if gid in canvas.labels:
        kind = f'class="{gid.partition("-")[0]}"{series}'
        return "".join(_label(text, canvas.labels[gid], prefix, place, kind) for text in element.iter(f"{_SVG}text"))
    if tag == "path" and (element.get("style") == _UNSEEN or not shapes.kept(element)):
        return ""
    children = shapes.drawn(element)
    inner = "".join(_rendered(child, canvas, prefix, place, shapes, tick=tick) for child in children)
    if tag in ("g", "defs"):
        attributes = "" if tag == "defs" else _attributes(element, prefix) + series
        return (f"<{tag}{attributes}>{inner}</{tag}>" if attributes or tag == "defs" else inner) if inner else ""
    return f"<{tag}{_attributes(element, prefix)}>{inner}</{tag}>"


class _Shapes:
    """The shapes that a drawing of matplotlib defines and then uses; a dot, or what is used once, is drawn itself."""

    def __init__(self, root: ET.Element) -> None:
        self._defined = {
            shape.get("id", ""): shape for defs in root.iter(f"{_SVG}defs") for shape in defs.iter(f"{_SVG}path")
        }
        self._uses = Counter(_used(use) for use in root.iter(f"{_SVG}use"))

    def kept(self, shape: ET.Element) -> bool:
        """Whether what `drawn` gives refers to a definition."""
        name = shape.get("id", "")
        return name not in self._defined or (self._uses[name] > 1 and self._radius(name) is None)

    def drawn(self, group: ET.Element) -> list[ET.Element]:
        """The children of a group, with a path in place of a use, and one path in place of a row of dots."""
        found = []
        for (name, style), some in groupby(group, lambda child: (_used(child), child.get("style", ""))):
            children = list(some)
            radius = self._radius(name)
            if radius is not None and (fill := _FILLED.fullmatch(style.strip())):
                dots = " ".join(f"M {use.get('x')} {use.get('y')} h 0" for use in children)
                ends = f"stroke: {fill[1]}; stroke-width: {2 * radius:g}; stroke-linecap: round"
                found.append(ET.Element(f"{_SVG}path", {"d": dots, "style": ends}))
            elif name in self._defined and not self.kept(self._defined[name]):
                shape = self._defined[name]
                both = "; ".join(filter(None, (style, shape.get("style"))))
                for use in children:
                    moved = {"transform": f"translate({use.get('x')} {use.get('y')})", "style": both}
                    found.append(ET.Element(f"{_SVG}path", {"d": shape.get("d", ""), **moved}))
            else:
                found += children
        return found

    def _radius(self, name: str) -> float | None:
        """That of a shape that is a disc around 0 without a line of its own."""
        shape = self._defined.get(name)
        disc = None if shape is None or shape.get("style") else _DISC.fullmatch(" ".join(shape.get("d", "").split()))
        return None if disc is None else float(disc[1])


def _used(element: ET.Element) -> str:
    """The name of the shape that an element uses; empty where it is no use."""
    return element.get(f"{_XLINK}href", "").removeprefix("#") if element.tag == f"{_SVG}use" else ""


def _label(element: ET.Element, parts: Parts, prefix: str, place: str, kind: str) -> str:
    return f"<text{_attributes(element, prefix)} {kind}>{''.join(_span(part, place) for part in parts)}</text>"


def _hover(point: Hover, figure: Figure, place: str) -> str:
    """A disc that is not seen, with its words as a tooltip; where each of its numbers comes from, in their order."""
    x, y = (float(value) * _INCH / figure.dpi for value in point.ax.transData.transform(point.at))
    places = " ".join(place_within(part.node.pointer, place) for part in point.parts if isinstance(part, Number))
    series = f' data-series="{escape(point.series)}"' if point.series else ""
    return (
        f'<circle class="hover" cx="{x:.2f}" cy="{figure.get_figheight() * _INCH - y:.2f}" r="6" '
        f'data-from="{escape(places)}"{series}><title>{escape(plain(point.parts))}</title></circle>'
    )


def _span(part: Inline, place: str) -> str:
    if isinstance(part, str):
        return escape(part)
    value = f' data-value="{escape(full(part.node))}"' if isinstance(part, Number) and part.node.known else ""
    return f'<tspan data-at="{escape(place_within(part.node.pointer, place))}"{value}>{escape(part.shown)}</tspan>'


def _attributes(element: ET.Element, prefix: str) -> str:
    found = []
    for name, value in element.attrib.items():
        name = name.removeprefix(_XLINK)
        if name == "id":
            # Groups are numbered by matplotlib; only what is referred to keeps its name.
            if element.tag == f"{_SVG}g":
                continue
            value = f"{prefix}-{value}"
        elif name == "href":
            value = f"#{prefix}-{value.removeprefix('#')}"
        elif name == "transform" and value.startswith("rotate(-0 "):
            continue
        elif name == "style":
            value = _style(value)
        elif name not in ("text-anchor", "class", "viewBox"):
            value = _short(value)
        value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value)
        found.append(f' {name}="{escape(value)}"')
    return "".join(found)


def _short(coordinates: str) -> str:
    """Coordinates, a path or a transformation to a tenth of a unit, which is less than a seventh of a pixel."""
    rounded = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), coordinates)
    return re.sub(r" ?\b([MLCQHVhz])\b ?", r"\1", " ".join(re.sub(r"-0\b(?!\.)", "0", rounded).split()))


def _style(value: str) -> str:
    rules = dict(rule.strip().split(": ", 1) for rule in value.split(";") if rule.strip())
    # Older versions of matplotlib write weight, size and family as one rule.
    font = re.match(r"(?:(?P<weight>\d+) )?(?P<size>[\d.]+px) ", rules.pop("font", ""))
    rules |= {f"font-{part}": rule for part, rule in (font.groupdict() if font else {}).items() if rule}
    kept = "; ".join(f"{name}: {rule}" for name, rule in rules.items() if name not in _DROPPED)
    # A colour that is not of the palette would not follow the scheme: KeyError.
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda colour: VARIABLES[colour[0].lower()], kept)
