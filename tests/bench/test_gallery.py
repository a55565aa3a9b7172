"""Figures of the gallery are files of their own: well-formed, on their own paper, with nothing left of a page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import gallery
from tests.support.report_cases import compare_result, layers_result, run_results


@pytest.mark.parametrize("name", ["layers", "compare"])
def test_a_figure_stands_alone(name: str) -> None:
    result = {"layers": layers_result, "compare": compare_result}[name]()
    for panel in gallery.panels_of(name, result):
        text = gallery.standalone(panel)
        root = ET.fromstring(text)
        paper = root.find("{http://www.w3.org/2000/svg}rect")
        assert paper is not None
        left, top, width, height = map(float, root.attrib["viewBox"].split())
        assert (float(paper.attrib["x"]), float(paper.attrib["y"])) == (left, top) == (-gallery.MARGIN, -gallery.MARGIN)
        # In CSS pixels, so that its text is as large as the page's.
        assert (int(root.attrib["width"]), int(root.attrib["height"])) == (round(width * 4 / 3), round(height * 4 / 3))
        assert "data-" not in text
        assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(re.findall(r"--(\w+): #", text))
        assert {node.text for node in root.iter("{http://www.w3.org/2000/svg}title")} == {panel.title}


def test_the_page_gets_the_figures_that_it_shows_and_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("![](images/run-overview.svg)\n<!-- said of: compare -->\nold\n<!-- end -->\nkept\n", "utf-8")
    monkeypatch.setattr(gallery, "PAGE", page)
    monkeypatch.setattr(gallery, "IMAGES", tmp_path / "images")
    compared = compare_result() | {"summary": ["The cone is tighter by 0.1 ± 0.02.", "word " * 40 + "end"]}
    for name, result in (("run", run_results(2)), ("compare", compared)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result), "utf-8")
    gallery.draw([str(tmp_path / "run.json"), str(tmp_path / "compare.json")])
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["run-overview.svg"]
    lines = page.read_text("utf-8").splitlines()
    assert lines[1:4] == ["<!-- said of: compare -->", "", "> - The cone is tighter by 0.1 ± 0.02."]
    assert lines[-4].endswith("end")
    assert lines[-3:] == ["", "<!-- end -->", "kept"]
    assert max(map(len, lines)) <= 120
