"""A matplotlib figure as SVG inside an HTML page: colours from the page's CSS variables, traced numbers."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

from matplotlib.figure import Figure

from cone_kernels.report.figures.canvas import Canvas, Hover, drawing
from cone_kernels.report.inline import Inline, Number, Parts, escape, full, markup, plain
from cone_kernels.report.palette import VARIABLES

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_DROPPED = ("font-family", "stroke-linejoin")  # the page's own font; joints by the page's style sheet
_INCH = 72.0  # units of matplotlib's SVG
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
    widths = f"--width: {canvas.width:g}px; --least: {least_width:g}px"
    body = "".join(_rendered(child, canvas, prefix) for child in root if child.tag in (f"{_SVG}g", f"{_SVG}defs"))
    body += "".join(_hover(point, canvas.figure) for point in canvas.hovers) if hovers else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="{box}" style="{widths}" '
        f'aria-labelledby="{prefix}-title {prefix}-desc"><title id="{prefix}-title">{escape(title)}</title>'
        f'<desc id="{prefix}-desc">{markup(description)}</desc>{body}</svg>'
    )


def _rendered(element: ET.Element, canvas: Canvas, prefix: str, *, tick: bool = False) -> str:
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
        return "".join(_label(text, canvas.labels[gid], prefix, kind) for text in element.iter(f"{_SVG}text"))
    inner = "".join(_rendered(child, canvas, prefix, tick=tick) for child in element)
    if tag in ("g", "defs"):
        attributes = "" if tag == "defs" else _attributes(element, prefix) + series
        return (f"<{tag}{attributes}>{inner}</{tag}>" if attributes or tag == "defs" else inner) if inner else ""
    return f"<{tag}{_attributes(element, prefix)}>{inner}</{tag}>"


def _label(element: ET.Element, parts: Parts, prefix: str, kind: str) -> str:
    return f"<text{_attributes(element, prefix)} {kind}>{''.join(map(_span, parts))}</text>"


def _hover(point: Hover, figure: Figure) -> str:
    """A disc that is not seen, with its words as a tooltip; where each of its numbers comes from, in their order."""
    x, y = (float(value) * _INCH / figure.dpi for value in point.ax.transData.transform(point.at))
    places = " ".join(part.node.pointer for part in point.parts if isinstance(part, Number))
    series = f' data-series="{escape(point.series)}"' if point.series else ""
    return (
        f'<circle class="hover" cx="{x:.1f}" cy="{figure.get_figheight() * _INCH - y:.1f}" r="6" '
        f'data-from="{escape(places)}"{series}><title>{escape(plain(point.parts))}</title></circle>'
    )


def _span(part: Inline) -> str:
    if isinstance(part, str):
        return escape(part)
    value = f' data-value="{escape(full(part.node))}"' if isinstance(part, Number) and part.node.known else ""
    return f'<tspan data-at="{escape(part.node.pointer)}"{value}>{escape(part.shown)}</tspan>'


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
            value = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
            value = " ".join(value.split())
        value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value)
        found.append(f' {name}="{escape(value)}"')
    return "".join(found)


def _style(value: str) -> str:
    rules = dict(rule.strip().split(": ", 1) for rule in value.split(";") if rule.strip())
    # Older versions of matplotlib write weight, size and family as one rule.
    font = re.match(r"(?:(?P<weight>\d+) )?(?P<size>[\d.]+px) ", rules.pop("font", ""))
    rules |= {f"font-{part}": rule for part, rule in (font.groupdict() if font else {}).items() if rule}
    kept = "; ".join(f"{name}: {rule}" for name, rule in rules.items() if name not in _DROPPED)
    # A colour that is not of the palette would not follow the scheme: KeyError.
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda colour: VARIABLES[colour[0].lower()], kept)
