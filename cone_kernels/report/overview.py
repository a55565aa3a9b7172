"""The first table of a run: the answer for each model in one row."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.report.inline import Parts, count, estimate, fixed, name, plain, stderr, text
from cone_kernels.report.node import Node, known
from cone_kernels.report.table import Column, Table
from cone_kernels.report.words import centering_method, deployed_quality, widest_gap

_DIGITS = 3


def overview_table(results: Node) -> Table:
    """Models × peak, output, pooling gap, subspace shared with the first, after the fix, quality.

    A column that the run has nothing for is left out.

    Args:
        results: of the schema cone_kernels/run/1.
    """
    models, fixes = list(results["models"]), _fixes(results)
    outputs = [model["layers"].get("output").get("sentence").known for model in models]
    last = "output" if all(outputs) else "output, or last layer" if any(outputs) else "last layer"
    columns = [Column("model", ("model",), "text"), Column("peak", ("peak", "peak_layer"))]
    columns += [Column(last, ("last", "last_stderr")), Column("pooling gap", ("gap", "gap_layer"))]
    rotation, qualities = results.get("rotation"), [deployed_quality(model) for model in models]
    if rotation.known:
        columns.append(Column("axes shared with the first", ("shared", "shared_stderr", "shared_verdict")))
    if any(fix is not None for fix in fixes):
        columns.append(Column("after the fix", ("fixed", "fixed_stderr")))
    if any(quality is not None for quality in qualities):
        columns.append(Column("quality", ("quality", "quality_best")))
    rows: list[list[Parts]] = []
    for at, (model, fix, quality) in enumerate(zip(models, fixes, qualities, strict=True)):
        cells = [[name(model["layers"]["model"])], _peak(model), _last(model), _gap(model)]
        cells += [_shared(rotation, at)] if rotation.known else []
        cells += [_fixed(fix)] if any(one is not None for one in fixes) else []
        cells += [_quality(quality)] if any(one is not None for one in qualities) else []
        rows.append(cells)
    title = "The models at a glance" if len(models) > 1 else "The model at a glance"
    return Table("overview", [title], columns, rows, _notes(rotation, fixes, qualities))


def _peak(model: Node) -> Parts:
    peak = model["layers"].get("shape").get("peak")
    if not peak.known:
        return [fixed(peak.get("anisotropy"))]
    return [fixed(peak["anisotropy"], _DIGITS), " at layer ", count(peak["layer"])]


def _last(model: Node) -> Parts:
    layers = model["layers"]
    row = layers["output"] if layers.get("output").get("sentence").known else layers["layers"][-1]
    return estimate(row["sentence"].get("anisotropy"), row["sentence"].get("stderr"), _DIGITS)


def _gap(model: Node) -> Parts:
    row = widest_gap(model["pooling"]) if model.get("pooling").known else None
    if row is None:
        return [fixed(model.get("pooling").get("gap"))]
    return [fixed(row["gap"]["value"], _DIGITS, sign=True), " at layer ", count(row["layer"])]


def _shared(rotation: Node, at: int) -> Parts:
    """The overlap of the spaces of the top axes with that of the first model, and what it amounts to."""
    if at == 0:
        return []
    overlap, verdict = (rotation.get(key) for key in ("overlap", "verdict"))
    if not known(overlap, verdict) or not overlap[0][at].known:
        return [fixed(Node(None, f"{rotation.pointer}/overlap/0/{at}/corrected"))]
    found = overlap[0][at]
    # The verdict is there where the numbers are not: of axes that the sentences do not determine.
    value, error = fixed(found["corrected"], _DIGITS), stderr(found["stderr"], _DIGITS)
    return [value, " ± ", error, ", ", text(verdict[0][at])]


def _fixes(results: Node) -> list[Node | None]:
    """The first centring of each model, the mean removed, where it was measured on sentences it was not fitted on."""
    found = [one for one in results.get("centering").entries if one.get("held_out").known]
    return [
        next((one for one in found if one["model"]["name"].value == model["layers"]["model"]["name"].value), None)
        for model in results["models"]
    ]


def _fixed(fix: Node | None) -> Parts:
    if fix is None:
        return []
    return estimate(fix["held_out"]["value"], fix["held_out"].get("stderr"), _DIGITS)


def _quality(quality: Node | None) -> Parts:
    """As it is, and after the way to centre that is best."""
    if quality is None:
        return []
    raw, methods = quality["raw"], [method for _, method in quality["methods"].items() if method["value"].known]
    if not raw.known or not methods:
        return [fixed(raw)]
    best = max(methods, key=lambda method: method["value"].number)
    return [fixed(raw, _DIGITS), " → ", fixed(best["value"], _DIGITS)]


def _notes(rotation: Node, fixes: Sequence[Node | None], qualities: Sequence[Node | None]) -> list[Parts]:
    words = ["Mean cosine of two sentences, ± its standard error; pooling gap: the most that pooling adds at a layer"]
    if rotation.known:
        words.append("axes shared: overlap of the spaces of the top axes, from 0 to 1")
    found = next((fix for fix in fixes if fix is not None), None)
    if found is not None:
        how = plain(centering_method(found))
        words.append(f"after the fix: {how}, measured on sentences that it was not fitted on")
    if any(quality is not None for quality in qualities):
        words.append("quality: on the pairs that were given, as it is → after the best way to centre")
    return [[f"{'; '.join(words)}."]]
