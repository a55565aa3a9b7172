"""`cone report`: the page again from results.json, and one clear line where that is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cone_kernels.cli import main
from cone_kernels.names import EXPERIMENTS
from cone_kernels.report.figures import PANELS
from cone_kernels.report.inline import escape
from cone_kernels.report.node import Node
from cone_kernels.report.section import findings
from tests.support.report_cases import (
    axis_result,
    bare_results,
    centering_result,
    compare_result,
    layers_result,
    pooling_result,
    rotation_result,
    vectors_result,
)
from tests.support.report_reading import read_report, value_at
from tests.support.undrawn import DRAWN_BY


def cone_report(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_the_command_says_where_the_page_is(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(bare_results()))
    for options, file in (
        ((), tmp_path / "report.html"),
        (("--output", tmp_path / "other.html"), tmp_path / "other.html"),
    ):
        done = cone_report(tmp_path, *options)
        assert (done.exit_code, done.stdout) == (0, f"{file}\n")
        assert file.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other.html", "report.html", "results.json"]


@pytest.mark.parametrize("name", ["layers", "pooling", "axis", "rotation", "centering", "compare", "vectors"])
def test_the_page_of_one_result_is_made_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name != "compare":  # the figures of all others are drawn on the pages of runs too
        monkeypatch.setattr(DRAWN_BY, lambda panel, prefix: f"<figure>{panel.title}</figure>")
    makers = {"pooling": pooling_result, "axis": axis_result, "rotation": rotation_result, "vectors": vectors_result}
    makers |= {"layers": layers_result, "centering": centering_result, "compare": compare_result}
    result = makers[name]()
    (tmp_path / "one.json").write_text(json.dumps(result))
    done = cone_report(tmp_path / "one.json")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'one.html'}\n")
    page = (tmp_path / "one.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert escape(EXPERIMENTS[name].question) in page
    assert findings(Node(result)) in page
    root = read_report(page)
    titles = [panel.title for panel in PANELS[name](Node(result))]
    for shown, title in zip(root.all("figure"), titles, strict=True):
        assert shown.text.startswith(title)
    numbers = root.all("data")
    assert len(numbers) > 10
    for element in numbers:
        assert json.loads(element.attributes["value"]) == value_at(result, element.attributes["data-at"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; `cone run --out DIR` writes one"),
        (b"{", "is not JSON: "),
        (b"\xff\xfe\xff", "is not JSON: "),
        (b'{"a": NaN}', "is not JSON: NaN is not a number in JSON"),
        (b"[]", "got a JSON list; it must be an object"),
        (b"{}", "the whole has no 'schema'"),
        (b'{"schema": "cone_kernels/run/9"}', "got the schema 'cone_kernels/run/9'; it must be"),
        (b'{"schema": "cone_kernels/run/1", "models": 3}', "/models is 3; it must be a list"),
        (b'{"schema": "cone_kernels/run/1", "models": []}', "/models is empty"),
        (b'{"schema": "cone_kernels/run/1", "models": [{}]}', "/models/0 has no 'layers'"),
    ],
)
def test_damaged_results_are_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    done = cone_report(tmp_path)
    assert (done.exit_code, done.stdout) == (1, "")
    line = done.stderr.rstrip("\n")
    assert line.startswith(f"Error: {tmp_path / 'results.json'}")
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "report.html").exists()


def test_wrong_usage_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    assert cone_report().exit_code == 2
    assert cone_report(tmp_path, "--output", "-").exit_code == 2
    assert cone_report(tmp_path, "--output", tmp_path / "results.json").exit_code == 2
    missing = cone_report(tmp_path, "--output", tmp_path / "no" / "report.html")
    assert missing.exit_code == 1
    assert "there is no folder" in missing.stderr
