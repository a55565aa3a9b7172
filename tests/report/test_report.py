"""The report's page: every number is that of the results, nothing of a corpus acts, and it reads well by itself."""

from __future__ import annotations

import base64
import copy
import csv
import hashlib
import io
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from cone_kernels.report import write_report
from cone_kernels.report.comparison import sections
from cone_kernels.report.inline import Number, Text, one_line
from cone_kernels.report.node import Node
from cone_kernels.report.page import page_html
from cone_kernels.report.palette import LIGHT
from cone_kernels.report.script import SCRIPT
from cone_kernels.report.style import style_sheet
from cone_kernels.report.table import Column, Table, csv_text
from tests.support.html_tree import read_html
from tests.support.report_cases import HOSTILE, axis_result, bare_results, judged_results, rotation_result, run_results
from tests.support.report_reading import Report, is_rounded, is_traced, read_report

SHEET = style_sheet(page=True)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return Report(run_results(1, 25), tmp_path_factory.mktemp("full") / "report.html")


@pytest.fixture(scope="module", params=["one model", "two models", "bare"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, full: Report) -> Report:
    if request.param == "one model":
        return full
    results = judged_results(2, 3) if request.param == "two models" else bare_results()
    if request.param == "two models":
        results["models"][1] |= {"pooling": None, "axis": None}
    return Report(json.loads(json.dumps(results)), tmp_path_factory.mktemp("report") / "report.html")


def test_words_that_the_tokenizer_does_not_know_are_told() -> None:
    results = run_results(1, 3)
    told = "tokens that the tokenizer does not know"
    assert told in page_html(Node(results), lambda panel, prefix: "")
    for model in results["models"]:
        model["layers"]["corpus"]["unknown_tokens"] = 0
    assert told not in page_html(Node(results), lambda panel, prefix: "")


def test_every_number_is_that_of_the_results(report: Report) -> None:
    numbers = [element for element in report.root.all("data", "tspan") if is_traced(element)]
    checked = 0
    for element in numbers:
        value = element.attributes.get("value", element.attributes.get("data-value"))
        if value is not None:
            expected = report.at(element.attributes["data-at"])
            assert isinstance(expected, (int, float))
            assert json.loads(value) == expected
            assert is_rounded(expected, element.text), element.attributes
            checked += 1
    assert checked >= (500 if report.results["models"][0]["axis"] else 10)
    assert all("data-at" in element.attributes for element in report.root.all("data"))


def test_what_a_point_says_is_that_of_the_results(report: Report) -> None:
    """The tooltip of a point: the layer's number, the value and its error, each with its place."""
    points = report.root.all("circle")
    for point in points:
        (title,) = point.all("title")
        words = title.text.rpartition(", ")[2]
        values = [report.at(pointer) for pointer in point.attributes["data-from"].split()]
        shown = re.findall(r"[+−]?[\d,]+(?:\.\d+)?(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?%?", words)
        assert len(shown) == len(values), title.text
        assert all(is_rounded(value, number) for value, number in zip(values, shown, strict=True)), title.text
    assert len(points) >= (20 if report.results["models"][0]["axis"] else 0)


def test_the_overview_has_the_answer_for_every_model() -> None:
    results = judged_results(3, 4)
    results["models"][1]["layers"]["shape"] = None
    root = read_report(page_html(Node(results), lambda panel, prefix: ""))
    table = next(element for element in root.all("table") if element.attributes.get("class") == "cards")
    heads = [head.text for head in table.all("thead")[0].all("th")]
    assert heads == [
        "model",
        "peak",
        "output, or last layer",
        "pooling gap",
        "axes shared with the first",
        "after the fix",
        "quality",
    ]
    rows = [
        [[part.attributes["data-at"] for part in cell.walk() if is_traced(part)] for cell in row.all("th", "td")]
        for row in table.all("tbody")[0].all("tr")
    ]
    gaps = [row["gap"]["value"] for row in results["models"][0]["pooling"]["layers"]]
    widest = max(range(4), key=lambda at: abs(gaps[at]))
    layers = results["models"][0]["quality"]["layers"]
    at, row = next((at, row) for at, row in enumerate(layers) if row["layer"] == "output")
    values = {method: found["value"] for method, found in row["methods"].items() if found["value"] is not None}
    best, judged = max(values, key=lambda method: values[method]), f"/models/0/quality/layers/{at}"
    assert rows[0] == [
        ["/models/0/layers/model/name"],
        ["/models/0/layers/shape/peak/anisotropy", "/models/0/layers/shape/peak/layer"],
        ["/models/0/layers/output/sentence/anisotropy", "/models/0/layers/output/sentence/stderr"],
        [f"/models/0/pooling/layers/{widest}/gap/value", f"/models/0/pooling/layers/{widest}/layer"],
        [],
        ["/centering/0/held_out/value", "/centering/0/held_out/stderr"],
        [f"{judged}/raw", f"{judged}/methods/{best}/value"],
    ]
    assert rows[1][1] == ["/models/1/layers/shape/peak/anisotropy"]
    assert rows[1][4][0] == "/rotation/overlap/0/1/corrected"
    assert rows[2][2][0] == "/models/2/layers/layers/3/sentence/anisotropy"
    # Axes that the sentences do not determine have a verdict alone.
    results["rotation"]["overlap"][0][1] |= {"corrected": None, "stderr": None}
    results["rotation"]["verdict"][0][1] = "undecided"
    undecided = read_html(page_html(Node(results), lambda panel, prefix: ""))
    table = next(element for element in undecided.all("table") if element.attributes.get("class") == "cards")
    assert table.all("tbody")[0].all("tr")[1].all("td")[3].text == "– ± –, undecided"
    assert (rows[1][5], rows[1][6]) == ([], [])


def test_every_text_is_that_of_the_results(report: Report) -> None:
    for element in report.root.all("bdi"):
        expected = report.at(element.attributes["data-at"])
        assert element.text in expected.replace("\0", "\ufffd")
        # Names without their folder and moments are the only ones that are not whole.
        if not element.attributes["data-at"].endswith(("/name", "/started")):
            assert element.text == expected.replace("\0", "\ufffd")
    for element in report.root.all("tspan"):
        value = report.at(element.attributes["data-at"])
        if isinstance(value, str):
            assert element.text.removesuffix("…") in one_line(value, 10_000)


def test_what_is_null_shows_as_missing(report: Report) -> None:
    missing = [element for element in report.root.walk() if element.text == "–" and is_traced(element)]
    for element in missing:
        assert report.at(element.attributes["data-at"]) is None
    assert missing


def test_no_digit_in_a_cell_or_a_figure_escapes(report: Report) -> None:
    cells = [cell for cell in report.root.all("td", "th") if not cell.within("thead")]
    for cell in cells:
        assert not re.search(r"\d", cell.text_outside(is_traced)), cell.text
    for element in report.root.all("span"):
        if "data-key" in element.attributes:
            steps = element.attributes["data-key"].split("/")[1:]
            whole = ".".join(step.replace("~1", "/").replace("~0", "~") for step in steps)
            assert f".{whole}".endswith(f".{element.text}")
    for text in report.root.all("text"):
        if text.attributes.get("class") != "tick":
            assert not re.search(r"\d", text.text_outside(is_traced)), text.text


def test_the_answers_are_the_summaries_word_for_word_and_once(report: Report) -> None:
    for number, model in enumerate(report.results["models"]):
        for experiment in ("layers", "pooling", "axis"):
            for place, sentence in enumerate((model[experiment] or {}).get("summary", [])):
                pointer = f"/models/{number}/{experiment}/summary/{place}"
                shown = [element.text for element in report.root.all("bdi") if element.attributes["data-at"] == pointer]
                assert shown == [sentence.replace("\0", "\ufffd")]


def test_what_is_of_one_model_is_folded_where_there_are_several() -> None:
    root = read_report(page_html(Node(run_results(2, 3)), lambda panel, prefix: f"<p>{panel.name}</p>"))
    for key in ("layers", "pooling", "axis"):
        (section,) = [element for element in root.all("section") if element.attributes["id"] == key]
        opened = section.text_outside(lambda element: element.tag == "details")
        for number in (0, 1):
            (found,) = [
                element
                for element in section.all("bdi")
                if element.attributes["data-at"] == f"/models/{number}/{key}/summary/0"
            ]
            assert found.within("details")
            assert found.text not in opened
        assert {"layers": "tokens", "pooling": "levels", "axis": "axis-1"}[key] in opened


def test_long_lists_of_models_are_folded() -> None:
    """What stands open of a section grows with the models by its tables' rows alone; nothing of a model is left out."""
    opened: dict[int, dict[str, int]] = {}
    for count in (5, 10):
        results = Node(run_results(models=count, n_layers=4))
        opened[count] = {}
        for key, html in sections(results, list(results["models"]), lambda panel, prefix: "<figure></figure>"):
            section = read_report(html)
            opened[count][key] = len(section.text_outside(lambda element: element.tag == "details"))
            outer = [part for part in section.all("details") if not part.within("details")]
            assert len(outer) <= 6, key
            assert sum(not figure.within("details") for figure in section.all("figure")) <= 5, key
            if key in ("layers", "pooling", "axis"):
                names = {part.all("summary")[0].text.partition(":")[0] for part in section.all("details")}
                assert {model["layers"]["model"]["name"].text for model in results["models"]} <= names
                assert len(outer) == count or count == 10, key
    for key, characters in opened[10].items():
        assert characters <= 2 * opened[5][key], key
    assert opened[10]["rotation"] < opened[5]["rotation"]  # the pairs are folded, the matrices are not


def test_csv_holds_the_numbers_of_its_table_in_full(report: Report) -> None:
    links = [link for link in report.root.all("a") if "download" in link.attributes]
    tables = report.root.all("table")
    assert len(links) == len(tables)
    assert len({link.attributes["download"] for link in links}) == len(links)
    for table, link in zip(tables, links, strict=True):
        kind, _, data = link.attributes["href"].partition(",")
        assert kind == "data:text/csv;charset=utf-8"
        head, *rows = csv.reader(io.StringIO(unquote(data)))
        assert len(set(head)) == len(head)
        (body,) = table.all("tbody")
        assert len(rows) == len(body.all("tr"))
        for row, shown in zip(rows, body.all("tr"), strict=True):
            assert len(row) == len(head)
            values = [element.attributes["value"] for element in shown.all("data")]
            in_csv = [part for cell in row for part in (cell, *re.split(r"[, ]+", cell))]
            assert all(value in in_csv for value in values)
        texts = [report.at(element.attributes["data-at"]) for element in body.all("bdi")]
        assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)
        cells = [re.sub(r"^'(?=[=+\-@\t\r])", "", cell) for row in rows for cell in row]
        for text in texts:
            assert text in cells or any(text.endswith(part) for cell in cells for part in re.split(", | and ", cell))


