"""Figures and fragments of one result: what is drawn is what was measured, in colours that can be told apart."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cone_kernels.report import figure, fragment, write_report
from cone_kernels.report.figures import PANELS
from cone_kernels.report.figures.canvas import Canvas
from cone_kernels.report.figures.models import compared_layers, compared_pooling, overview_panel
from cone_kernels.report.figures.panel import Panel, figure_html
from cone_kernels.report.figures.rotation import STRONGEST
from cone_kernels.report.figures.svg import _style
from cone_kernels.report.node import Node
from cone_kernels.report.palette import DARK, LIGHT
from cone_kernels.report.style import style_sheet
from tests.support.html_tree import Element, read_html
from tests.support.report_cases import (
    axis_result,
    bare_results,
    centering_result,
    compare_result,
    layers_result,
    pooling_result,
    quality_part,
    rotation_result,
    run_results,
    vectors_result,
)
from tests.support.report_reading import read_report, value_at

RESULTS = {
    "layers": layers_result(),
    "pooling": pooling_result(),
    "axis": axis_result(),
    "rotation": rotation_result(),
    "centering": centering_result(),
    "compare": compare_result(),
}
# What has no figure, and tables all the same.
FRAGMENTS = {**RESULTS, "vectors": vectors_result()}
SHEET = style_sheet(page=True)


@pytest.mark.parametrize("name", RESULTS)
def test_figure(name: str, tmp_path: Path) -> None:
    drawn = figure(RESULTS[name])
    titles = [panel.title for panel in PANELS[name](Node(RESULTS[name]))]
    assert {text.get_text() for text in drawn.texts} >= set(titles)
    assert drawn.get_size_inches()[0] == pytest.approx(768 / 96)
    drawn.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    shown: Any = drawn
    assert shown._repr_png_().startswith(b"\x89PNG")


def lines_of(ax: Axes) -> set[tuple[tuple[float, ...], tuple[float, ...]]]:
    return {(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in ax.get_lines()}


def outlines_of(ax: Axes) -> list[set[tuple[float, float]]]:
    """The corners of each filled band."""
    return [{tuple(point) for point in path.vertices} for band in ax.collections for path in band.get_paths()]


def test_the_curve_is_that_of_the_numbers() -> None:
    result = layers_result(n_layers=9)
    ax = figure(result).axes[0]
    rows, numbers = result["layers"], tuple(range(9))
    for level in ("sentence", "token"):
        values = [(row[level]["anisotropy"], row[level]["stderr"]) for row in rows]
        assert (numbers, tuple(value for value, _ in values)) in lines_of(ax)
        band = {(at, value + way * error) for at, (value, error) in enumerate(values) for way in (-2, 2)}
        assert any(band <= outline for outline in outlines_of(ax))
    published = result["published"]["anisotropy"]
    assert (tuple(at / 24 * 8 for at in range(25)), tuple(published)) in lines_of(ax)
    peak = result["shape"]["peak"]
    assert ((peak["layer"],), (peak["anisotropy"],)) in lines_of(ax)
    assert ax.get_ylim()[0] == 0


def test_shares_of_dimensions_are_stacked() -> None:
    result = layers_result()
    bars = [patch for patch in figure(result).axes[1].patches if isinstance(patch, Rectangle)]
    for row in result["layers"]:
        drawn = [bar for bar in bars if bar.get_x() < row["layer"] < bar.get_x() + bar.get_width()]
        shares = [entry["share"] for entry in row["rogue_dimensions"]]
        assert sorted(bar.get_height() for bar in drawn) == pytest.approx(sorted(shares))
        tops = sorted(bar.get_y() + bar.get_height() for bar in drawn)
        assert tops == pytest.approx([sum(bar.get_height() for bar in drawn if bar.get_y() < top) for top in tops])


def test_levels_and_poolings_are_those_of_the_numbers() -> None:
    result = pooling_result()
    levels, *cells = figure(result).axes
    numbers = tuple(range(7))
    for key, name in (("token", "anisotropy"), ("sentence", "anisotropy"), ("predicted", "value")):
        assert (numbers, tuple(row[key][name] for row in result["layers"])) in lines_of(levels)
    corners = {(at, row[key]["anisotropy"]) for at, row in enumerate(result["layers"]) for key in ("token", "sentence")}
    assert any(corners <= outline for outline in outlines_of(levels))
    widest = max(result["layers"], key=lambda row: row["gap"]["value"])
    ends = (widest["token"]["anisotropy"], widest["sentence"]["anisotropy"])
    assert ((widest["layer"],) * 2, ends) in lines_of(levels)
    assert len(cells) == 7
    for ax, key in zip(cells, result["layers"][0]["poolings"], strict=True):
        values = tuple(row["poolings"][key]["anisotropy"] for row in result["layers"])
        drawn = [line for line in ax.get_lines() if line.get_color() == LIGHT["blue"]]
        assert [tuple(line.get_ydata()) for line in drawn] == [values]


def test_stems_reach_their_values() -> None:
    result = axis_result(k=1)
    (component,) = result["components"]
    extremes, correlations = figure(result).axes
    ends = [entry["projection"] for entry in (*component["top"], *component["bottom"])]
    assert {x for x, _ in lines_of(extremes)} >= {x for value in ends for x in ((0, value), (value,))}  # and its dot
    values = [value for value in component["correlations"].values() if value is not None]
    assert {x for x, _ in lines_of(correlations)} >= {x for value in values for x in ((0, value), (value,))}
    assert len(values) == 2


def test_bars_are_as_long_as_their_values() -> None:
    result = centering_result()
    (ax,) = figure(result).axes
    bars = [patch.get_width() for patch in ax.patches if isinstance(patch, Rectangle)]
    estimates = [result["before"], result["after"]]
    assert bars == [estimate["value"] for estimate in estimates]
    errors = {(e["value"] - 2 * e["stderr"], e["value"] + 2 * e["stderr"]) for e in estimates}
    assert {x for x, _ in lines_of(ax)} >= errors
    result["held_out"] = {"value": 0.0061, "stderr": 0.003, "before": 0.0482, "folds": 4}
    (ax,) = figure(result).axes
    bars = [patch.get_width() for patch in ax.patches if isinstance(patch, Rectangle)]
    assert bars == [result["before"]["value"], 0.0061]


def drawn_by(panel: Panel) -> Canvas:
    canvas = Canvas(736, panel.height(736))
    panel.draw(canvas)
    return canvas


def test_models_of_different_depth_are_overlaid() -> None:
    results = [layers_result("org/a", 3, 0), layers_result("org/b", 5, 1)]
    results[1]["output"] = {"sentence": {"anisotropy": 0.25, "stderr": 0.01}}
    canvas = drawn_by(overview_panel([Node(result) for result in results]))
    (ax,) = canvas.figure.axes
    for result in results:
        rows = result["layers"]
        depth = tuple(100 * at / (len(rows) - 1) for at in range(len(rows)))
        assert (depth, tuple(row["sentence"]["anisotropy"] for row in rows)) in lines_of(ax)
    (ring,) = [line for line in ax.get_lines() if tuple(line.get_ydata()) == (0.25,)]
    assert (ring.get_markeredgecolor(), ring.get_xdata()[0]) == (LIGHT["orange"], ax.get_xlim()[1])
    assert set(canvas.series.values()) == {"a", "b"}
    said = [("".join(part if isinstance(part, str) else part.shown for part in hover.parts)) for hover in canvas.hovers]
    assert "b, output: 0.2500" in said
    assert len(said) == 3 + 5 + 1


def test_points_that_say_their_values_lie_on_the_curves() -> None:
    results = [layers_result("org/a", 3, 0), layers_result("org/b", 5, 1)]
    page = read_html(figure_html(overview_panel([Node(result) for result in results]), "p", narrow=False))
    points = [(float(point.attributes["cx"]), float(point.attributes["cy"])) for point in page.all("circle")]
    assert len(points) == 3 + 5
    corners = [
        [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.attributes["d"])]
        for path in page.all("path")
    ]
    for some in (points[:3], points[3:]):
        assert any(
            len(curve) == len(some) and all(math.dist(*pair) < 0.1 for pair in zip(curve, some, strict=True))
            for curve in corners
        )


def test_what_methods_change_is_that_of_the_numbers() -> None:
    quality = quality_part()
    result = centering_result() | {"quality": quality}
    ax = figure(result).axes[-1]
    rows = [row for row in quality["layers"] if row["layer"] != "output"]
    numbers = tuple(float(row["layer"]) for row in rows)
    for method in ("mean", "partial-mean", "all-but-the-top", "all-but-the-top-eigengap"):
        assert (numbers, tuple(row["methods"][method]["difference"] for row in rows)) in lines_of(ax)
    assert "all are &lt;alike&gt;" in fragment(result)


def test_models_side_by_side() -> None:
    results = [layers_result(f"org/{at}", 3, at) for at in range(5)]
    tokens, geometry = (drawn_by(panel) for panel in compared_layers([Node(result) for result in results]))
    for result in results:
        values = tuple(row["token"]["anisotropy"] for row in result["layers"])
        assert ((0, 1, 2), values) in lines_of(tokens.figure.axes[0])
        for ax, key in zip(geometry.figure.axes, result["layers"][0]["geometry"], strict=True):
            assert ((0, 1, 2), tuple(row["geometry"][key] for row in result["layers"])) in lines_of(ax)
    # The fifth model has the colour of the first, and dashes.
    first, fifth = (line for line in tokens.figure.axes[0].get_lines() if line.get_color() == LIGHT["blue"])
    assert (first.is_dashed(), fifth.is_dashed()) == (False, True)
    pooled = [pooling_result(f"org/{at}", 3, at) for at in range(2)]
    levels, poolings = (drawn_by(panel) for panel in compared_pooling([Node(result) for result in pooled]))
    for ax, result in zip(levels.figure.axes, pooled, strict=True):
        for key, name in (("token", "anisotropy"), ("sentence", "anisotropy"), ("predicted", "value")):
            assert ((0, 1, 2), tuple(row[key][name] for row in result["layers"])) in lines_of(ax)
    for ax, key in zip(poolings.figure.axes, pooled[0]["layers"][0]["poolings"], strict=True):
        for result in pooled:
            values = tuple(row["poolings"][key]["anisotropy"] for row in result["layers"])
            assert ((0, 1, 2), values) in lines_of(ax)


def test_the_matrix_is_that_of_the_numbers() -> None:
    result = rotation_result(3)
    texts = [text.get_text() for text in figure(result).axes[0].texts]
    shown = [f"{value:.3f}" if value is not None else "–" for row in result["axis_cosine"] for value in row]
    assert texts == shown


def test_the_comparison_is_that_of_the_numbers() -> None:
    result = compare_result()
    rows = result["layers"][:-1]  # at the last one nothing is defined
    both, changes, directions = figure(result).axes
    numbers = tuple(float(row["layer"]) for row in rows)
    for side in "ab":
        assert tuple(row["sentence"][side] for row in rows) in {
            tuple(line.get_ydata())[:-1] for line in both.get_lines()
        }
    drawn = lines_of(changes)
    for level in ("token", "sentence"):
        ringed = [(row["layer"], row[level]["difference"]) for row in rows if row[level]["significant"]]
        assert 0 < len(ringed) < len(rows)
        assert tuple(zip(*ringed, strict=True)) in drawn
        corners = {
            (at, row[level]["difference"] + 2 * row[level]["stderr"]) for at, row in zip(numbers, rows, strict=True)
        }
        assert any(corners <= outline for outline in outlines_of(changes))
    means = tuple(row["mean_cosine"] for row in result["layers"])
    assert means in {tuple(line.get_ydata()) for line in directions.get_lines()}
    for row in result["layers"]:
        row["axis_cosine"] = row["mean_cosine"] = None
    assert len(figure(result).axes) == 2


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment(name: str) -> None:
    page = fragment(FRAGMENTS[name])
    root = read_report(page)
    (whole,) = root.children
    assert isinstance(whole, Element)
    assert whole.attributes["class"].split()[0] == "cone"
    assert len(root.all("svg")) == len(PANELS[name](Node(FRAGMENTS[name])))
    assert root.all("table")
    (style,) = root.all("style")
    selectors = re.findall(r"(?:^|[{};])\s*([^@{};]+)\{", re.sub(r"--?[a-z-]+: [^;}]+;?", "", style.text))
    parts = [part.strip() for selector in selectors for part in selector.split(",")]
    assert len(parts) > 50
    assert all(re.match(r"(\[data-jp-theme-light=\"\w+\"\] |\.vscode-dark )?\.cone\b", part) for part in parts), parts
    for element in root.all("data"):
        assert json.loads(element.attributes["value"]) == value_at(FRAGMENTS[name], element.attributes["data-at"])


def test_fragments_of_different_results_share_no_id() -> None:
    pages = [read_html(fragment(centering_result(method))) for method in ("mean", "whitening")]
    ids = [{element.attributes["id"] for element in page.walk() if "id" in element.attributes} for page in pages]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_the_fragment_of_a_run_is_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    results = run_results(models=2)
    page = fragment(results)
    root = read_report(page)
    assert [len(root.all(tag)) for tag in ("table", "svg", "h3")] == [1, 1, 1]
    (table,) = root.all("table")
    assert len(table.all("tr")) == 1 + len(results["models"])
    for element in root.all("data"):
        assert json.loads(element.attributes["value"]) == value_at(results, element.attributes["data-at"])
    monkeypatch.setattr("cone_kernels.report.find_spec", lambda _: None)
    plain = fragment(results)
    assert "pip install 'cone_kernels[report]'" in read_html(plain).text
    assert ("<svg" in page, "<svg" in plain) == (True, False)


def test_an_unknown_experiment_is_refused() -> None:
    for make in (figure, fragment):
        with pytest.raises(ValueError, match="got the experiment 'gravity'; it must be one of layers, pooling"):
            make({"experiment": "gravity"})
        with pytest.raises(ValueError, match="the whole has no 'experiment'"):
            make({})


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r"pip install 'cone_kernels\[report\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        figure(RESULTS["centering"])
    with pytest.raises(ModuleNotFoundError, match=message):
        write_report(run_results(1, 3), tmp_path / "report.html")
    root = read_html(fragment(RESULTS["layers"]))
    assert "Figures need matplotlib: pip install 'cone_kernels[report]'" in root.text
    assert root.all("table")
    assert not root.all("svg")


def test_matplotlib_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, cone_kernels.report, cone_kernels.report.page, cone_kernels.report.tables\n"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_figures_of_results_that_lack_what_is_optional() -> None:
    bare = bare_results()["models"][0]
    for name in ("layers", "pooling"):
        assert figure(bare[name]).axes
    axis = axis_result(k=1)
    axis["components"][0] |= {"top": [], "bottom": []}
    assert len(figure(axis).axes) == 1
    lonely = rotation_result(2)
    assert [panel.name for panel in PANELS["rotation"](Node(lonely))] == ["functional-cosine"]
    unmeasured = centering_result(measured=False) | {"before": {"value": None, "stderr": None}}
    assert PANELS["centering"](Node(unmeasured)) == []


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("font-size: 9px; font-family: 'A', b; text-anchor: end; fill: #0067AB", "font-size: 9px; text-anchor: end; "),
        (
            "fill: #0067ab; font: 700 8.6px 'A', b; text-anchor: end",
            "text-anchor: end; font-weight: 700; font-size: 8.6px; ",
        ),
        ("fill: #0067ab; font: 9px 'A'", "font-size: 9px; "),
    ],
)
def test_styles_of_matplotlib_old_and_new(written: str, kept: str) -> None:
    rules = set(_style(written).split("; "))
    assert rules == {*kept.split("; "), "fill: var(--blue)"} - {""}


def channel(value: int) -> float:
    share = value / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def blend(colour: str, over: str, opacity: float) -> str:
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(over[1:]), strict=True)
    return "#" + bytes(round(a * opacity + b * (1 - opacity)) for a, b in pairs).hex()


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, contrast ratio."""
    luminances = []
    for colour in (a, b):
        red, green, blue = map(channel, bytes.fromhex(colour[1:]))
        luminances.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def schemes() -> list[dict[str, str]]:
    """The colours as the style sheet declares them: light, and dark within its media query."""
    rules = re.findall(r"\.cone \{ ((?:--[a-z]+: #[0-9a-f]{6}; ?)+)", SHEET)
    found = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", rule)) for rule in rules]
    assert found[0] == found[-1] == LIGHT  # the last is print
    assert found[1] == DARK
    return found


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    assert round(contrast("#000000", "#ffffff"), 6) == 21
    colours = schemes()[scheme]
    for name in ("ink", "muted", "link", "blue", "orange", "green", "purple"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["ghost"], colours["paper"]) >= 3
    for name in ("blue", "orange"):  # the strongest cells of a matrix
        cell = blend(colours[name], blend(colours["rule"], colours["paper"], 0.4), STRONGEST)
        assert contrast(colours["ink"], cell) >= 4.5, name
    used = set(re.findall(r"var\(--([a-z]+)\)", SHEET)) - {"least", "width"}
    assert used <= set(colours)
