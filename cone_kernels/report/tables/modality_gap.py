"""Tables of `modality_gap`."""

from __future__ import annotations

from cone_kernels.names import OUTPUT
from cone_kernels.report.inline import Parts, count, estimate, fixed, name, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table, reasons

_TOWERS = ("images", "texts")


def tables(result: Node) -> list[Table]:
    """How far apart the two cones are, and how tight each is, layer by layer."""
    return [_gap(result), _layers(result)]


def _gap(result: Node) -> Table:
    outputs = [result[tower]["output"]["sentence"] for tower in _TOWERS]
    rows: list[list[Parts]] = [
        [["cosine of the two means"], _estimate(result["cosine_of_means"])],
        [["distance of the two means"], _estimate(result["gap"])],
        *_by_chance(result.get("gap_by_chance")),
        [["mean cosine of an image and a text"], _estimate(result["across"])],
    ]
    for output, words in zip(outputs, ("of two images", "of two texts"), strict=True):
        rows.append([[f"mean cosine {words}"], estimate(output["anisotropy"], output["stderr"])])
    rows += [[[tower], [count(output["count"])]] for output, tower in zip(outputs, _TOWERS, strict=True)]
    columns = [Column("of the vectors", ("name",), "text"), Column("value, ± its standard error", ("value",))]
    title: Parts = ["Images and texts in the space of ", name(result["model"])]
    return Table("modality-gap", title, columns, rows, reasons([output.get("reason") for output in outputs]))


def _by_chance(chance: Node) -> list[list[Parts]]:
    """What the distance would be by chance alone; no rows of a result that was written without it."""
    if not chance.known:
        return []
    return [
        [["that distance in one cone, by chance"], [fixed(chance["expected"])]],
        [["and at most, in 19 of 20 draws"], [fixed(chance["at_most"])]],
    ]


def _layers(result: Node) -> Table:
    rows: list[list[Parts]] = []
    levels: list[Node] = []
    for tower in _TOWERS:
        for row in result[tower]["layers"]:
            sentence, token = row["sentence"], row["token"]
            levels += [sentence, token]
            cells = [estimate(level["anisotropy"], level["stderr"]) for level in (sentence, token)]
            rows.append([[tower], [count(row["layer"])], [text(row["name"])], *cells])
        output = result[tower]["output"]["sentence"]
        rows.append([[tower], [OUTPUT], [], estimate(output["anisotropy"], output["stderr"]), []])
    columns = [
        Column("tower", ("tower",), "text"),
        Column("layer", ("layer",)),
        Column("module", ("name",), "text"),
        Column("of two vectors", ("sentence_anisotropy", "sentence_stderr")),
        Column("of two tokens or patches", ("token_anisotropy", "token_stderr")),
    ]
    return Table(
        "towers",
        ["The mean cosine in both towers, layer by layer, ± its standard error"],
        columns,
        rows,
        reasons([one.get("reason") for one in levels]),
    )


def _estimate(node: Node) -> Parts:
    return estimate(node["value"], node["stderr"])
