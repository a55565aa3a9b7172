"""The tables of every experiment."""

from __future__ import annotations

from collections.abc import Callable

from cone_kernels.report.node import Node
from cone_kernels.report.table import Table
from cone_kernels.report.tables import axis, centering, compare, layers, pooling, rotation

TABLES: dict[str, Callable[[Node], list[Table]]] = {
    "layers": layers.tables,
    "pooling": pooling.tables,
    "axis": axis.tables,
    "rotation": rotation.tables,
    "centering": centering.tables,
    "compare": compare.tables,
}
