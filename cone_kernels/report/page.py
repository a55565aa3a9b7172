"""The whole report: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from cone_kernels.names import EXPERIMENTS, experiments_in_run
from cone_kernels.report.inline import (
    Inline,
    Key,
    Parts,
    Text,
    code,
    count,
    escape,
    joined,
    markup,
    name,
    plain,
    significant,
    text,
)
from cone_kernels.report.methods import METHODS_HTML
from cone_kernels.report.node import Node
from cone_kernels.report.quality import quality_section
from cone_kernels.report.section import Drawer, experiment_of, figures_and_tables, findings, in_short
from cone_kernels.report.style import style_sheet
from cone_kernels.report.table import Column, Table, table_html
from cone_kernels.report.tables import TABLES
from cone_kernels.report.tables.centering import centering_tables

SCHEMA = "cone_kernels/run/1"

# Whatever a corpus or a model's name may hold, no script runs and nothing is fetched.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NO_SECOND_MODEL = (
    "This run measured one model. Whether models share their axis takes two or more of them: "
    "<code>cone run --model … --model …</code>."
)


def page_html(results: Node, draw: Drawer) -> str:
    """The page of a run.

    Args:
        results: of the schema cone_kernels/run/1.
        draw: gives a figure as HTML.

    Raises:
        ValueError: the results are of another schema, or lack what they must have.
    """
    if results["schema"].value != SCHEMA:
        raise ValueError(f"results: got the schema {results['schema'].value!r}; it must be {SCHEMA!r}")
    models = list(results["models"])
    if not models:
        raise ValueError("results: /models is empty; it must have at least one model")
    sections = "".join(_sections(results, models, draw))
    title = _title(models)
    parts = (_in_short(results, models), sections, _measured(results, models), METHODS_HTML, _manifest(results, models))
    return _document(title, _header(results, models, title), "".join(parts))


def result_page_html(result: Node, draw: Drawer) -> str:
    """The page of one result, of any experiment.

    Args:
        result: what `to_dict` gives.
        draw: gives a figure as HTML.

    Raises:
        ValueError: the result is of no experiment, or lacks what it must have.
    """
    from cone_kernels.report.figures import PANELS

    key = experiment_of(result)
    measured = next((result[what] for what in ("model", "vectors") if result.get(what).known), None)
    title: Parts = [EXPERIMENTS[key].heading, *(() if measured is None else (": ", name(measured)))]
    body = findings(result) + figures_and_tables(PANELS[key](result), TABLES[key](result), key, draw)
    pairs = [_pairs("manifest", ["Its measurement"], result.get("manifest"))]
    pairs += [] if measured is None else [_pairs("measured", ["What was measured"], measured)]
    listed = "".join(table_html(table, "manifest") for table in pairs if table.rows)
    section = f'<section id="{key}" class="experiment">{body}</section>'
    manifest = f'<section id="manifest"><h2>Manifest</h2><p>What it takes to measure this again.</p>{listed}</section>'
    header = f"<header><h1>{markup(title)}</h1><p>{escape(EXPERIMENTS[key].question)}</p></header>"
    return _document(title, header, f"{section}{METHODS_HTML}{manifest}")


def _document(title: Parts, header: str, main: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(plain(title))}</title>"
        f"<style>{style_sheet(page=True)}</style></head>\n"
        f'<body><div class="cone cone-page">{header}<main>{main}</main></div></body></html>\n'
    )


def _title(models: Sequence[Node]) -> Parts:
    if len(models) > 2:
        return [f"The cones of {len(models)} models"]
    return ["The cone of " if len(models) == 1 else "The cones of ", *_names(models)]


def _names(models: Sequence[Node]) -> Parts:
    return joined([[name(_first(model)["model"])] for model in models])


def _first(model: Node) -> Node:
    """The first experiment of a model that was run: all of them carry its model and its corpus."""
    for experiment in experiments_in_run("each model"):
        if model.get(experiment).known:
            return model[experiment]
    raise ValueError(
        f"results: {model.pointer} has no experiment; it must have one of {', '.join(experiments_in_run('each model'))}"
    )


def _header(results: Node, models: Sequence[Node], title: Parts) -> str:
    corpus, manifest = _first(models[0])["corpus"], results.get("manifest")
    started = next((found for found in _started(results, models) if found.known), None)
    facts: list[tuple[str, Parts]] = [("Models", _names(models))] if len(models) > 2 else []
    facts += [("Corpus", _corpus_words(corpus)), ("Left out", _left_out_words(corpus))]
    facts += [("Measured", _moment(started))] if started is not None else []
    device = manifest.get("device") if manifest.get("device").known else _first(models[0]).get("manifest").get("device")
    facts += [("Device", [text(device)])] if device.known else []
    listed = "".join(f"<dt>{escape(term)}</dt><dd>{markup(words)}</dd>" for term, words in facts)
    links = [("in-short", "In short"), *((key, EXPERIMENTS[key].heading) for key in experiments_in_run())]
    links = [link for link in links if link[0] != "centering" or results.get("centering").entries]
    links += [
        ("quality", "Does it help?"),
        ("measured", "What was measured"),
        ("methods", "Definitions"),
        ("manifest", "Manifest"),
    ]
    nav = "".join(f'<li><a href="#{key}">{escape(words)}</a></li>' for key, words in links)
    return (
        f"<header><h1>{markup(title)}</h1><p>Sentence vectors of a transformer point into a narrow cone: two unrelated "
        "sentences have a high cosine. Its mean over all pairs is the anisotropy; here it is, layer by layer.</p>"
        f'<dl>{listed}</dl><nav aria-label="Contents"><ul>{nav}</ul></nav></header>'
    )


def _started(results: Node, models: Sequence[Node]) -> Iterator[Node]:
    yield results.get("manifest").get("started")
    for model in models:
        yield _first(model).get("manifest").get("started")


def _moment(started: Node) -> Parts:
    day, _, clock = started.text.partition("T")
    return [Text(started, day), " at ", Text(started, clock[:5]), " UTC" if clock.endswith("+00:00") else ""]


def _corpus_words(corpus: Node) -> Parts:
    parts: list[Inline] = [count(corpus["sentences"]), " distinct sentences"]
    if corpus.get("name").known:
        parts += [" of ", text(corpus["name"])]
    if corpus.get("tokens").known:
        parts += [", ", count(corpus["tokens"]), " tokens"]
    return parts


def _left_out_words(corpus: Node) -> Parts:
    found: list[Parts] = []
    for key, value in corpus.get("dropped").items():
        found += [[count(value), f" dropped ({key.replace('_', ' ')})"]] if value.value else []
    for key, value in corpus.get("replaced").items():
        found += [[count(value), f" with U+FFFD in place of text ({key.replace('_', ' ')})"]] if value.value else []
    for key, words in {
        "duplicates": "duplicates",
        "truncated": "truncated at the model's longest input",
        "unknown_tokens": "tokens that the tokenizer does not know",
        "left_out": "with a vector that is zero or not finite",
    }.items():
        found += [[count(corpus.get(key)), f" {words}"]] if corpus.get(key).value else []
    return joined(found, ", ") if found else ["nothing"]


def _in_short(results: Node, models: Sequence[Node]) -> str:
    items = []
    together = experiments_in_run("all models")
    for key in (*experiments_in_run("each model"), *together):
        found = [results.get(key)] if key in together else [model.get(key) for model in models]
        found = [result for result in found if result.known]
        words = "".join(
            f"<div>{_whose(result, models)}{in_short(result, brief=len(found) > 1)}</div>" for result in found
        )
        if not words:
            words = f"<p>{_NO_SECOND_MODEL if key in together else 'This run did not ask.'}</p>"
        items.append(f'<li><h3><a href="#{key}">{escape(EXPERIMENTS[key].question)}</a></h3><div>{words}</div></li>')
    return f'<section id="in-short"><h2>In short</h2><ol class="answers">{"".join(items)}</ol></section>'


def _whose(result: Node, models: Sequence[Node]) -> str:
    """The model's name above its answer, where there are several."""
    return f"<h4>{markup([name(result['model'])])}</h4>" if len(models) > 1 and result.get("model").known else ""


