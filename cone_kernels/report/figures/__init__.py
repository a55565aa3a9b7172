"""The figures of every experiment that has some: its module here, of its name, has `panels(result)`.

Importing this imports matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from cone_kernels.names import EXPERIMENTS
from cone_kernels.report.figures.panel import Panel
from cone_kernels.report.node import Node


def _none(result: Node) -> list[Panel]:
    return []


PANELS: dict[str, Callable[[Node], list[Panel]]] = {
    name: import_module(f"{__name__}.{name}").panels if find_spec(f"{__name__}.{name}") else _none
    for name in EXPERIMENTS
}
