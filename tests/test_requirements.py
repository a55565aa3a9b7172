"""That the locks are whole: every Python, every requirement, nothing of the machine that made them."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.places import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = [f"3.{minor}" for minor in range(10, 15)]
LOCKS = ("demo", "test", "oldest")
# torch and the package whose dependency it is are left out of locks; see requirements/left-out*.in.
LEFT_OUT = {"demo": {"torch", "sentence-transformers"}, "test": {"torch"}, "oldest": {"torch"}}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def lock(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.txt"


def locked(name: str, python: str) -> dict[str, Version]:
    """What pip installs from a lock under a Python on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    versions: dict[str, Version] = {}
    for line in re.findall(r"^(\S.*==.*) \\$", lock(name).read_text(), flags=re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            key = canonicalize_name(requirement.name)
            assert key not in versions, f"{name}.txt has {key} twice for Python {python}"
            (pin,) = requirement.specifier
            versions[key] = Version(pin.version)
    return versions


def assert_satisfied(lines: list[str], versions: dict[str, Version], left_out: set[str]) -> None:
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in left_out:
            assert requirement.specifier.contains(versions[name], prereleases=True), (line, versions[name])


def oldest_torch() -> Version:
    """The release that `make test-oldest` installs."""
    found = re.search(r"^TORCH_OLDEST \?= torch==(.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert found is not None
    return Version(found[1])


def requirements_of(*extras: str) -> list[str]:
    project = PROJECT["project"]
    chosen = extras or project["optional-dependencies"]
    optional = [line for extra in chosen for line in project["optional-dependencies"][extra]]
    return PROJECT["build-system"]["requires"] + project["dependencies"] + optional


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_have_all_that_is_asked_for(python: str) -> None:
    assert_satisfied(requirements_of(), locked("test", python), LEFT_OUT["test"])
    assert_satisfied(requirements_of("demo"), locked("demo", python), LEFT_OUT["demo"])
    further = [line for line in (ROOT / "requirements/trl.in").read_text().splitlines() if not line.startswith("#")]
    assert_satisfied(further, locked("test", python), set())


def test_the_oldest_are_the_lowest_that_are_asked_for() -> None:
    versions = locked("oldest", "3.10")
    assert_satisfied(requirements_of(), versions, LEFT_OUT["oldest"])
    higher = {
        str(requirement)
        for requirement in map(Requirement, requirements_of())
        if (name := canonicalize_name(requirement.name)) not in LEFT_OUT["oldest"]
        and versions[name] != min(Version(bound.version) for bound in requirement.specifier)
    }
    assert not higher
    (floor,) = Requirement(PROJECT["project"]["optional-dependencies"]["torch"][0]).specifier
    assert oldest_torch() == Version(floor.version)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_demo_runs_on_the_versions_that_are_tested(python: str) -> None:
    assert locked("demo", python).items() <= locked("test", python).items()


def test_what_torch_asks_for_is_locked_though_torch_is_not() -> None:
    is_oldest = Version(importlib.metadata.version("torch")).release[:2] == oldest_torch().release[:2]
    python = f"3.{sys.version_info.minor}"
    asked = [Requirement(line) for line in importlib.metadata.requires("torch") or []]
    plain = [r for r in asked if not r.name.startswith(("nvidia-", "cuda-", "triton"))]
    lines = [f"{r.name}{r.specifier}" for r in plain if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(lines) >= 5
    for name in ("oldest",) if is_oldest else ("demo", "test"):
        assert_satisfied(lines, locked(name, python), set())


@pytest.mark.parametrize("name", ["build", "nvcc", *LOCKS])
def test_locks_hold_final_releases_only(name: str) -> None:
    pins = re.findall(r"^([\w.-]+)==(\S+)", lock(name).read_text(), flags=re.MULTILINE)
    assert pins
    assert not [pin for pin in pins if Version(pin[1]).is_prerelease]


@pytest.mark.parametrize("name", ["nvcc", *LOCKS])
def test_locks_say_nothing_of_the_machine_that_made_them(name: str) -> None:
    text = lock(name).read_text()
    for foreign in ("://", "/tmp", "/home", "/root", "--index", "--find-links", " @ ", "-e "):
        assert foreign not in text
    assert not re.search(r"^torch==", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_version_has_hashes(name: str) -> None:
    text = lock(name).read_text()
    entries = re.split(r"\n(?=[a-z])", text)[1:]
    assert len(entries) > 30
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_demo_asks_for_nothing_of_tests_and_training() -> None:
    heavy = {"pytest", "triton", "ray", "lightning", "datasets", "scikit-learn", "matplotlib", "mypy"}
    assert not heavy & set(locked("demo", "3.11"))


def test_what_is_missing_is_asked_for_by_an_extra_that_brings_it() -> None:
    """`require(package, extra, what)` says how to install a package; the extra must be one of ours, and have it."""
    calls = [
        [argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)]
        for file in sorted((ROOT / "cone_kernels").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"
    ]
    named = {(package, extra) for package, extra in (call for call in calls if len(call) == 2)}
    assert ("pyarrow", "parquet") in named
    optional = PROJECT["project"]["optional-dependencies"]
    distributions = importlib.metadata.packages_distributions()  # scikit-learn is imported as sklearn
    for package, extra in named:
        brought = {canonicalize_name(Requirement(line).name) for line in optional.get(extra, [])}
        brings = {canonicalize_name(name) for name in distributions.get(package, [package])}
        assert brings & brought, f"require({package!r}, {extra!r})"
