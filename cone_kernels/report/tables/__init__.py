"""The tables of every experiment: its module here, of its name, has `tables(result)`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from cone_kernels.names import EXPERIMENTS
from cone_kernels.report.node import Node
from cone_kernels.report.table import Table

TABLES: dict[str, Callable[[Node], list[Table]]] = {
    name: import_module(f"{__name__}.{name}").tables for name in EXPERIMENTS
}
