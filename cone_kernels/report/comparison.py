"""The sections of a run: the models side by side first, what belongs to one model folded below."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from cone_kernels.names import EXPERIMENTS, VARIABLES, experiments_in_run, label_of
from cone_kernels.report.inline import Parts, escape, fixed, markup, name, percent, text
from cone_kernels.report.node import Node
from cone_kernels.report.quality import QUALITY_HEADING, quality_section
from cone_kernels.report.section import Drawer, figures_and_tables, findings, folded
from cone_kernels.report.table import Column, Table, table_html
from cone_kernels.report.tables import TABLES
from cone_kernels.report.tables.centering import centering_tables
from cone_kernels.report.words import ordinal

if TYPE_CHECKING:
    from cone_kernels.report.figures.panel import Panel

NOT_ASKED = "<p>This run did not ask.</p>"
NO_SECOND_MODEL = (
    "This run measured one model. Whether models share their axis takes two or more of them: "
    "<code>cone run --model … --model …</code>."
)
_IN_OVERVIEW, _FIRST_AXIS = "curve", "axis-1"
_MOST_BESIDE = 5  # models whose matrices stand beside each other, and of which lists are short enough to stand open


def sections(results: Node, models: Sequence[Node], draw: Drawer) -> Iterator[tuple[str, str]]:
    """Id and HTML of each section, in the order of the page.

    Args:
        results: of a run.
        models: those of the run.
        draw: gives a figure as HTML.
    """
    for key in experiments_in_run("each model"):
        yield key, _section(key, _of_each_model(key, models, draw))
    rotation = results.get("rotation")
    yield "rotation", _section("rotation", _rotation(rotation, draw) if rotation.known else _no_rotation(models))
    centerings = results.get("centering").entries
    if centerings:
        yield "centering", _section("centering", _centerings(centerings, draw))
    yield "quality", quality_section(models, draw)


def heading_of(key: str) -> str:
    """What a section is called."""
    return QUALITY_HEADING if key == "quality" else EXPERIMENTS[key].heading


def _of_each_model(key: str, models: Sequence[Node], draw: Drawer) -> str:
    from cone_kernels.report.figures import PANELS

    asked = [(at, model[key]) for at, model in enumerate(models) if model.get(key).known]
    several = len(models) > 1
    body = _undefined(key, models)
    if len(asked) > 1:
        body += _compared(key, [result for _, result in asked], draw)
    by_itself: list[str] = []
    for at, result in asked:
        prefix = f"{key}-{at}" if several else key
        panels, found = PANELS[key](result), TABLES[key](result)
        if len(asked) > 1:
            kept = [panel for panel in panels if panel.name != _FIRST_AXIS]
            whole = findings(result) + figures_and_tables(kept, found, prefix, draw)
            by_itself.append(folded([name(result["model"]), ": its findings, figures and tables"], whole, kind="model"))
        else:
            heading = f"<h3>{markup([name(result['model'])])}</h3>" if several else ""
            more = [panel for panel in panels if panel.name.startswith("axis-") and panel.name != _FIRST_AXIS]
            kept = [panel for panel in panels if panel not in more and (several or panel.name != _IN_OVERVIEW)]
            body += heading + findings(result) + figures_and_tables(kept, (), prefix, draw)
            words = "The other axes, and all tables" if more else "All tables"
            body += folded([words], figures_and_tables(more, found, prefix, draw))
    body += _listed(by_itself, f"Each of the {len(by_itself)} models by itself")
    return body or NOT_ASKED


def _listed(parts: Sequence[str], words: str) -> str:
    """Parts one after the other, one a model; folded where they are many."""
    return "".join(parts) if len(parts) <= _MOST_BESIDE else folded([words], "".join(parts))


def _undefined(key: str, models: Sequence[Node]) -> str:
    """Why a model has no such result, where its results say so."""
    found = [(model, model.get("undefined").get(key)) for model in models]
    return "".join(
        f"<p>{markup([name(model['layers']['model']), ': not defined: ', text(reason)])}</p>"
        for model, reason in found
        if reason.known
    )


def _compared(key: str, results: Sequence[Node], draw: Drawer) -> str:
    """What sets the models side by side; nothing for an experiment that has no such figure."""
    if key == "axis":
        return _compared_axes(results, draw)
    from cone_kernels.report.figures import models

    panels: dict[str, Callable[[Sequence[Node]], list[Panel]]] = {
        "layers": models.compared_layers,
        "pooling": models.compared_pooling,
    }
    return "".join(draw(panel, f"{key}-all") for panel in panels[key](results)) if key in panels else ""


def _compared_axes(results: Sequence[Node], draw: Drawer) -> str:
    from cone_kernels.report.figures.axis import panels

    firsts = [(result, panel) for result in results for panel in panels(result) if panel.name == _FIRST_AXIS]
    beside = [
        f"<div><h3>{markup([name(result['model'])])}</h3>{draw(replace(panel, caption=()), f'axis-first-{at}')}</div>"
        for at, (result, panel) in enumerate(firsts)
    ]
    caption = f'<p class="note">{markup(firsts[0][1].caption)}</p>' if firsts else ""
    drawn = _side_by_side(beside) + caption
    if len(beside) > _MOST_BESIDE:
        drawn = folded([f"The first axes of the {len(beside)} models, drawn"], drawn)
    return drawn + table_html(_axes_table(results), "axis")


def _axes_table(results: Sequence[Node]) -> Table:
    """A row for each axis of each model: how much lies along it, and what it goes with.

    Args:
        results: of `axis`.
    """
    correlations = [one["correlations"] for result in results for one in result["components"]]
    variables = list(dict.fromkeys(key for found in correlations for key, value in found.items() if value.known))
    columns = [Column("model", ("model",), "text"), Column("axis", ("axis",), "text")]
    columns.append(Column("share of the variance", ("explained_variance_ratio",)))
    columns += [Column(f"r with {label_of(VARIABLES, key)}", (f"correlation_{key}",)) for key in variables]
    columns.append(Column("|cos| with the mean", ("mean_cosine",)))
    rows: list[list[Parts]] = []
    for result in results:
        for number, component in enumerate(result["components"], start=1):
            cells: list[Parts] = [[name(result["model"])], [ordinal(number)]]
            cells.append([percent(component["explained_variance_ratio"])])
            cells += [[fixed(component["correlations"].get(key), 2, sign=True)] for key in variables]
            # The angle to the mean is that of the first axis alone.
            cells.append([fixed(result.get("mean_cosine"), 2)] if number == 1 else [])
            rows.append(cells)
    return Table("compared-axes", ["What the axes carry, and what they go with"], columns, rows)


def _rotation(rotation: Node, draw: Drawer) -> str:
    """Of two models their pair; of more of them matrices too, and of many the matrices alone: the pairs are folded."""
    from cone_kernels.report.figures import PANELS

    found, several = TABLES["rotation"](rotation), len(rotation["models"]) > 2
    panels = PANELS["rotation"](rotation) if several else []
    figures = [draw(panel, "rotation") for panel in panels]
    if len(rotation["models"]) > _MOST_BESIDE:
        return findings(rotation) + "".join(figures) + _tables(found, "rotation", ())
    return findings(rotation) + _side_by_side(figures) + _tables(found, "rotation", {"pairs"})


def _no_rotation(models: Sequence[Node]) -> str:
    return f"<p>{NO_SECOND_MODEL}</p>" if len(models) < 2 else NOT_ASKED


def _centerings(centerings: Sequence[Node], draw: Drawer) -> str:
    from cone_kernels.report.figures.centering import centering_panels

    groups = [list(group) for _, group in groupby(centerings, lambda one: one["model"]["name"].value)]
    sentences = "".join(_fixes(group, heading=len(groups) > 1) for group in groups)
    figures = "".join(draw(panel, "centering") for panel in centering_panels(centerings))
    said = folded(["What each does, in sentences"], sentences) if sentences else ""
    return figures + said + _tables(centering_tables(centerings), "centering", ())


def _fixes(centerings: Sequence[Node], *, heading: bool) -> str:
    """What each fix does to one model: all its sentences in one point of a list."""
    points = [" ".join(markup([text(line)]) for line in one.get("summary").entries) for one in centerings]
    listed = "".join(f"<li>{point}</li>" for point in points if point)
    title = f"<h3>{markup([name(centerings[0]['model'])])}</h3>" if heading else ""
    return f'{title}<ul class="findings">{listed}</ul>' if listed else ""


def _tables(tables: Sequence[Table], prefix: str, opened: Collection[str]) -> str:
    """The tables, all folded but those of some names, which come first."""
    ordered = sorted(tables, key=lambda table: table.name not in opened)
    return "".join(table_html(replace(table, folded=table.name not in opened), prefix) for table in ordered)


def _side_by_side(parts: Sequence[str]) -> str:
    """Parts beside each other where there is room, with the drawings that are made for a phone."""
    return f'<div class="beside">{"".join(parts)}</div>' if parts else ""


def _section(key: str, body: str) -> str:
    about = EXPERIMENTS[key]
    heading = f'<h2>{escape(about.heading)}</h2><p class="question">{escape(about.question)}</p>'
    return f'<section id="{key}" class="experiment">{heading}{body}</section>'
