"""One result as HTML: the answer in sentences, the figures, the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cone_kernels.names import EXPERIMENTS
from cone_kernels.report.inline import Parts, escape, markup, name, text
from cone_kernels.report.node import Node
from cone_kernels.report.shared_styles import share_styles
from cone_kernels.report.table import Table, table_html
from cone_kernels.report.tables import TABLES

if TYPE_CHECKING:
    from cone_kernels.report.figures.panel import Panel


UNSETTLED = "The data does not settle this."
NO_FIGURES = "Figures need matplotlib: pip install 'cone_kernels[report]'"

Drawer = Callable[["Panel", str], str]


def experiment_of(result: Node) -> str:
    """Which experiment a result is of.

    Raises:
        ValueError: it is none of ours.
    """
    found = result["experiment"].value
    if not isinstance(found, str) or found not in EXPERIMENTS:
        raise ValueError(f"result: got the experiment {found!r}; it must be one of {', '.join(EXPERIMENTS)}")
    return found


def findings(result: Node) -> str:
    """The sentences of a result, as they are, in a list."""
    sentences = [f"<li>{markup([text(sentence)])}</li>" for sentence in result.get("summary").entries]
    return f'<ul class="findings">{"".join(sentences)}</ul>' if sentences else f"<p>{UNSETTLED}</p>"


def folded(words: Parts, html: str, kind: str = "") -> str:
    """What is closed until the reader opens it, under the words that say what it is."""
    opened = f'<details class="{kind}">' if kind else "<details>"
    return f"{opened}<summary>{markup(words)}</summary>{html}</details>"


def figures_and_tables(panels: Sequence[Panel], tables: Sequence[Table], prefix: str, draw: Drawer) -> str:
    """The figures of a section, then its tables."""
    return "".join([draw(panel, prefix) for panel in panels] + [table_html(table, prefix) for table in tables])


def fragment_html(result: Node, panels: Sequence[Panel] | None, prefix: str, style: str, draw: Drawer) -> str:
    """One result that stands alone in a page of others: a notebook.

    Args:
        result: of one experiment.
        panels: its figures; None where matplotlib is not installed, and the fragment says so.
        prefix: of every id.
        style: the style sheet.
        draw: gives a figure as HTML.
    """
    experiment = experiment_of(result)
    about = EXPERIMENTS[experiment]
    model = result.get("model") if result.get("model").known else result.get("vectors")
    heading = escape(about.heading) + (f": {markup([name(model)])}" if model.known else "")
    body = figures_and_tables(panels or (), TABLES[experiment](result), prefix, draw)
    missing = "" if panels is not None else f'<p class="note">{escape(NO_FIGURES)}</p>'
    question = f"<p><em>{escape(about.question)}</em></p>"
    return fragment_frame(f"<h3>{heading}</h3>{question}{findings(result)}{missing}{body}", prefix, style)


def fragment_frame(html: str, prefix: str, style: str) -> str:
    """What can stand in any page, with its style sheet."""
    shown, shared = share_styles(html, f"{prefix}-")
    return f'<div class="cone cone-fragment"><style>{style}{shared}</style>{shown}</div>'
