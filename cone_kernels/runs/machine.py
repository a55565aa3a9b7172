"""What a manifest says of the machine that a run was made on."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from cone_kernels.runs.runner import Run


def machine(ran: Run) -> dict[str, Any]:
    """Device, threads, dtype, backends and batches of a run; which share of what the model was given was padding."""
    import torch

    positions = ran.part.counts["positions"]
    who = processor(torch.device(ran.part.facts["device"]), ran.backends)
    return {
        "device": who.pop("device"),
        "device_name": who.pop("device_name"),
        "dtype": ran.part.facts["model"]["dtype"],
        "threads": ran.part.identity.get("options.threads", torch.get_num_threads()),
        **who,
        "batches": ran.batches,
        "padding": round(1 - ran.tokens / positions, 4) if positions else 0.0,
        "token_budget": ran.token_budget,
        "out_of_memory": ran.out_of_memory,
    }


def processor(device: torch.device, backends: dict[str, str]) -> dict[str, Any]:
    """The device, and who ran which op on it.

    Args:
        device: that the sums were made on.
        backends: the backend of each op.
    """
    import torch

    isa = None
    if "cpu" in backends.values():
        from cone_kernels import _cpu

        isa = _cpu.isa()
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "backend": ", ".join(sorted(set(backends.values()))),
        "ops": backends,
        "isa": isa,
    }
