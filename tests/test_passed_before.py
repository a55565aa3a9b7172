"""Which tests the whole suite does not run again, and that they are run again after any change that could matter."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cone_kernels
from tests.support import passed_before
from tests.support.passed_before import DEPEND_ON, KINDS, digest, files_depended_on, kind_of, left_out
from tests.support.places import ROOT
from tests.test_floors import MODULES, imported

COSINE = ROOT / "tests/kernels/cuda/test_cuda_cosine.py"
COMPILED = ROOT / "tests/kernels/triton/test_triton_compiled.py"
OTHER = ROOT / "tests/test_axes.py"


def item(path: Path, slow: bool = False) -> Any:
    return SimpleNamespace(path=path, get_closest_marker=lambda name: slow or None)


@pytest.fixture
def fresh() -> Any:
    """No digest is remembered from another test, nor for one."""
    digest.cache_clear()
    yield
    digest.cache_clear()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Path:
    """A small repository in which all of these tests have passed."""
    for name in ("csrc/cuda/a.cu", "cone_kernels/sums.py", "tests/kernels/simt/cuda/x.h"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    (tmp_path / "tests/passed.json").write_text("{}")
    monkeypatch.setattr(passed_before, "ROOT", tmp_path)
    monkeypatch.setattr(passed_before, "RECORD", tmp_path / "tests/passed.json")
    note(tmp_path)
    return tmp_path


def note(root: Path) -> None:
    (root / "tests/passed.json").write_text(json.dumps({kind: digest(kind) for kind in KINDS}))


def passed() -> set[str]:
    digest.cache_clear()
    return {kind for kind in KINDS if passed_before.passed_before(kind)}


def test_kinds_of_files() -> None:
    assert kind_of(COSINE) == "emulated"
    assert kind_of(COMPILED) == "compiled"
    assert kind_of(ROOT / "tests/kernels/cuda/test_cuda_compiled_matrices.py") == "compiled"
    for name in ("tests/kernels/test_stubs.py", "tests/kernels/gpu/test_gpu_ops.py", "tests/bench/test_gpu_script.py"):
        assert (ROOT / name).exists()
        assert kind_of(ROOT / name) is None


def test_all_that_is_depended_on_is_there() -> None:
    for pattern in (*DEPEND_ON, *(pattern for patterns in KINDS.values() for pattern in patterns)):
        assert any(ROOT.glob(pattern)), pattern


def test_whatever_these_tests_import_is_depended_on() -> None:
    """What they, and what they import, import anywhere in a file, of the tests and of the package."""
    waiting = {file for patterns in KINDS.values() for pattern in patterns for file in ROOT.glob(pattern)}
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= {*imported_tests(file), *imported_modules(file)} - found
    assert len(found) > 80
    assert sorted(str(file) for file in found - set(files_depended_on())) == []


def imported_modules(file: Path) -> Iterator[Path]:
    """Of names that the package hands on the modules that they are of; it imports none before it is asked."""
    yield from (MODULES[name] for name in imported(file) if name != "cone_kernels")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cone_kernels":
            handed_on = [getattr(cone_kernels, alias.name, None) for alias in node.names]  # none is a compiled part
            names = {getattr(one, "__module__", None) or getattr(one, "__name__", "") for one in handed_on}
            yield from (MODULES[name] for name in names if name in MODULES)


def imported_tests(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "tests":
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            yield from filter(Path.is_file, (ROOT / f"{name.replace('.', '/')}.py" for name in names))


@pytest.mark.parametrize(
    ("name", "still"),
    [
        ("csrc/cuda/a.cu", set()),
        ("cone_kernels/sums.py", set()),
        ("tests/kernels/simt/cuda/x.h", set()),
        ("cone_kernels/axes.py", set(KINDS)),
    ],
)
@pytest.mark.parametrize("change", ["other bytes", "gone", "a name"])
def test_a_change_of_a_file_is_noticed(copy: Path, name: str, still: set[str], change: str) -> None:
    assert passed() == set(KINDS)
    file = copy / name
    if change == "gone":
        file.unlink(missing_ok=True)
    elif change == "a name" and file.exists():
        file.rename(file.with_stem("renamed"))
    else:
        file.write_text("2")
    assert passed() == still


def test_another_release_or_compiler_is_noticed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = dict.fromkeys(passed_before.VERSIONS_OF, "2.13.0+cpu")
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    digest.cache_clear()
    note(copy)
    versions["torch"] = "2.13.0"  # another build
    assert passed() == set(KINDS)
    versions["triton"] = "2.14.0"
    assert passed() == set()
    versions["triton"] = "2.13.0"
    monkeypatch.setattr(passed_before, "nvcc", lambda: "/bin/echo")
    assert passed() == {"emulated"}


def test_what_passed_is_left_out_unless_it_is_named_or_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed_before, "passed_before", lambda kind: kind == "emulated")
    items = [item(COSINE), item(COSINE, slow=True), item(COMPILED), item(OTHER)]
    assert left_out(items, [str(ROOT / "tests")]) == items[:1]
    assert left_out(items, [str(ROOT)]) == items[:1]
    assert left_out(items, [str(ROOT / "tests/ops"), str(OTHER)]) == items[:1]
    for named in (COSINE, f"{COSINE}::test_strides", COSINE.parent, ROOT / "tests/kernels"):
        assert left_out(items, [str(OTHER), str(named)]) == []
    monkeypatch.setattr(passed_before, "passed_before", lambda kind: False)
    assert left_out(items, [str(ROOT / "tests")]) == []