def test_columns_hold_what_their_names_say(full: Report) -> None:
    names = {"correlations": "correlation", "poolings": "", "geometry": "", "value": ""}
    checked = set()
    links = [link for link in full.root.all("a") if "download" in link.attributes]
    for table, link in zip(full.root.all("table"), links, strict=True):
        name = link.attributes["download"].removesuffix(".csv").partition("-")[2]
        if not re.match("layers|geometry|rogue|pooling|axes|extremes|tokens", name):
            continue
        checked.add(name)
        head = next(csv.reader(io.StringIO(unquote(link.attributes["href"].partition(",")[2]))))
        for row in table.all("tbody")[0].all("tr"):
            pointers = [element.attributes["data-at"] for element in row.walk() if "data-at" in element.attributes]
            # What follows the last place in a list: "token/stderr" for token_stderr.
            tails = [re.split(r"/\d+/", pointer)[-1].split("/") for pointer in pointers]
            found = ["_".join(filter(None, (names.get(step, step) for step in tail))) for tail in tails]
            assert found == [column for column in head if column not in ("axis", "end")]
            if head[0] == "end":
                assert row.all("th")[0].text == ("highest" if "top/" in pointers[0] else "lowest")
    assert len(checked) == 10


def test_a_hostile_corpus_is_only_read(full: Report) -> None:
    assert full.page.count("<script") == full.page.count("</script") == 1
    (script,) = full.root.all("script")
    assert script.text == SCRIPT
    tags = {element.tag for element in full.root.walk()}
    assert tags.isdisjoint({"iframe", "object", "embed", "img", "image", "foreignobject", "i", "b", "link"})
    names = {name for element in full.root.walk() for name in element.attributes}
    assert not [name for name in names if name.startswith("on")]
    assert [element.text for element in full.root.all("td") if element.text == HOSTILE.replace("\0", "\ufffd")]
    assert [element.tag for element in full.root.all("style")] == ["style"]


