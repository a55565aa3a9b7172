"""What the modules of runs/ import: nothing of what is built on them, and no torch before a run begins."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cone_kernels

PACKAGE = Path(cone_kernels.__file__).parent
MODULES = sorted((PACKAGE / "runs").rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The modules of this package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            found |= {f"{node.module}.{name.name}" for name in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name.removeprefix("cone_kernels.") for name in found if name.startswith("cone_kernels.")}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_module_imports_what_is_built_on_it(file: Path) -> None:
    names = imported(file)
    rooms = {name.split(".")[0] for name in names}
    assert not rooms & {"experiments", "report", "terminal", "cli", "integrations"}
    # The modules that share a run call `measure_part`, or `vectors_pass`; only `measure` chooses one of them, and of
    # vectors `measure_vectors`.
    if file.parent.name == "sharing" or file.name in ("measure_part.py", "vectors_pass.py"):
        assert not names & {"runs.measure", "runs.measure_vectors"}
    elif file.name not in ("measure.py", "measure_vectors.py"):
        assert not any(name.startswith("runs.sharing") for name in names)


def test_measure_is_imported_without_torch() -> None:
    code = "import sys, cone_kernels.runs.measure, cone_kernels.runs.sharing.workers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