def _sections(results: Node, models: Sequence[Node], draw: Drawer) -> Iterator[str]:
    from cone_kernels.report.figures import PANELS
    from cone_kernels.report.figures.centering import centering_panels
    from cone_kernels.report.figures.models import models_panels

    for key in experiments_in_run("each model"):
        measured = [model["layers"] for model in models if model.get("layers").known]
        bodies = [draw(panel, "all") for panel in models_panels(measured)] if key == "layers" else []
        for at, model in enumerate(models):
            result = model.get(key)
            if not result.known:
                continue
            heading = f"<h3>{markup([name(result['model'])])}</h3>" if len(models) > 1 else ""
            prefix = f"{key}-{at}" if len(models) > 1 else key
            body = figures_and_tables(PANELS[key](result), TABLES[key](result), prefix, draw)
            bodies.append(heading + findings(result) + body)
        yield _section(key, "".join(bodies) or "<p>This run did not ask.</p>")
    rotation = results.get("rotation")
    if rotation.known:
        body = figures_and_tables(PANELS["rotation"](rotation), TABLES["rotation"](rotation), "rotation", draw)
        yield _section("rotation", findings(rotation) + body)
    else:
        yield _section("rotation", f"<p>{_NO_SECOND_MODEL}</p>")
    centerings = results.get("centering").entries
    if centerings:
        groups = [list(group) for _, group in groupby(centerings, lambda one: one["model"]["name"].value)]
        sentences = "".join(_fixes(group, heading=len(groups) > 1) for group in groups)
        body = figures_and_tables(centering_panels(centerings), centering_tables(centerings), "centering", draw)
        yield _section("centering", sentences + body)
    yield quality_section(models, draw)


