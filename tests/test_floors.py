"""No import runs upwards through the rooms of CONTRIBUTING.md, and no two modules import each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "cone_kernels"


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, anywhere in it; names out of a module count as the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it is of"
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else str(node.module) for name in full if str(node.module) in MODULES)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """What each module imports. The package itself hands names on from everywhere, and imports them when asked."""
    return {name: set(imported(path)) - {PACKAGE, name} for name, path in MODULES.items() if name != PACKAGE}


def floors() -> dict[str, int]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```floors\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {room: floor for floor, line in enumerate(block.splitlines()) for room in line.split()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor(imports: dict[str, set[str]]) -> None:
    assert set(floors()) == {room(module) for module in imports}


def test_no_import_runs_upwards(imports: dict[str, set[str]]) -> None:
    floor = floors()
    upwards = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in sorted(others)
        if room(module) != room(other) and floor[room(module)] <= floor[room(other)]
    ]
    assert upwards == []


def test_no_two_modules_import_each_other(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")
