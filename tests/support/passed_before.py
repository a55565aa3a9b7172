"""Some tests are not run again while all that they depend on is as it was when they passed.

GPU kernels that are emulated (by Triton's interpreter, or on the shim), what compilers make of them, and the processes
of `make gpu` give the same for the same sources and versions, and take as long as a third of all other tests. So
`make test-kernels` notes a digest of both in `tests/passed.json`. Where the digest is another one, be it for a changed
line or another release of torch, the whole suite runs them; and they run wherever they are named.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
_KERNELS = (
    *("setup.py", "csrc/**/*", "cone_kernels/kernels/**/*.py", "cone_kernels/ops/*.py", "cone_kernels/state/*.py"),
    *("cone_kernels/backends.py", "cone_kernels/devices.py", "cone_kernels/names.py", "cone_kernels/sums.py"),
    *("tests/kernels/cuda/*", "tests/kernels/simt/**/*", "tests/kernels/triton/*", "tests/ops/*.py"),
    *("tests/support/moment_cases.py", "tests/support/simt_*.py", "tests/support/triton_*.py"),
    *("tests/support/nvcc_compiled.py", "tests/support/of_sums.py", "tests/support/stand_in_gpu.py"),
)


@dataclass(frozen=True)
class Kind:
    """Test files, and the files of the repository that decide what their tests say, as patterns."""

    tests: tuple[str, ...]
    depend_on: tuple[str, ...]


KINDS = {
    "compiled": Kind(("tests/kernels/*/test_*_compiled*.py",), _KERNELS),
    "emulated": Kind(("tests/kernels/cuda/*.py", "tests/kernels/simt/*.py", "tests/kernels/triton/*.py"), _KERNELS),
    "processes": Kind(
        ("tests/bench/test_gpu_processes.py",),
        ("bench/gpu/**/*.py", "tests/bench/test_gpu_processes.py", "tests/support/processes.py"),
    ),
}
VERSIONS_OF = ("torch", "triton", "numpy")


def kind_of(file: Path) -> str | None:
    """The kind of a file with such tests, else None."""
    found = (name for name, kind in KINDS.items() if any(map(file.match, kind.tests)))
    return next(found, None)


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
    for file in sorted({file for pattern in KINDS[kind].depend_on for file in ROOT.glob(pattern)}):
        if file.is_file() and "__pycache__" not in file.parts:
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
    files = sorted({str(file) for kind in KINDS.values() for pattern in kind.tests for file in ROOT.glob(pattern)})
    command = [sys.executable, "-m", "pytest", *sys.argv[1:], *(file for file in files if "test_" in file)]
    failed = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not failed:
        noted = {"passed": str(date.today()), **{kind: digest(kind) for kind in KINDS}}
        RECORD.write_text(json.dumps(noted, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
