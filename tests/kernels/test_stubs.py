"""The stubs of the compiled modules say of every function what the module itself says of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from types import ModuleType

import pytest

from cone_kernels import _cpu
from tests.support.places import ROOT

MODULES = ["_cpu", "_cuda"]
# pybind11 3 says what it converts to an integer or a float, pybind11 2 what it converts it to; and pybind11 2 calls
# each sequence and mapping that is given a list and a dict.
CONVERTED = {"SupportsInt | SupportsIndex": "int", "SupportsFloat | SupportsIndex": "float"}
GIVEN = {"list[": "Sequence[", "dict[": "Mapping["}
# Names that pybind11 gives where none was given.
UNNAMED = re.compile(r"\barg\d+\b")


def built(name: str) -> ModuleType:
    if importlib.util.find_spec(f"cone_kernels.{name}") is None:
        pytest.skip(f"cone_kernels.{name} is not built")
    return importlib.import_module(f"cone_kernels.{name}")


def stub(name: str) -> ast.Module:
    return ast.parse((ROOT / "cone_kernels" / f"{name}.pyi").read_text())


def functions_of(body: list[ast.stmt], prefix: str = "") -> dict[str, ast.FunctionDef]:
    """The functions of a stub, those of classes by their full names."""
    found = {prefix + node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= functions_of(node.body, f"{node.name}.")
    return found


def told_by(function: object) -> ast.FunctionDef:
    """What pybind11 writes at the head of a function's docstring."""
    line = re.sub(r"\b(?:typing|collections\.abc|cone_kernels\._\w+)\.", "", inspect.getdoc(function).splitlines()[0])
    given, arrow, returned = line.rpartition(" -> ")
    for said, converted in (CONVERTED | GIVEN).items():
        given = given.replace(said, converted)
    (node,) = ast.parse(f"def {given}{arrow}{returned}: ...").body
    assert isinstance(node, ast.FunctionDef)
    return node


def signature(function: ast.FunctionDef) -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
    """Positional parameters, keyword parameters and what is returned, in one writing; `self` is left out."""

    def written(arguments: list[ast.arg]) -> list[tuple[str, str]]:
        types = [ast.unparse(one.annotation) if one.annotation else "" for one in arguments]
        return [(one.arg, said) for one, said in zip(arguments, types, strict=True) if one.arg != "self"]

    positional = written(function.args.posonlyargs + function.args.args)
    return positional, written(function.args.kwonlyargs), ast.unparse(function.returns)


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_has_what_the_module_has(name: str) -> None:
    module, body = built(name), stub(name).body
    declared = {
        node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    declared |= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert declared == {one for one in vars(module) if not one.startswith("__")}


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_tells_the_signatures_of_the_module(name: str) -> None:
    module = built(name)
    for path, declared in functions_of(stub(name).body).items():
        function = module
        for part in path.split("."):
            function = getattr(function, part)
        wanted, found = signature(told_by(function)), signature(declared)
        assert [said for _, said in wanted[0]] == [said for _, said in found[0]], path
        for (real, _), (given, _) in zip(wanted[0], found[0], strict=True):
            assert real == given or UNNAMED.fullmatch(real), path
        assert wanted[1:] == found[1:], path


@pytest.mark.parametrize("name", MODULES)
def test_arguments_without_names_are_positional_alone(name: str) -> None:
    module = built(name)
    for path, declared in functions_of(stub(name).body).items():
        if "." not in path:
            unnamed = bool(UNNAMED.search(inspect.getdoc(getattr(module, path)).splitlines()[0]))
            assert unnamed == bool(declared.args.posonlyargs), path


def test_another_signature_is_noticed() -> None:
    wanted = signature(told_by(_cpu.force_isa))
    assert wanted == ([("isa", "str")], [], "None")
    (other,) = ast.parse("def force_isa(isa: int) -> None: ...").body
    assert signature(other) != wanted


@pytest.mark.parametrize("name", MODULES)
def test_values_are_of_the_types_declared(name: str) -> None:
    module = built(name)
    types = {"bool": bool, "int": int, "list[int]": list}
    declared = [node for node in stub(name).body if isinstance(node, ast.AnnAssign)]
    assert declared
    for node in declared:
        assert type(getattr(module, ast.unparse(node.target))) is types[ast.unparse(node.annotation)]
