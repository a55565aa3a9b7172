"""Prints what the benchmarks measured: bytes, FLOPs, rates, ratios, targets; pytest-benchmark saves them as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_reports: list[tuple[str, dict[str, Any]]] = []


@pytest.fixture
def report(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps figures in the benchmark's extra_info and prints them at the end."""

    def keep(**figures: Any) -> None:
        benchmark.extra_info.update(figures)
        _reports.append((request.node.name, figures))

    return keep


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    import torch

    from cone_kernels import _cpu

    machine_info["isa"] = _cpu.isa()
    machine_info["threads"] = torch.get_num_threads()
    machine_info["torch"] = torch.__version__


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, figures in _reports:
        terminalreporter.section(name, sep="-")
        for key, value in figures.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            terminalreporter.write_line(f"  {key:<44} {shown}")
