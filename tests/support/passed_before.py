"""Some tests are not run again while all that they depend on is as it was when they passed.

GPU kernels that are emulated (by Triton's interpreter, or on the shim), and what compilers make of them, give the same
for the same sources and versions, and take a quarter of the time of all tests. So `make test-kernels` notes a digest of
both in `tests/passed.json`. Where the digest is another one, be it for a changed line or another release of torch, the
whole suite runs them; and they run wherever they are named.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.nvcc_compiled import nvcc
from tests.support.places import ROOT

if TYPE_CHECKING:
    import pytest

TESTS = ROOT / "tests"
RECORD = TESTS / "passed.json"
# The test files of each kind; of a file that is of both, the first.
KINDS = {
    "compiled": ("tests/kernels/*/test_*_compiled*.py",),
    "emulated": ("tests/kernels/cuda/test_*.py", "tests/kernels/simt/test_*.py", "tests/kernels/triton/test_*.py"),
}
# The files of the repository that decide what these tests say.
DEPEND_ON = (
    *("setup.py", "csrc/**/*", "cone_kernels/kernels/**/*.py", "cone_kernels/ops/*.py", "cone_kernels/state/*.py"),
    *(f"cone_kernels/{name}.py" for name in ("__init__", "backends", "devices", "extras", "files", "names", "sums")),
    *("tests/kernels/cuda/*", "tests/kernels/simt/**/*", "tests/kernels/triton/*", "tests/ops/*.py"),
    *("tests/conftest.py", "tests/support/simt_*.py", "tests/support/triton_*.py"),
    *(f"tests/support/{name}.py" for name in ("built_once", "moment_cases", "nvcc_compiled", "places", "stand_in_gpu")),
    "tests/support/device_guard.cpp",
)
VERSIONS_OF = ("numpy", "pybind11", "pytest", "torch", "triton")


def kind_of(file: Path) -> str | None:
    """The kind of a file with such tests, else None."""
    return next((kind for kind, patterns in KINDS.items() if any(map(file.match, patterns))), None)


def files_depended_on() -> list[Path]:
    """Every file of `DEPEND_ON`, in order."""
    found = {file for pattern in DEPEND_ON for file in ROOT.glob(pattern)}
    return sorted(file for file in found if file.is_file() and "__pycache__" not in file.parts)


@cache
def digest(kind: str) -> str:
    """A digest of all that tests of a kind depend on: sources, versions, and of what is compiled the compiler."""
    found = hashlib.sha256(f"Python {sys.version_info[:2]} {platform.machine()}".encode())
    for package in VERSIONS_OF:
        found.update(f"{package} {_version(package)}".encode())
    if kind == "compiled":
        compiler = nvcc()
        said = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout if compiler else b"none"
        found.update(said)
    for file in files_depended_on():
        found.update(str(file.relative_to(ROOT)).encode())
        found.update(file.read_bytes())
    return found.hexdigest()


def _version(package: str) -> str:
    """A package's release, which build of it aside."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "none"


def passed_before(kind: str) -> bool:
    """Whether the tests of a kind passed with these sources and versions."""
    return bool(json.loads(RECORD.read_text())[kind] == digest(kind))


def left_out(items: Sequence[pytest.Item], arguments: Iterable[str]) -> list[pytest.Item]:
    """Of the tests that a run with these arguments has collected those that passed before; none where it names them."""
    named = {Path(argument.split("::")[0]).resolve() for argument in arguments} - {ROOT, TESTS}
    passed = {kind for kind in KINDS if passed_before(kind)}
    kinds = {file: kind_of(file) for file in {item.path for item in items} if named.isdisjoint((file, *file.parents))}
    return [item for item in items if kinds.get(item.path) in passed and item.get_closest_marker("slow") is None]


def main() -> int:
    """Runs these tests, with further arguments for pytest; where all pass, their digests are noted."""
    files = sorted({str(file) for patterns in KINDS.values() for pattern in patterns for file in ROOT.glob(pattern)})
    command = [sys.executable, "-m", "pytest", *sys.argv[1:], *files]
    failed = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not failed:
        noted = {"passed": str(date.today()), **{kind: digest(kind) for kind in KINDS}}
        RECORD.write_text(json.dumps(noted, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
