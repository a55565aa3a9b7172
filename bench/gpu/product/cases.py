"""All cases: commands, integrations, examples."""

from __future__ import annotations

from bench.gpu.product.case import Case
from bench.gpu.product.commands import command_cases
from bench.gpu.product.integrations import integration_cases
from bench.gpu.product.programs import program_cases


def cases(device: str) -> dict[str, Case]:
    """Those that can be run on a device, by name, in the order of their beginning: what takes longest comes first."""
    commands, integrations, programs = command_cases(), integration_cases(), program_cases()
    listed = [*commands[:2], *integrations[:2], *programs, *commands[2:], *integrations[2:]]
    return {case.name: case for case in listed if device.startswith("cuda") or not case.backend}
