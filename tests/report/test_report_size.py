"""How large the page is: what is alike is written once, places and coordinates are no longer than they must be."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cone_kernels.report.figures.svg import _SVG, _Shapes, _short
from cone_kernels.report.node import Node, common_place, place_within
from cone_kernels.report.shared_styles import share_styles
from tests.support.report_cases import run_results
from tests.support.report_reading import Report, read_report


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Report]:
    """Of one model and of two, seven layers each."""
    folder = tmp_path_factory.mktemp("reports")
    return [Report(run_results(models, 7), folder / f"{models}.html") for models in (1, 2)]


def test_what_a_page_takes(reports: list[Report]) -> None:
    """Two models are compared, which one is not."""
    sizes = [len(report.page.encode()) for report in reports]
    assert sizes[0] < 275_000
    assert sizes[1] < 600_000


@pytest.mark.slow
def test_what_a_third_model_adds(reports: list[Report], tmp_path: Path) -> None:
    """Itself, and its pairs with the others."""
    three = Report(run_results(3, 7), tmp_path / "3.html")
    assert len(three.page.encode()) - len(reports[1].page.encode()) < 300_000


def test_no_style_is_written_twice(reports: list[Report]) -> None:
    page = reports[1].page
    assert ' style="' not in page
    rules = re.findall(r"^\.cone \.s\d+\{(.*)\}$", page, flags=re.MULTILINE)
    assert 10 < len(set(rules)) == len(rules)


def test_figures_are_drawn_to_a_tenth(reports: list[Report]) -> None:
    for path in reports[1].root.all("path", "text"):
        numbers = " ".join(path.attributes.get(name, "") for name in ("d", "x", "y", "transform"))
        assert not re.search(r"\d\.\d\d", numbers), numbers
        assert path.attributes.get("style") != "fill: none"


def test_most_places_are_told_from_around_them(reports: list[Report]) -> None:
    places = re.findall(r' data-(?:at|key)="([^"]*)"', reports[1].page)
    assert sum(len(place) for place in places) < 30 * len(places)


def test_styles_become_classes() -> None:
    html = '<p class="a" style="x: 1; y: 2">style="z"</p><b id="c" style="x: 1; y: 2">&quot;</b><i style="y: 2">2</i>'
    shared, rules = share_styles(html, "k")
    assert shared == '<p class="a k0">style="z"</p><b class="k0" id="c">&quot;</b><i class="k1">2</i>'
    assert rules == ".cone .k0{x:1;y:2}\n.cone .k1{y:2}\n"
    assert share_styles("<p>1</p>") == ("<p>1</p>", "")
    root = read_report(f"<style>{rules}</style>{shared}")
    assert [element.attributes.get("style") for element in root.all("p", "b", "i")] == ["x: 1; y: 2"] * 2 + ["y: 2"]
    assert [element.attributes.get("class") for element in root.all("p")] == ["a"]


@pytest.mark.parametrize(
    ("pointers", "common"),
    [
        ([], ""),
        (["/a"], ""),
        (["/a/b/c"], "/a/b"),
        (["/a/b/c", "/a/b/d/e"], "/a/b"),
        (["/a/b/c", "/a/bc/d"], "/a"),
        (["/a/b", "/a/b/c"], "/a"),
        (["/a/1/x", "/a/10/x", "/a/2/x"], "/a"),
        (["/a/b", "/c/d"], ""),
    ],
)
def test_what_places_lie_in(pointers: list[str], common: str) -> None:
    assert common_place([Node(None, pointer) for pointer in pointers]) == common
    for pointer in pointers:
        within = place_within(pointer, common)
        assert (within if within.startswith("/") else f"{common}/{within}") == pointer
        assert within.startswith("/") == (common == "")


@pytest.mark.parametrize(
    ("pointer", "place", "within"),
    [("/a/b", "/a", "b"), ("/ab/c", "/a", "/ab/c"), ("/a", "/a", "/a"), ("/a//b", "/a", "/a//b"), ("/a/", "/a", "")],
)
def test_what_is_elsewhere_keeps_its_whole_place(pointer: str, place: str, within: str) -> None:
    assert place_within(pointer, place) == within


@pytest.mark.parametrize(
    ("coordinates", "short"),
    [
        ("M 30 147.46 L 57 -0.04 z", "M30 147.5L57 0z"),
        ("10.04", "10"),
        ("rotate(-90 7.255 100.96)", "rotate(-90 7.3 101)"),
        ("M 1 2.25 \nC 0.449 1.6875 -0.88 0 3 4", "M1 2.2C0.4 1.7 -0.9 0 3 4"),
        ("M 475.55 9 h 0", "M475.6 9h0"),
    ],
)
def test_coordinates(coordinates: str, short: str) -> None:
    assert _short(coordinates) == short


def test_the_dots_of_a_curve_lie_on_it(reports: list[Report]) -> None:
    """One path of dots for each curve that is marked, its points those of the curve."""
    root = reports[0].root
    found = 0
    for drawing in root.all("svg"):
        paths = [path.attributes for path in drawing.all("path")]
        curves = [re.findall(r"[ML]([\d.]+ [\d.]+)", path["d"]) for path in paths if "L" in path["d"]]
        for path in paths:
            if path["d"].endswith("h0") and path["d"].count("h0") == 7:
                dots = re.findall(r"M([\d.]+ [\d.]+)h0", path["d"])
                assert "stroke-linecap: round" in path["style"]
                assert dots in curves
                found += 1
    assert found >= 4


def test_dots_are_as_large_and_where_they_were() -> None:
    figure = Figure(figsize=(2, 2), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 144), ylim=(0, 144))
    axes.plot([36, 72], [36, 108], "o", markersize=8, markeredgewidth=0, color="#123456")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    root = ET.fromstring(buffer.getvalue())
    shapes = _Shapes(root)
    (dots,) = [one for group in root.iter(f"{_SVG}g") for one in shapes.drawn(group) if " h 0" in one.get("d", "")]
    assert "stroke: #123456; stroke-width: 8;" in dots.attrib["style"]
    places = [float(number) for number in re.findall(r"[\d.]+(?= )", dots.attrib["d"].replace("h 0", ""))]
    assert places == pytest.approx([36, 108, 72, 36])
