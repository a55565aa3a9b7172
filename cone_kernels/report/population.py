"""What n vectors say of the geometry of more of them: columns of a table, and its note."""

from __future__ import annotations

from cone_kernels.names import GEOMETRY
from cone_kernels.report.inline import Parts, estimate, percent
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column

# The estimates that are corrected for n, with their decimals; and the ranks, which lack something of that of more rows.
_CORRECTED = {"participation_ratio": 1, "iso_score": 4}
_LACKING = ("effective_rank", "rank_me")

POPULATION_COLUMNS = [
    *(
        Column(f"{GEOMETRY[key].label}, corrected for n", (f"population_{key}", f"population_{key}_stderr"))
        for key in _CORRECTED
    ),
    *(Column(f"{GEOMETRY[key].label} lacks at least", (f"population_{key}_lacks",)) for key in _LACKING),
]
POPULATION_NOTE = (
    "Participation ratio, IsoScore, effective rank and RankMe grow with the number of vectors: those of different "
    "numbers are not comparable. Corrected for n: what independent vectors say of all of their kind, ± its standard "
    "error. Lacks at least: of the rank that more of them would give."
)


def population_cells(population: Node) -> list[Parts]:
    """The cells of a row under POPULATION_COLUMNS."""
    corrected: list[Parts] = [
        estimate(population.get(key).get("value"), population.get(key).get("stderr"), digits)
        for key, digits in _CORRECTED.items()
    ]
    return corrected + [[percent(population.get(key).get("lacks"))] for key in _LACKING]
