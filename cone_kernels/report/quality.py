"""The section of a run's page on what labelled pairs say."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.names import QUALITY_NOT_MEASURED
from cone_kernels.report.inline import escape, markup, name
from cone_kernels.report.node import Node
from cone_kernels.report.section import Drawer, figures_and_tables, findings
from cone_kernels.report.tables.quality import quality_tables

QUALITY_HEADING = "Does it help?"


def quality_section(models: Sequence[Node], draw: Drawer) -> str:
    """Sentences, figure and tables of each model; that nothing was measured where there were no pairs.

    Args:
        models: of a run's results.
        draw: gives a figure as HTML.
    """
    from cone_kernels.report.figures.quality import quality_panels

    bodies = []
    for at, model in enumerate(models):
        quality = model.get("quality")
        if quality.known:
            prefix = f"quality-{at}" if len(models) > 1 else "quality"
            heading = f"<h3>{markup([name(model['layers']['model'])])}</h3>" if len(models) > 1 else ""
            body = figures_and_tables(quality_panels(quality), quality_tables(quality), prefix, draw)
            bodies.append(heading + findings(quality) + body)
    body = "".join(bodies) or f"<p>{escape(QUALITY_NOT_MEASURED)}</p>"
    question = f'<h2>{escape(QUALITY_HEADING)}</h2><p class="question">Do centred vectors serve better?</p>'
    return f'<section id="quality" class="experiment">{question}{body}</section>'
