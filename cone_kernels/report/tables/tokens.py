"""Tables of `tokens`."""

from __future__ import annotations

from cone_kernels.names import TOKEN_DIVISIONS, label_of
from cone_kernels.report.inline import Parts, count, estimate, fixed, percent, text
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table

# Layers side by side, from the first to the last.
_SIDE_BY_SIDE = 8
_MEASURES = {
    "baseline": "any two tokens",
    "self_adjusted": "self-similarity",
    "explained_adjusted": "explained variance",
    "intra_sentence": "intra-sentence",
}

_LEGEND = (
    "Of the cosines of all pairs of tokens, the part that a class makes, and its part of the tokens. + more than "
    "that and − less, told from noise; all classes of all layers are judged together."
)


def tables(result: Node) -> list[Table]:
    """What each class makes of the cone at the layers, and Ethayarajh's measures."""
    return [*(_shares(result, by) for by in TOKEN_DIVISIONS), _similarity(result)]


def _shares(result: Node, by: str) -> Table:
    layers = _some(result["layers"].entries)
    classes = [one for one in result["classes"].entries if one["by"].value == by]
    columns = [Column(label_of(TOKEN_DIVISIONS, by), ("name",), "text")]
    columns += [
        Column(f"layer {one['layer'].value}", (f"{one['layer'].value}_share", f"{one['layer'].value}_tokens"))
        for one in layers
    ]
    rows: list[list[Parts]] = []
    known = TOKEN_DIVISIONS[by].classes if by in TOKEN_DIVISIONS else ()
    names = dict.fromkeys([*known, *(one["name"].text for one in classes)])
    for name in names:
        found = {one["layer"].value: one for one in classes if one["name"].text == name}
        if not found:
            continue
        cells: list[Parts] = [_cell(found.get(layer["layer"].value)) for layer in layers]
        rows.append([[text(next(iter(found.values()))["name"])], *cells])
    title: Parts = [f"Share of the cone and of the tokens, by {label_of(TOKEN_DIVISIONS, by)}"]
    notes = [[_LEGEND]] if by == next(iter(TOKEN_DIVISIONS)) else []
    return Table(f"tokens-{by}", title, columns, rows, notes)


def _cell(one: Node | None) -> Parts:
    if one is None:
        return ()
    told = {"greater": "+", "less": "−"}.get(str(one["excess"]["verdict"].value), "")
    return (percent(one["share"]["value"]), f"{told} of ", percent(one["tokens_share"]))


def _some(layers: list[Node]) -> list[Node]:
    """Of many layers the first, the last, and some between, as far apart as can be."""
    if len(layers) <= _SIDE_BY_SIDE:
        return layers
    last = len(layers) - 1
    return [layers[round(at * last / (_SIDE_BY_SIDE - 1))] for at in range(_SIDE_BY_SIDE)]


def _similarity(result: Node) -> Table:
    columns = [Column("layer", ("layer",))]
    columns += [Column(heading, (key, f"{key}_stderr")) for key, heading in _MEASURES.items()]
    columns.append(Column("of drawn tokens", ("intra_of_drawn",)))
    rows: list[list[Parts]] = [
        [
            [count(row["layer"])],
            *(estimate(row["similarity"][key]["value"], row["similarity"][key]["stderr"]) for key in _MEASURES),
            [fixed(row["similarity"]["intra_of_drawn"])],
        ]
        for row in result["layers"].entries
    ]
    note: Parts = [
        "Self-similarity is less the cosine of any two tokens, explained variance less that of drawn tokens; "
        "intra-sentence similarity stands beside that of sentences of drawn tokens. ± standard errors."
    ]
    return Table("tokens-similarity", ["How contextual words are (Ethayarajh 2019)"], columns, rows, [note])
