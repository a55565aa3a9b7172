"""The report in a real browser: nothing is fetched or complains; it reads on a phone, in the dark, on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cone_kernels.report import write_report
from tests.support.chromium import NAMES, Page, chromium_page, find_chromium
from tests.support.report_cases import run_results

pytestmark = pytest.mark.browser

# Every text of every drawing that is shown: how large it is, and how far it stands out of its drawing.
TEXTS = """
[...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length).flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].map(text => {
    const box = text.getBoundingClientRect();
    const across = Math.max(frame.left - box.left, box.right - frame.right);
    const out = Math.max(across, frame.top - box.top, box.bottom - frame.bottom);
    const size = parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a;
    return {words: text.textContent, out, size};
  });
})
"""
FILLS = "[...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill)"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(run_results(2, 25), file)
    return file


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed; `make test-browser` installs one")
    with chromium_page(program) as opened:
        yield opened


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_it_fits_fetches_nothing_and_complains_of_nothing(page: Page, report: Path, width: int) -> None:
    page.open(report, width=width, mobile=width < 500)
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.requests == [report.as_uri()]
    assert page.complaints == []
    assert page.evaluate("document.scripts.length") == 0


@pytest.mark.parametrize(("width", "shown"), [(375, "narrow"), (1280, "wide")])
def test_each_screen_gets_the_drawings_made_for_it(page: Page, report: Path, width: int, shown: str) -> None:
    page.open(report, width=width, mobile=width < 500)
    drawings = page.evaluate(
        "[...document.querySelectorAll('.drawing')].filter(e => e.getClientRects().length).map(e => e.className)"
    )
    assert drawings == [f"drawing {shown}"] * len(drawings)
    assert len(drawings) * 2 == page.evaluate("document.querySelectorAll('.drawing').length")
    texts = page.evaluate(TEXTS)
    assert len(texts) > 300
    assert min(text["size"] for text in texts) >= 11
    assert [text for text in texts if text["out"] > 1] == []


def test_the_dark_scheme_changes_every_colour(page: Page, report: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page.open(report, width=1280, scheme=scheme)
        paper = page.evaluate("getComputedStyle(document.querySelector('.cone')).backgroundColor")
        whole = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert whole == paper
        ink = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
        seen[scheme] = {paper, ink, *page.evaluate(FILLS)}
        lightness = [sum(map(int, re.findall(r"\d+", colour))) for colour in (paper, ink)]
        assert (lightness[0] > lightness[1]) == (scheme == "light")
    assert len(seen["light"]) > 4
    assert seen["light"].isdisjoint(seen["dark"])


def test_long_tables_open_without_a_script(page: Page, report: Path) -> None:
    page.open(report, width=1280)
    seen = "document.querySelector('details table').checkVisibility()"
    assert page.evaluate(seen) is False
    page.evaluate("document.querySelector('details summary').click()")
    assert page.evaluate(seen) is True


def test_links_lead_to_their_sections(page: Page, report: Path) -> None:
    page.open(report, width=1280)
    page.evaluate("document.querySelector('nav a[href=\"#rotation\"]').click()")
    assert page.evaluate("document.querySelector('#rotation').getBoundingClientRect().top") == pytest.approx(0, abs=2)


def test_print(page: Page, report: Path) -> None:
    page.open(report, width=700, scheme="dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    closed = "[...document.querySelectorAll('table')].filter(t => !t.checkVisibility()).length"
    page.call("Emulation.setEmulatedMedia", media="screen", features=dark)
    assert page.evaluate(closed) > 5
    page.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert page.evaluate(closed) == 0
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(28, 33, 40)"
    links = "[...document.querySelectorAll('.download, nav')].filter(e => e.getClientRects().length).length"
    assert page.evaluate(links) == 0
    paper = page.pdf()
    assert paper.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) > 8
