"""The figures of every experiment; importing this imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable

from cone_kernels.report.figures import axis, centering, compare, layers, pooling, rotation
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.node import Node

PANELS: dict[str, Callable[[Node], list[Panel]]] = {
    "layers": layers.panels,
    "pooling": pooling.panels,
    "axis": axis.panels,
    "rotation": rotation.panels,
    "centering": centering.panels,
    "compare": compare.panels,
}