def _fixes(centerings: Sequence[Node], *, heading: bool) -> str:
    """What each fix does to one model: all its sentences in one point of a list."""
    points = [" ".join(markup([text(line)]) for line in one.get("summary").entries) for one in centerings]
    listed = "".join(f"<li>{point}</li>" for point in points if point)
    title = f"<h3>{markup([name(centerings[0]['model'])])}</h3>" if heading else ""
    return f'{title}<ul class="findings">{listed}</ul>' if listed else ""


def _section(key: str, body: str) -> str:
    about = EXPERIMENTS[key]
    heading = f'<h2>{escape(about.heading)}</h2><p class="question">{escape(about.question)}</p>'
    return f'<section id="{key}" class="experiment">{heading}{body}</section>'


def _measured(results: Node, models: Sequence[Node]) -> str:
    wanted: dict[str, str] = {
        "architecture": "architecture",
        "n_layers": "blocks",
        "hidden_size": "width",
        "dtype": "dtype",
        "attention": "attention",
        "max_length": "longest input",
    }
    found = [_first(model) for model in models]
    keys = [key for key in wanted if any(result["model"].get(key).known for result in found)]
    columns = [Column("model", ("name",), "text")]
    columns += [Column(wanted[key], (key,), "number" if _numeric(found, key) else "text") for key in keys]
    columns += [Column("tokens", ("tokens",)), Column("truncated", ("truncated",))]
    rows: list[list[Parts]] = []
    for result in found:
        cells: list[Parts] = [[_value(result["model"].get(key))] for key in keys]
        corpus: list[Parts] = [[count(result["corpus"].get(key))] for key in ("tokens", "truncated")]
        rows.append([[name(result["model"])], *cells, *corpus])
    table = Table("models", ["The models"], columns, rows)
    corpus_table = _pairs("corpus", ["The corpus"], found[0]["corpus"])
    return (
        f'<section id="measured"><h2>What was measured</h2>{table_html(table, "measured")}'
        f"{table_html(corpus_table, 'measured')}</section>"
    )


def _numeric(found: Sequence[Node], key: str) -> bool:
    return all(result["model"].get(key).numeric or not result["model"].get(key).known for result in found)


def _manifest(results: Node, models: Sequence[Node]) -> str:
    tables = [_pairs("run", ["The run"], results.get("manifest"))]
    for at, model in enumerate(models):
        first = _first(model)
        tables.append(_pairs(f"model-{at}", ["The model ", name(first["model"])], first["model"]))
        tables.append(_pairs(f"manifest-{at}", ["Its measurement: ", name(first["model"])], first.get("manifest")))
    listed = "".join(table_html(table, "manifest") for table in tables if table.rows)
    return f'<section id="manifest"><h2>Manifest</h2><p>What it takes to measure this again.</p>{listed}</section>'


def _pairs(table: str, title: Parts, node: Node) -> Table:
    """Names and values of an object and of the objects in it; lists of objects have tables of their own."""
    rows: list[list[Parts]] = [[[Key(value, depth)], _values(value)] for value, depth in _leaves(node, 1)]
    columns = [Column("name", ("name",), "text"), Column("value", ("value",), "long")]
    return Table(table, title, columns, rows, folded=True)


def _leaves(node: Node, depth: int) -> Iterator[tuple[Node, int]]:
    for _, value in node.items():
        if isinstance(value.value, dict):
            yield from _leaves(value, depth + 1)
        elif not (isinstance(value.value, list) and any(isinstance(entry, dict) for entry in value.value)):
            yield value, depth


def _values(node: Node) -> Parts:
    if isinstance(node.value, list):
        return joined([_values(entry) for entry in node], ", ")
    return [_value(node)]


def _value(node: Node) -> Inline:
    if isinstance(node.value, bool):
        return "yes" if node.value else "no"
    return code(node) if isinstance(node.value, str) or not node.known else significant(node, 6)
