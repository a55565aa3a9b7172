"""All cases: commands, integrations, examples."""

from __future__ import annotations

from bench.gpu.product.case import Case
from bench.gpu.product.commands import command_cases
from bench.gpu.product.integrations import integration_cases
from bench.gpu.product.programs import program_cases

# What compiles or draws, then what imports most or starts processes.
_LONGEST = (
    "layers --torch-compile",
    "run of two models",
    "layers --workers 2",
    "layers --second-moment --backend triton",
    "Lightning callback",
    "Trainer callback",
    "sentence-transformers evaluator",
    "sentence-transformers centering module",
)


def cases(device: str) -> dict[str, Case]:
    """Those that can be run on a device, by name, in the order of their beginning: what takes longest comes first."""
    listed = {case.name: case for case in (*program_cases(), *command_cases(), *integration_cases())}
    ordered = {name: listed[name] for name in _LONGEST} | listed
    return {name: case for name, case in ordered.items() if device.startswith("cuda") or not case.backend}
