"""The whole report: one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cone_kernels.names import EXPERIMENTS
from cone_kernels.report.comparison import heading_of, sections
from cone_kernels.report.document import document
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
    significant,
    text,
)
from cone_kernels.report.methods import METHODS_HTML
from cone_kernels.report.node import Node
from cone_kernels.report.overview import overview_table
from cone_kernels.report.section import (
    NO_FIGURES,
    Drawer,
    experiment_of,
    figures_and_tables,
    findings,
    fragment_frame,
)
from cone_kernels.report.table import Column, Table, table_html
from cone_kernels.report.tables import TABLES

SCHEMA = "cone_kernels/run/1"


def page_html(results: Node, draw: Drawer) -> str:
    """The page of a run: the answer for every model in one table and one figure, then a section for each experiment.

    Args:
        results: of the schema cone_kernels/run/1.
        draw: gives a figure as HTML.

    Raises:
        ValueError: the results are of another schema, or lack what they must have.
    """
    models = _models(results)
    title, found = _title(models), list(sections(results, models, draw))
    contents = [("overview", "Overview"), *((key, heading_of(key)) for key, _ in found)]
    contents.append(("measured", "What was measured"))
    main = "".join((_overview(results, models, draw), *(html for _, html in found), _measured(results, models)))
    return document(title, _header(results, models, title), main, contents)


def run_fragment_html(results: Node, prefix: str, style: str, draw: Drawer | None) -> str:
    """The answer of a run in a page of others, a notebook: its first table and figure.

    Args:
        results: of the schema cone_kernels/run/1.
        prefix: of every id.
        style: the style sheet.
        draw: gives a figure as HTML; None where matplotlib is not installed, and the fragment says so.

    Raises:
        ValueError: as `page_html`.
    """
    models = _models(results)
    missing = "" if draw else f'<p class="note">{escape(NO_FIGURES)}</p>'
    answer = _answer(results, models, prefix, draw)
    return fragment_frame(f"<h3>{markup(_title(models))}</h3>{missing}{answer}", prefix, style)


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
    measured_as = f'<section id="measured"><h2>What was measured</h2>{METHODS_HTML}{listed}</section>'
    header = f"<header><h1>{markup(title)}</h1><p>{escape(EXPERIMENTS[key].question)}</p></header>"
    return document(title, header, section + measured_as)


def _models(results: Node) -> list[Node]:
    if results["schema"].value != SCHEMA:
        raise ValueError(f"results: got the schema {results['schema'].value!r}; it must be {SCHEMA!r}")
    models = list(results["models"])
    if not models:
        raise ValueError("results: /models is empty; it must have at least one model")
    return models


def _title(models: Sequence[Node]) -> Parts:
    if len(models) > 2:
        return [f"The cones of {len(models)} models"]
    return ["The cone of " if len(models) == 1 else "The cones of ", *_names(models)]


def _names(models: Sequence[Node]) -> Parts:
    return joined([[name(model["layers"]["model"])] for model in models])


def _header(results: Node, models: Sequence[Node], title: Parts) -> str:
    corpus, manifest = models[0]["layers"]["corpus"], results.get("manifest")
    started = next((found for found in _started(results, models) if found.known), None)
    device = manifest.get("device")
    device = device if device.known else models[0]["layers"].get("manifest").get("device")
    facts: list[Parts] = [_corpus_words(corpus), ["left out: ", *_left_out_words(corpus)]]
    facts += [["measured ", *_moment(started)]] if started is not None else []
    facts += [["on ", text(device)]] if device.known else []
    listed = "".join(f"<li>{markup(words)}</li>" for words in facts)
    return (
        f"<header><h1>{markup(title)}</h1>"
        "<p>The anisotropy of a cone is the mean cosine of two vectors picked at random: here of sentences, layer by "
        "layer.</p>"
        f'<ul class="facts">{listed}</ul></header>'
    )


def _overview(results: Node, models: Sequence[Node], draw: Drawer) -> str:
    return f'<section id="overview" aria-label="Overview">{_answer(results, models, "run", draw)}</section>'


def _answer(results: Node, models: Sequence[Node], prefix: str, draw: Drawer | None) -> str:
    """The answer for every model in one table and, where it can be drawn, one figure."""
    table = table_html(overview_table(results), prefix, cards=True)
    if draw is None:
        return table
    from cone_kernels.report.figures.models import overview_panel

    return table + draw(overview_panel([model["layers"] for model in models]), prefix)


def _started(results: Node, models: Sequence[Node]) -> Iterator[Node]:
    yield results.get("manifest").get("started")
    for model in models:
        yield model["layers"].get("manifest").get("started")


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


def _measured(results: Node, models: Sequence[Node]) -> str:
    wanted: dict[str, str] = {
        "architecture": "architecture",
        "n_layers": "blocks",
        "hidden_size": "width",
        "dtype": "dtype",
        "attention": "attention",
        "max_length": "longest input",
    }
    found = [model["layers"] for model in models]
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
    tables = [_pairs("corpus", ["The corpus"], found[0]["corpus"]), _pairs("run", ["The run"], results.get("manifest"))]
    for at, result in enumerate(found):
        named: Parts = [name(result["model"])]
        tables.append(_pairs(f"model-{at}", ["The model ", *named], result["model"]))
        tables.append(_pairs(f"manifest-{at}", ["Its measurement: ", *named], result.get("manifest")))
    listed = "".join(table_html(one, "measured") for one in tables if one.rows)
    return (
        f'<section id="measured"><h2>What was measured</h2>{table_html(table, "measured")}'
        f"{METHODS_HTML}{listed}</section>"
    )


def _numeric(found: Sequence[Node], key: str) -> bool:
    return all(result["model"].get(key).numeric or not result["model"].get(key).known for result in found)


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