def test_nothing_is_fetched(report: Report) -> None:
    (policy,) = [
        element.attributes["content"]
        for element in report.root.all("meta")
        if element.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = report.root.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    rules = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
    assert policy == rules.format(digest)
    ids = {element.attributes.get("id") for element in report.root.walk()}
    for element in report.root.walk():
        assert not {"src", "srcset", "action", "background"} & set(element.attributes)
        target = element.attributes.get("href", "#overview")
        assert (target.startswith("#") and target[1:] in ids) or target.startswith("data:text/csv")
    assert "@import" not in SHEET
    assert "url(" not in SHEET


def test_what_utf8_cannot_hold_does_not_stop_the_page(tmp_path: Path) -> None:
    results = bare_results()
    results["models"][0]["layers"]["summary"] = ["a lone surrogate \ud800 here"]
    results["models"][0]["axis"] = axis_result(k=1)
    results["models"][0]["axis"]["components"][0]["top"][0]["text"] = "\ud800 and \x0b"
    write_report(results, tmp_path / "report.html")
    assert "a lone surrogate &#55296; here" in (tmp_path / "report.html").read_text("utf-8")


def test_structure_for_those_who_do_not_see_it(report: Report) -> None:
    (page,) = report.root.all("html")
    assert page.attributes["lang"] == "en"
    assert len(report.root.all("h1")) == len(report.root.all("main")) == 1
    ranks = [int(element.tag[1]) for element in report.root.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert all(after - before <= 1 for before, after in itertools.pairwise(ranks))
    for table in report.root.all("table"):
        (caption,) = table.all("caption")
        assert caption.text
        (head,) = table.all("thead")
        assert all(cell.attributes["scope"] == "col" for cell in head.all("th"))
        (body,) = table.all("tbody")
        assert all([cell.attributes["scope"] for cell in row.all("th")] == ["row"] for row in body.all("tr"))
    for drawing in report.root.all("svg"):
        (title, *_), (described,) = drawing.all("title"), drawing.all("desc")
        assert drawing.attributes["role"] == "img"
        assert drawing.attributes["aria-labelledby"] == f"{title.attributes['id']} {described.attributes['id']}"
        assert len(title.text) > 10
        assert len(described.text) > 20
    assert len(report.root.all("svg")) >= 4


def test_ids_are_unique(report: Report) -> None:
    ids = [element.attributes["id"] for element in report.root.walk() if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    referred = set(re.findall(r"url\(#([^)]+)\)", report.page))
    assert referred <= set(ids)


def test_figures_take_their_colours_and_their_font_from_the_page(report: Report) -> None:
    for drawing in report.root.all("svg"):
        styles = " ".join(element.attributes.get("style", "") for element in drawing.walk())
        assert not re.search(r"#[0-9a-fA-F]{3}|rgb|font-family", styles)
        assert set(re.findall(r"var\(--([a-z]+)\)", styles)) <= set(LIGHT)
        assert drawing.all("text")
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", styles)]
        width = float(re.findall(r"--width: (\d+)px", styles)[0])
        scale = width / float(drawing.attributes["viewbox"].split()[2])
        assert min(sizes) * scale >= 11


def test_one_model_says_that_rotation_needs_two(full: Report) -> None:
    (section,) = [element for element in full.root.all("section") if element.attributes["id"] == "rotation"]
    assert "takes two or more" in section.text
    assert "measured one model" in section.text


def test_results_without_sentences_say_so(tmp_path: Path) -> None:
    write_report(bare_results(), tmp_path / "report.html")
    root = read_html((tmp_path / "report.html").read_text())
    sections = {element.attributes["id"]: element.text for element in root.all("section")}
    assert all("The data does not settle this" in sections[key] for key in ("layers", "pooling"))
    assert "This run did not ask." in sections["axis"]
    assert "1 sentences used <b>" in root.text


OPTIONAL = [
    *(f"/models/0/layers/{name}" for name in ("shape", "published", "summary", "manifest")),
    *(f"/models/0/layers/layers/0/{name}" for name in ("rogue_dimensions", "anisotropy_without_rogue", "geometry")),
    "/models/0/layers/layers/0/geometry/rank_me",
    "/models/0/layers/layers/0/population",
    "/models/0/layers/layers/0/population/iso_score/stderr",
    "/models/0/layers/shape/crash",
    "/models/0/layers/shape/dips",
    "/models/0/layers/corpus/name",
    "/models/0/layers/corpus/tokens",
    "/models/0/layers/corpus/dropped",
    "/models/0/pooling/layers/0/poolings",
    "/models/0/pooling",
    "/models/0/axis",
    *(f"/models/0/axis/{name}" for name in ("summary", "reasons", "mean_cosine")),
    *(f"/models/0/axis/components/0/{name}" for name in ("tokens_top", "residual", "eigengap")),
    "/models/0/axis/components/0/correlations/length",
    *(f"/rotation/{name}" for name in ("null", "p_value", "principal_angles", "centered_stderr", "reasons")),
    *(f"/rotation/{name}" for name in ("axis_cosine", "functional_cosine")),
    "/rotation/models/0/architecture",
    "/rotation",
    "/centering/0/after",
    "/centering/0/held_out",
    "/models/0/quality",
    "/models/0/layers/output",
    "/centering/0/components",
    "/centering/0/file",
    "/centering",
    "/manifest",
]


@pytest.mark.parametrize("absent", [True, False], ids=["absent", "null"])
def test_optional_fields_may_be_missing(absent: bool) -> None:
    whole = judged_results(1, 2) | {"rotation": rotation_result(2)}
    read: set[str] = set()
    for pointer in OPTIONAL:
        results = copy.deepcopy(whole)
        *steps, last = pointer.split("/")[1:]
        place: Any = results
        for step in steps:
            place = place[int(step) if isinstance(place, list) else step]
        assert last in place, pointer
        if absent:
            del place[last]
        else:
            place[last] = None
        page = page_html(Node(results), lambda panel, prefix: "")
        # Most sections are those of the page before; each is read once, and the page without them.
        for section in re.findall(r"<section.*?</section>", page, flags=re.DOTALL):
            if section not in read:
                read_html(section)
                read.add(section)
            page = page.replace(section, "", 1)
        read_html(page)
        assert "<section" not in page
    assert len(read) > 20


def test_the_same_results_give_the_same_bytes_whatever_the_reader_set(tmp_path: Path, full: Report) -> None:
    code = (
        "import sys\n"
        "import matplotlib as mpl\n"
        "from matplotlib import style\n"
        "style.use('dark_background')\n"
        "mpl.rcParams.update({'font.size': 30, 'svg.fonttype': 'path', 'axes.grid': True, 'text.usetex': False})\n"
        "settings = lambda: {name: mpl.rcParams[name] for name in mpl.rcParams if name != 'backend'}\n"
        "before = settings()\n"
        "from cone_kernels.cli import main\n"
        "main(['report', *sys.argv[1:]], standalone_mode=False)\n"
        "assert settings() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    (tmp_path / "results.json").write_text(json.dumps(full.results))
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "report.html").read_text("utf-8") == full.page


def test_a_page_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("before")
    damaged = run_results(1, 3)
    del damaged["models"][0]["layers"]["layers"][1]["sentence"]
    with pytest.raises(ValueError, match="/models/0/layers/layers/1 has no 'sentence'"):
        write_report(damaged, file)
    assert file.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_report(bare_results(), tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "report.html"]


def test_a_text_of_a_csv_file_is_no_formula() -> None:
    table = Table("t", (), [Column("a", ("a",), "text"), Column("b", ("b",))], [])
    texts = ["=cmd|' /C calc'!A0", "+1", "-2", "@sum", "\tx", "a=b", "−0.1"]
    for value in texts:
        node = Node(value)
        rows = [[[Text(node, value)], [Number(Node(-0.25), "−0.25")]]]
        read = list(csv.reader(io.StringIO(csv_text(replace(table, rows=rows)))))
        assert read == [["a", "b"], [value if value in ("a=b", "−0.1") else f"'{value}", "-0.25"]]
