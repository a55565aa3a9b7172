"""The pictures of docs/gallery.md and of the README, drawn by the report's own functions from results in JSON.

python -m bench.gallery cone/results.json two/results.json center.json compare.json    # what the page's commands write
python -m bench.gallery --report two/report.html              # the picture of the README; needs Chromium

Every figure that the page shows becomes docs/images/EXPERIMENT-FIGURE.svg, and what the results say is copied into it.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from cone_kernels.report.figures import PANELS
from cone_kernels.report.figures.canvas import WIDE, Canvas, drawing
from cone_kernels.report.figures.models import overview_panel
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.figures.svg import inline_svg
from cone_kernels.report.inline import escape, plain
from cone_kernels.report.node import Node
from cone_kernels.report.palette import DARK, LIGHT, declarations

ROOT = Path(__file__).parents[1]
PAGE, IMAGES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "images"
FOUND = re.compile(r"(?P<begin><!-- said of: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
MARGIN = 12.0  # units of the drawing, on each side
PIXELS = 96 / 72  # of a unit
SCREEN = (1360, 900)
STYLE = (
    f"svg{{{declarations(LIGHT)}}}@media(prefers-color-scheme: dark){{svg{{{declarations(DARK)}}}}}"
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',Arial,sans-serif;"
    "font-variant-numeric:tabular-nums}*{stroke-linejoin:round}"
    ".halo{paint-order:stroke;stroke:var(--paper);stroke-width:2.5px}"
)
# What a page needs to trace a number, and an image does not.
_TRACES = re.compile(r' data-[\w-]+="[^"]*"')


def results_of(files: list[str]) -> dict[str, dict[str, Any]]:
    """Each experiment's result by its name; a run of one model gives that model's, one of several compares."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        read = json.loads(Path(file).read_text(encoding="utf-8"))
        if "experiment" in read:
            found[read["experiment"]] = read
        elif len(read["models"]) > 1:
            found |= {"run": read, "rotation": read["rotation"]}
        else:
            found |= {name: one for name, one in read["models"][0].items() if isinstance(one, dict)}
    return found


def panels_of(name: str, result: dict[str, Any]) -> list[Panel]:
    """What the report draws of a result."""
    if name == "run":
        return [overview_panel([model["layers"] for model in Node(result)["models"]])]
    return PANELS[name](Node(result))


def standalone(panel: Panel) -> str:
    """The figure as an SVG file of its own, on its own paper, which follows light and dark."""
    width = max(WIDE, panel.least_width)
    with drawing():
        canvas = Canvas(width, panel.height(width))
        panel.draw(canvas)
        drawn = inline_svg(canvas, panel.name, panel.title, panel.description, hovers=False)
    head, _, body = drawn.partition(">")
    left, top, wide, high = (float(side) for side in re.findall(r'viewBox="([^"]*)"', head)[0].split())
    box = f"{left - MARGIN:g} {top - MARGIN:g} {wide + 2 * MARGIN:g} {high + 2 * MARGIN:g}"
    paper = f'<rect x="{left - MARGIN:g}" y="{top - MARGIN:g}" width="100%" height="100%" fill="var(--paper)"/>'
    size = f'width="{(wide + 2 * MARGIN) * PIXELS:.0f}" height="{(high + 2 * MARGIN) * PIXELS:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} viewBox="{box}"'
    about = f"<title>{escape(panel.title)}</title><desc>{escape(plain(panel.description))}</desc>"
    shapes = _TRACES.sub("", body.partition("</desc>")[2])
    return f"{head}>{about}<style>{STYLE}</style>{paper}{shapes}\n"


def said_of(result: dict[str, Any]) -> str:
    """The sentences of a result, as a quotation."""
    indents = {"initial_indent": "> - ", "subsequent_indent": ">   "}
    lines = (textwrap.fill(line, 120, break_on_hyphens=False, **indents) + "\n" for line in result["summary"])
    return f"\n{''.join(lines)}\n"


def draw(files: list[str]) -> None:
    """Writes the figures that the page shows of these results, and copies into the page what they say."""
    results, page = results_of(files), PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"\(images/([\w-]+)\.svg\)", page))
    IMAGES.mkdir(exist_ok=True)
    for name in results.keys() & {image.partition("-")[0] for image in shown}:
        for panel in panels_of(name, results[name]):
            if (image := f"{name}-{panel.name}") in shown:
                (IMAGES / f"{image}.svg").write_text(standalone(panel), encoding="utf-8")
    page = FOUND.sub(
        lambda place: (
            place["begin"] + said_of(results[place["name"]]) + place["end"] if place["name"] in results else place[0]
        ),
        page,
    )
    PAGE.write_text(page, encoding="utf-8")


def photograph(report: Path) -> None:
    """The report's first screen, as a reader opens it."""
    from tests.support.chromium import chromium_page, find_chromium

    program = find_chromium()
    if program is None:
        raise FileNotFoundError("chromium: there is none; `make test-browser` installs one")
    width, height = SCREEN
    with chromium_page(program) as page:
        page.open(report, width=width, height=height)
        page.screenshot(IMAGES / "report.png", whole=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", help="JSON files of a run and of experiments")
    parser.add_argument("--report", type=Path, help="the page whose first screen is the picture of the README")
    given = parser.parse_args()
    draw(given.results)
    if given.report:
        photograph(given.report)
