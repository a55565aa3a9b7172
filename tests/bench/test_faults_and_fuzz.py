"""The tools that look for what the tests do not: faults are put where they say, and altered input is made the same."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.fuzz import CASES, altered
from bench.lines_run import LinesRun, lines_of_statement
from bench.mutate import Outcome, _changes, failing_anyway, faults_of, files_that_test, modules, outcome_of
from tests.support.places import ROOT


@pytest.mark.parametrize("name", CASES)
def test_some_altered_inputs_of_every_kind_are_read_or_refused_in_words(name: str, tmp_path: Path) -> None:
    for number in range(8):
        CASES[name](random.Random(f"{name}-of the tests-{number}"), tmp_path)


def test_altered_bytes_are_made_by_the_seed_alone() -> None:
    content = bytes(range(256))
    made = [altered(content, random.Random(seed)) for seed in range(50)]
    assert made == [altered(content, random.Random(seed)) for seed in range(50)]
    assert sum(one != content for one in made) > 40


def test_a_fault_is_one_change_of_its_module() -> None:
    module = ROOT / "cone_kernels" / "sums.py"
    whole = ast.unparse(ast.parse(module.read_text())).splitlines()
    faults = faults_of(module)
    assert len(faults) > 50
    for fault in random.Random(0).sample(faults, 20):
        source, line, words = fault.source()
        ast.parse(source)
        lines = source.splitlines()
        assert lines != whole, words
        assert sum(a != b for a, b in zip(whole, lines, strict=False)) == 1 or len(lines) != len(whole), words
        assert words.startswith(f"cone_kernels/sums.py:{line}: ")


def test_annotations_and_words_are_left_alone(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text('def f(x: "tuple[1, 2]", y: int = 3) -> int:\n    raise ValueError(f"got {x + 1}")\n')
    assert len(faults_of(module)) == 2  # the default, and the raise that is left out
    module.write_text("@dataclass(frozen=True)\nclass A:\n    pass\n")
    assert faults_of(module) == []


def test_parts_of_a_condition_are_left_out_and_every_comparison_of_a_chain_is_changed() -> None:
    tree = ast.parse("x = a and b and min(c)\ny = 0 < a <= b\n")
    changed = [ast.unparse(other) for _, other in _changes(tree)]
    wanted = ["a or b or min(c)", "b and min(c)", "a and min(c)", "a and b", "max(c)", "0 <= a <= b", "0 < a < b", "1"]
    assert sorted(changed) == sorted(wanted)


def test_every_module_that_decides_has_tests() -> None:
    package = ROOT / "cone_kernels"
    for name, file in {
        "metrics.py": "tests/test_metrics.py",
        "experiments/solved_axes.py": "tests/experiments/test_axis.py",
        "experiments/corpus_tokens.py": "tests/experiments/test_axis.py",
        "statistics/mean_products.py": "tests/experiments/test_layer_steps.py",
    }.items():
        assert file in files_that_test(package / name)
    assert files_that_test(package / "loss" / "uniformity.py")[0] == "tests/loss/test_uniformity.py"
    assert all(map(files_that_test, random.Random(0).sample(modules(), 20)))


SOURCE = """LIMIT = 3


class A:
    field: int = 2

    def method(self, x):
        if (
            x > LIMIT
        ):
            return [
                x,
                1,
            ]
        return 0
"""


@pytest.mark.parametrize(
    ("line", "wanted"),
    [(1, None), (5, None), (7, None), (8, range(8, 11)), (9, range(8, 11)), (12, range(11, 15)), (15, range(15, 16))],
)
def test_the_lines_of_a_statement(line: int, wanted: range | None) -> None:
    assert lines_of_statement(ast.parse(SOURCE), line) == wanted


def test_the_quickest_tests_that_run_a_line_come_first() -> None:
    """Of a fixture's line all tests of its file count, of a line outside of functions all that run the file."""
    ran = {
        9: ["tests/test_a.py::test_slow|run", "tests/test_a.py::test_quick|run"],
        15: ["tests/test_b.py::test_b|setup"],
    }
    seconds = {
        "tests/test_a.py::test_slow": 5.0,
        "tests/test_a.py::test_quick": 1.0,
        "tests/test_b.py::test_b": 2.0,
        "tests/test_b.py::test_of_the_fixture": 0.5,
        "tests/test_c.py::test_c": 0.1,
    }
    lines = LinesRun(SimpleNamespace(contexts_by_lineno=lambda file: ran), seconds)  # type: ignore[arg-type]
    slow, quick, b, of_the_fixture, _ = seconds
    assert lines.tests(Path("m.py"), SOURCE, 8, 10) == [quick, slow]
    assert lines.tests(Path("m.py"), SOURCE, 9, 4) == [quick]
    assert lines.tests(Path("m.py"), SOURCE, 1, 10, closest=["tests/test_b.py"]) == [of_the_fixture, b, quick, slow]
    assert lines.tests(Path("m.py"), SOURCE, 15, 10) == [of_the_fixture, b]
    assert lines.tests(Path("m.py"), SOURCE, 12, 10) == []
    assert lines.tests(Path("m.py"), SOURCE, 1, 10) == [of_the_fixture, quick, b, slow]


def test_a_fault_counts_where_a_test_fails_with_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take most of the time
    root = tmp_path / "copy"
    for name, text in {
        "cone_kernels/__init__.py": "",
        "cone_kernels/sums.py": "ONE = 1\n",
        "test_good.py": "from cone_kernels.sums import ONE\n\n\ndef test_one():\n    assert ONE == 1\n",
        "test_bad.py": "def test_two():\n    assert 1 == 2\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    tests = ["test_good.py"]
    module = ROOT / "cone_kernels" / "sums.py"
    assert outcome_of(module, "ONE = 2\n", root, 60, tests) == Outcome("noticed", ("test_good.py::test_one",))
    assert outcome_of(module, "while True:\n    pass\n", root, 1, tests) == Outcome("not finished")
    assert (root / "cone_kernels/sums.py").read_text() == "ONE = 1\n"
    assert failing_anyway(["test_good.py::test_one", "test_bad.py::test_two"], root) == {"test_bad.py::test_two"}
