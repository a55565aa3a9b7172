"""What `cone doctor` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def print_doctor(console: Console, found: dict[str, Any]) -> None:
    """What `cone_kernels.doctor.examine` found."""
    installed = (f"{name} {version or '(not installed)'}" for name, version in found["versions"].items())
    console.print("[bold]versions[/]   " + ", ".join(installed), soft_wrap=True)
    console.print("[bold]backends[/]")
    for backend in found["backends"]:
        mark = "[green]yes[/]" if backend["available"] else "[yellow]no [/]"
        what = backend["reason"] or f"{', '.join(backend['ops'])} on {', '.join(backend['devices'])}"
        console.print(f"  {mark} {backend['backend']:<9} {what}", soft_wrap=True)
    cpu = found["cpu"]
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores usable"
    console.print(f"[bold]cpu[/]        {cpu['name']}, {cores}, torch threads: {cpu['torch_threads'] or '-'}")
    isas = ", ".join(cpu["supported_isas"]) or "-"
    console.print(f"[bold]isa[/]        {cpu['isa'] or '-'} (this machine runs: {isas})")
    for gpu in found["gpus"]:
        console.print(f"[bold]gpu[/]        {gpu['name']}, {_gib(gpu['memory_bytes'])}, sm {gpu['capability']}")
    memory = {what.removesuffix("_bytes"): size for what, size in found["memory"].items() if size is not None}
    console.print("[bold]memory[/]     " + ", ".join(f"{what} {_gib(size)}" for what, size in memory.items()))
    measured = found["bandwidth"]
    console.print(f"[bold]bandwidth[/]  {measured['gb_per_s']:.1f} GB/s ({measured['method']})")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
