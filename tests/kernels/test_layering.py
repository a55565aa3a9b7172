"""What the rooms of the kernels and ops import: kernels nothing above them, ops no kernel but through `backends`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.places import ROOT

PACKAGE = ROOT / "cone_kernels"
BELOW_KERNELS = {"_cpu", "_cuda", "devices", "sums"}
# Modules that hand addresses to kernels, and one that asks whether two tensors share memory.
TAKE_ADDRESSES = {
    "kernels/pointers.py",
    "kernels/cpu.py",
    "kernels/cuda/matrices.py",
    "kernels/cuda/moments.py",
    "kernels/triton/layers.py",
    "probe/calibration.py",
}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, as `ops.arguments`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cone_kernels":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cone_kernels."):
            names.add((node.module or "").removeprefix("cone_kernels."))
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("cone_kernels.") for alias in node.names if "cone_kernels" in alias.name}
    return names


@pytest.mark.parametrize(
    ("room", "below"), [("kernels", BELOW_KERNELS), ("ops", {"backends", "devices", "sums"})], ids=["kernels", "ops"]
)
def test_a_room_imports_itself_and_what_is_below(room: str, below: set[str]) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        outside = {name for name in imported(path) if name.split(".")[0] != room}
        assert outside <= below, path


def test_what_is_below_the_kernels_imports_nothing_of_them() -> None:
    for name in ("devices", "sums"):
        assert imported(PACKAGE / f"{name}.py") <= {"devices", "sums"}, name


def test_only_adapters_take_addresses() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "data_ptr()" in path.read_text()}
    assert found == TAKE_ADDRESSES
