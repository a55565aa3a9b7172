"""The report: figures, fragments for notebooks and one self-contained HTML page, made from the JSON data of results.

Nothing here imports matplotlib until a figure is drawn.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.extras import require
from cone_kernels.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cone_kernels.report.figures.panel import Panel

__all__ = ["figure", "fragment", "write_report"]


def figure(result: dict[str, Any]) -> Figure:
    """A matplotlib figure of one result, all of its panels one above the other.

    pyplot is not imported and no setting of matplotlib is changed. In a notebook the figure shows itself.

    Args:
        result: what `to_dict` of an experiment's result gives, or the same read from a JSON file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: the result is of no experiment, lacks what it must have, or has no figure.

    Examples:
        >>> figure(layers(model, corpus).to_dict()).savefig("layers.png", dpi=200)
    """
    from cone_kernels.report.node import Node
    from cone_kernels.report.section import experiment_of

    node = Node(result)
    experiment = experiment_of(node)
    require("matplotlib", "report", "a figure")
    from cone_kernels.report.figures import PANELS
    from cone_kernels.report.figures.panel import stacked

    panels = PANELS[experiment](node)
    if not panels:
        raise ValueError(f"result: got an experiment {experiment!r} with nothing to draw; it must have a figure")
    return stacked(panels)


def fragment(result: dict[str, Any]) -> str:
    """One result as HTML that can stand in any page: its sentences, its figures as inline SVG, its tables.

    Of a run it is the first table and figure of the report. Where matplotlib is missing, the fragment says so in place
    of the figures.

    Args:
        result: as in `figure`, or JSON data of the schema cone_kernels/run/1.

    Raises:
        ValueError: as in `figure`.

    Examples:
        >>> IPython.display.HTML(fragment(layers(model, corpus).to_dict()))
    """
    from cone_kernels.report.node import Node
    from cone_kernels.report.section import experiment_of, fragment_html
    from cone_kernels.report.style import style_sheet

    node, style = Node(result), style_sheet(page=False)
    can_draw = find_spec("matplotlib") is not None
    # Fragments of other results stand on the same page, and ids must differ.
    prefix = f"cone-{hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:12]}"
    if "experiment" not in result and "schema" in result:
        from cone_kernels.report.page import run_fragment_html

        return run_fragment_html(node, prefix, style, _draw_wide if can_draw else None)
    experiment, panels = experiment_of(node), None
    if can_draw:
        from cone_kernels.report.figures import PANELS

        panels = PANELS[experiment](node)
    return fragment_html(node, panels, prefix, style, _draw_wide)


def write_report(results: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the page of a run, or of one result; aside first, then renamed, so that there is never half of one.

    Args:
        results: JSON data of the schema cone_kernels/run/1, or what `to_dict` of an experiment's result gives.
        path: the file to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the file cannot be written.
        ValueError: the results are of another schema, or lack what they must have.

    Examples:
        >>> write_report(json.loads(Path("out/results.json").read_text()), "out/report.html")
    """
    require("matplotlib", "report", "the report")
    from cone_kernels.report.node import Node
    from cone_kernels.report.page import page_html, result_page_html

    html = result_page_html if "experiment" in results else page_html
    # UTF-8 has no bytes for a lone surrogate; as a character reference browsers show U+FFFD.
    page = html(Node(results), _draw_both).encode("utf-8", "xmlcharrefreplace")
    write_whole(Path(path).resolve(), page)


def _draw_wide(panel: Panel, prefix: str) -> str:
    from cone_kernels.report.figures.panel import figure_html

    return figure_html(panel, f"{prefix}-{panel.name}", narrow=False)


def _draw_both(panel: Panel, prefix: str) -> str:
    from cone_kernels.report.figures.panel import figure_html

    return figure_html(panel, f"{prefix}-{panel.name}", narrow=True)
