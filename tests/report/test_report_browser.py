"""The report in a real browser: nothing is fetched or complains; it reads on a phone, in the dark, on paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cone_kernels.report import write_report
from tests.support.chromium import NAMES, Page, chromium_page, find_chromium
from tests.support.report_cases import judged_results

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
    write_report(judged_results(2, 25), file)
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
    assert page.evaluate("document.scripts.length") == 1


@pytest.mark.parametrize(("width", "shown"), [(375, "narrow"), (1280, "wide")])
def test_each_screen_gets_the_drawings_made_for_it(page: Page, report: Path, width: int, shown: str) -> None:
    page.open(report, width=width, mobile=width < 500)
    drawings = page.evaluate(
        "[...document.querySelectorAll('.drawing')].filter(e => e.getClientRects().length && !e.closest('.beside'))"
        ".map(e => e.className)"
    )
    assert drawings == [f"drawing {shown}"] * len(drawings)
    beside = page.evaluate("document.querySelectorAll('.beside .drawing').length")
    assert len(drawings) * 2 + beside == page.evaluate("document.querySelectorAll('.drawing').length")
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


def test_what_is_folded_opens_without_a_script(page: Page, report: Path, tmp_path: Path) -> None:
    without = tmp_path / "report.html"
    without.write_text(re.sub("<script>.*</script>", "", report.read_text("utf-8"), flags=re.DOTALL), "utf-8")
    page.open(without, width=1280)
    seen = "document.querySelector('#rotation details table').checkVisibility()"
    assert page.evaluate(seen) is False
    page.evaluate("document.querySelector('#rotation details summary').click()")
    assert page.evaluate(seen) is True
    assert page.evaluate("document.querySelectorAll('button').length") == 0


def test_the_bar_stays_and_its_links_lead_below_it(page: Page, report: Path) -> None:
    page.open(report, width=1280)
    page.evaluate("document.querySelector('nav a[href=\"#rotation\"]').click()")
    bar = page.evaluate("document.querySelector('nav').getBoundingClientRect().top")
    under = page.evaluate("document.querySelector('nav').getBoundingClientRect().bottom")
    assert bar == pytest.approx(0, abs=1)
    top = page.evaluate("document.querySelector('#rotation').getBoundingClientRect().top")
    assert under - 1 <= top <= under + 24


def test_the_answer_is_on_the_first_screen(page: Page, report: Path) -> None:
    page.open(report, width=1360, height=900)
    lowest = "Math.max(...[...document.querySelectorAll('#overview table, #overview svg')]"
    assert page.evaluate(f"{lowest}.map(part => part.getBoundingClientRect().bottom))") <= 900
    page.open(report, width=375, height=800, mobile=True)
    table = page.evaluate("document.querySelector('#overview table').getBoundingClientRect().bottom")
    assert table <= 800


def test_tables_sort_and_models_can_be_hidden(page: Page, report: Path) -> None:
    page.open(report, width=1280)
    head = "document.querySelector('#axis table thead th:nth-child(3)')"
    shares = "[...document.querySelectorAll('#axis table')[0].tBodies[0].rows].map(r => +r.cells[2].firstChild.value)"
    for order in ("ascending", "descending"):
        page.evaluate(f"{head}.querySelector('button').click()")
        found = page.evaluate(shares)
        assert found == sorted(found, reverse=order == "descending")
        assert page.evaluate(f"{head}.getAttribute('aria-sort')") == order
    assert len(found) == 4
    shown = "[...document.querySelectorAll('#overview .wide [data-series]')].filter(e => e.checkVisibility()).length"
    whole = page.evaluate(shown)
    page.evaluate("document.querySelector('#overview .series button').click()")
    assert 0 < page.evaluate(shown) < whole
    page.evaluate("document.querySelector('#overview .series button').click()")
    assert page.evaluate(shown) == whole


def test_all_unfolds_at_once(page: Page, report: Path) -> None:
    page.open(report, width=1280)
    closed = "document.querySelectorAll('details:not([open])').length"
    assert page.evaluate(closed) > 10
    page.evaluate("document.querySelector('nav button').click()")
    assert page.evaluate(closed) == 0


def test_print(page: Page, report: Path) -> None:
    page.open(report, width=700, scheme="dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    folded = "[...document.querySelectorAll('details:not([open])')].filter(e => e.getClientRects().length).length"
    page.call("Emulation.setEmulatedMedia", media="screen", features=dark)
    assert page.evaluate(folded) > 5
    page.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert page.evaluate(folded) == 0
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(28, 33, 40)"
    links = "[...document.querySelectorAll('.download, nav, .series')].filter(e => e.getClientRects().length).length"
    assert page.evaluate(links) == 0
    paper = page.pdf()
    assert paper.startswith(b"%PDF-")
    assert 3 < len(re.findall(rb"/Type\s*/Page\b", paper)) <= 10


def test_a_title_breaks_between_names_and_not_at_their_hyphens(page: Page, tmp_path: Path) -> None:
    results = judged_results(2, 7)
    for model, name in zip(results["models"], ("all-MiniLM-L6-v2", "MiniLM-untrained"), strict=True):
        model["layers"]["model"]["name"] = name
    write_report(results, tmp_path / "report.html")
    page.open(tmp_path / "report.html", width=1360, height=900)
    lines = page.evaluate("[...document.querySelectorAll('h1 bdi')].map(name => name.getClientRects().length)")
    heights = page.evaluate("[...document.querySelectorAll('h1 bdi')].map(name => name.offsetHeight)")
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('h1')).fontSize)")
    assert lines == [1, 1]
    assert all(height < 2 * size for height in heights)


def test_two_models_take_eight_screens(page: Page, tmp_path: Path) -> None:
    write_report(judged_results(2, 7), tmp_path / "report.html")
    page.open(tmp_path / "report.html", width=1360, height=900)
    assert page.evaluate("document.documentElement.scrollHeight") <= 8 * 900
