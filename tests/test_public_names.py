"""What `import cone_kernels` gives: every name, in one list for programs and in one for type checkers."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cone_kernels
from cone_kernels import _EXPORTS, _MODULES


def imported_for_type_checkers() -> dict[str, str]:
    """Name -> the module it comes from, of the imports under TYPE_CHECKING."""
    tree = ast.parse(Path(cone_kernels.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    found = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, f"{alias.name}: type checkers hand on only `import X as X`"
            found[alias.name] = str(statement.module)
    return found


def printed(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_programs_and_type_checkers_see_the_same_names() -> None:
    exports = {name: f"cone_kernels.{module}" for name, module in _EXPORTS.items()}
    assert imported_for_type_checkers() == exports | dict.fromkeys(_MODULES, "cone_kernels")
    assert sorted(cone_kernels.__all__) == sorted({"__version__", *_EXPORTS, *_MODULES}) == dir(cone_kernels)


@pytest.mark.parametrize("name", cone_kernels.__all__)
def test_every_name_is_there(name: str) -> None:
    value = getattr(cone_kernels, name)
    if name in _MODULES:
        assert value is importlib.import_module(f"cone_kernels.{name}")
    elif name != "__version__":
        assert value is getattr(importlib.import_module(f"cone_kernels.{_EXPORTS[name]}"), name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cone_kernels' has no attribute 'Cone'"):
        _ = cone_kernels.Cone


def test_a_star_import_brings_every_name() -> None:
    names: dict[str, object] = {}
    exec("from cone_kernels import *", names)
    assert set(names) - {"__builtins__"} == set(cone_kernels.__all__)


def test_the_package_and_its_integrations_import_no_heavy_library() -> None:
    heavy = {
        "accelerate",
        "lightning",
        "numpy",
        "scipy",
        "sentence_transformers",
        "torch",
        "torchmetrics",
        "transformers",
    }
    code = f"import sys, cone_kernels; cone_kernels.integrations; print(sorted({heavy} & set(sys.modules)))"
    assert printed(code) == "[]"


# Each name is the first of the package that a process asks for; what they all import is imported once for them.
ALONE = ["axes", "metrics", "experiments", "integrations", "Corpus", "load_model", "experiments.layers"]
_EACH_ALONE = """
import os, sys, torch
assert not any(module.startswith("cone_kernels") for module in sys.modules)
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        import cone_kernels
        print(name, eval(f"cone_kernels.{name}") is not None, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def reached() -> list[str]:
    return printed(_EACH_ALONE, *ALONE).splitlines()


@pytest.mark.parametrize("name", ALONE)
def test_names_are_reached_from_the_package_alone(name: str, reached: list[str]) -> None:
    assert f"{name} True" in reached
