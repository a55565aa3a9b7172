"""The tools that look for what the tests do not: faults are put where they say, and altered input is made the same."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cone_kernels
from bench.fault_runs import FaultOutcome, FaultRun
from bench.faults import SWITCH, SWITCH_SOURCE, Fault, faults_of, modules, switched
from bench.fuzz import CASES, altered
from bench.lines_run import TIMES_TO, LinesRun, TestTimes, _NotedTimes, lines_of_statement
from bench.mutate import files_that_test, outcomes, run_of
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


MODULE = Path("cone_kernels/m.py")


def _changed(source: str) -> list[str]:
    return [fault.words.partition(" → ")[2] for fault in faults_of(source, MODULE)]


def test_annotations_and_words_are_left_alone() -> None:
    source = 'def f(x: "tuple[1, 2]", y: int = 3) -> int:\n    raise ValueError(f"got {x + 1}")\n'
    assert _changed(source) == ["pass", "4"]  # the raise that is left out, and the default
    assert _changed("@dataclass(frozen=True)\nclass A:\n    pass\n") == []


def test_parts_of_a_condition_are_left_out_and_every_comparison_of_a_chain_is_changed() -> None:
    changed = _changed("x = a and b and min(c)\ny = 0 < a <= b\n")
    wanted = ["a or b or min(c)", "b and min(c)", "a and min(c)", "a and b", "max(c)", "0 <= a <= b", "0 < a < b", "1"]
    assert sorted(changed) == sorted(wanted)


def test_a_fault_has_its_place_and_its_number() -> None:
    assert faults_of("a = 1\nb = (\n    x < 2\n)\n", MODULE, first=7) == [
        Fault(MODULE, 1, f"{MODULE}:1: 1 → 2", 7),
        Fault(MODULE, 3, f"{MODULE}:3: x < 2 → x <= 2", 8),
        Fault(MODULE, 3, f"{MODULE}:3: 2 → 3", 9),
    ]


OF_EVERY_KIND = '''"""What it is for."""

from __future__ import annotations

import math

LIMIT = 3


def f(x, y=2):
    """What it does."""
    found = [x * y + 1]
    found.append(min(x, y))
    if x > y and y < LIMIT:
        found.append(0.5)
        x += 1
    else:
        x -= 1
    if x == 7:
        raise ValueError("seven")
    return found, x, math.pi if y is None else -y
'''


def test_of_all_faults_behind_switches_the_one_in_force_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function does with the switch at a fault what it does with that fault alone, and without one what it did."""
    faults = faults_of(OF_EVERY_KIND, MODULE, first=100)
    in_force = SimpleNamespace(number=-1)
    monkeypatch.setitem(sys.modules, f"cone_kernels.{SWITCH}", in_force)
    monkeypatch.setattr(cone_kernels, SWITCH, in_force, raising=False)

    def done(source: str) -> list[str]:
        names: dict[str, Any] = {}
        exec(compile(source, "m", "exec"), names)
        results = []
        for given in ((1, 2), (2, 1), (3, 2), (8, 2), (9, 8), (2, 2), (6, 2), (1,), (5, 3)):
            try:
                results.append(str(names["f"](*given)))
            except ValueError as error:
                results.append(str(error))
        return results

    whole = done(OF_EVERY_KIND)
    assert done(switched(OF_EVERY_KIND, 100)) == whole
    noticed = 0
    for fault in faults:
        in_force.number = fault.number
        before, _, after = fault.words.partition(": ")[2].partition(" → ")
        with_it = done(switched(OF_EVERY_KIND, 100))
        noticed += with_it != whole
        if after != "pass" and not before.startswith("if "):
            one_line = OF_EVERY_KIND.splitlines()
            one_line[fault.line - 1] = one_line[fault.line - 1].replace(before, after, 1)
            assert with_it == done("\n".join(one_line)), fault.words
    assert len(faults) > 25
    assert noticed >= len(faults) - 2
    assert ast.get_docstring(ast.parse(switched(OF_EVERY_KIND))) == "What it is for."


def test_every_fault_of_the_package_has_a_switch() -> None:
    for module in random.Random(0).sample(modules(), 12):
        source = module.read_text()
        behind = set(map(int, re.findall(rf"{SWITCH}\.number == (\d+)", switched(source, 5))))
        assert behind == {fault.number for fault in faults_of(source, module, 5)}, module


def test_every_module_that_decides_has_tests() -> None:
    package = ROOT / "cone_kernels"
    for name, file in {
        "metrics.py": "tests/test_metrics.py",
        "experiments/solved_axes.py": "tests/experiments/test_axis.py",
        "experiments/corpus_tokens.py": "tests/experiments/test_axis.py",
        "statistics/class_shares.py": "tests/experiments/test_tokens.py",
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


SLOW, QUICK, SHARED, SHARING, OTHER = (
    *("tests/test_a.py::test_slow", "tests/test_a.py::test_quick"),
    *("tests/test_b.py::test_b", "tests/test_b.py::test_of_the_fixture", "tests/test_c.py::test_c"),
)
RAN = {SLOW: 5.0, QUICK: 1.0, SHARED: 1.5, SHARING: 0.5, OTHER: 0.1}


def _lines(of_lines: dict[int, list[str]], times: TestTimes) -> LinesRun:
    return LinesRun(SimpleNamespace(contexts_by_lineno=lambda file: of_lines), times)  # type: ignore[arg-type]


def test_the_quickest_tests_that_run_a_line_come_first() -> None:
    """Of a fixture's line all tests of its file count, of a line outside of functions all that run the file."""
    lines = _lines({9: [f"{SLOW}|run", f"{QUICK}|run"], 15: [f"{SHARED}|setup"]}, TestTimes.of({}, RAN))
    assert lines.tests(Path("m.py"), SOURCE, 8, 10) == [QUICK, SLOW]
    assert lines.tests(Path("m.py"), SOURCE, 9, 4) == [QUICK]
    assert lines.tests(Path("m.py"), SOURCE, 1, 10, closest=["tests/test_a.py"]) == [QUICK, SLOW, SHARING, SHARED]
    assert lines.tests(Path("m.py"), SOURCE, 15, 10) == [SHARING, SHARED]
    assert lines.tests(Path("m.py"), SOURCE, 12, 10) == []


def test_what_the_tests_of_a_file_share_is_set_up_once() -> None:
    """Tests of a file follow each other, and what they share counts with the first of them."""
    times = TestTimes.of({SHARED: 0.0, SHARING: 4.0, OTHER: 0.2}, RAN)
    assert times.of_fixtures == {"tests/test_b.py": 4.0, "tests/test_c.py": 0.2}
    everything = times.quickest_first([*RAN, "tests/test_c.py::test_of_which_nothing_is_known"])
    assert everything == [OTHER, QUICK, SHARING, SHARED, SLOW]
    assert times.within(6.5, everything) == [OTHER, QUICK, SHARING]
    assert times.within(9, everything) == [OTHER, QUICK, SHARING, SHARED]
    assert times.within(9, [QUICK, OTHER, SLOW]) == [QUICK, SLOW, OTHER]
    assert times.within(7, [OTHER, SHARED], after=[SHARING]) == [OTHER, SHARED]
    assert times.within(6, [OTHER, SHARED], after=[SHARING]) == [OTHER]


def test_a_fault_runs_the_tests_of_its_line_and_then_those_of_files_about_its_module() -> None:
    source = "ONE = 1\n\n\ndef f(x):\n    return x + 1\n"
    by_its_line, about_it, long, of_another = (
        *("tests/probe/test_forward.py::test_a", "tests/test_metrics.py::test_b", "tests/test_metrics.py::test_long"),
        "tests/test_axes.py::test_c",
    )
    times = TestTimes.of({}, {by_its_line: 1.0, about_it: 2.0, long: 8.0, of_another: 1.0})
    lines = _lines({5: [f"{by_its_line}|run"]}, times)
    of_constant, of_sum = faults_of(source, Path("cone_kernels/metrics.py"))[:2]
    assert run_of(of_sum, source, lines, 10) == FaultRun(of_sum.number, [by_its_line, about_it], 50)
    assert run_of(of_constant, source, lines, 10).fresh


def test_times_are_noted_of_each_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = _NotedTimes()
    for when, duration in (("setup", 1.0), ("call", 2.0), ("teardown", 0.5)):
        noted.pytest_runtest_logreport(SimpleNamespace(nodeid="a::b", when=when, duration=duration))  # type: ignore[arg-type]
    monkeypatch.setenv(TIMES_TO, str(tmp_path / "times.json"))
    noted.pytest_sessionfinish()
    times = TestTimes.of(**json.loads((tmp_path / "times.json").read_text()))
    assert times == TestTimes({"a::b": 2.5}, {"a": 1.0})


ADD = "ONE = 1\n\n\ndef add(x):\n    while x < 0:\n        x += 1\n    return x + ONE\n"
OF_THE_COPY = {
    "bench/__init__.py": "",
    "bench/faults.py": (ROOT / "bench" / "faults.py").read_text(),
    "bench/fault_runs.py": (ROOT / "bench" / "fault_runs.py").read_text(),
    "cone_kernels/__init__.py": "",
    f"cone_kernels/{SWITCH}.py": SWITCH_SOURCE,
    "cone_kernels/sums.py": switched(ADD),
    "test_good.py": """from cone_kernels.sums import add


def test_add():
    assert add(1) == 2


def test_below():
    assert add(-1) == 1


def test_tmp_path(tmp_path):
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").write_text("")
""",
    "test_bad.py": """import time


def test_two():
    assert 1 == 2


def test_three():
    assert 1 == 3


def test_long():
    time.sleep(100)
""",
}


def test_a_fault_counts_where_a_test_fails_with_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take most of the time
    root = tmp_path / "copy"
    for name, text in OF_THE_COPY.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    add, below, made, two, three, long = [
        *(f"test_good.py::{name}" for name in ("test_add", "test_below", "test_tmp_path")),
        *(f"test_bad.py::{name}" for name in ("test_two", "test_three", "test_long")),
    ]
    faults = {fault.words.partition(":")[2]: fault.number for fault in faults_of(ADD, Path("cone_kernels/sums.py"))}
    one, endless = faults["1: 1 → 2"], faults["6: x += 1 → x -= 1"]
    runs = [
        FaultRun(faults["7: x + ONE → x - ONE"], [made, below, add, long], 20),
        FaultRun(endless, [add, below], 2),
        FaultRun(endless, [made, add], 60),
        FaultRun(one, [add], 60, fresh=True),
        FaultRun(one, [add], 60),
        FaultRun(-1, [made, two, add, three], 60, first_only=False),
        FaultRun(-1, [add, below], 60, fresh=True),
        FaultRun(-1, [], 60),
    ]
    found = list(outcomes(root, runs, 1, 1))
    assert [(outcome.said, outcome.failed) for outcome in found] == [
        ("noticed", [below]),
        ("not finished", []),
        ("SURVIVED", []),
        ("noticed", [add]),
        ("SURVIVED", []),  # what an import made is as it was
        ("noticed", [two, three]),
        ("SURVIVED", []),
        ("SURVIVED", []),
    ]
    assert list(outcomes(root, runs[:1], 1, 0)) == [FaultOutcome(runs[0].fault, "not begun")]
    assert not any((root.parent / "tmp-of-faults").iterdir())
    assert not any((root.parent / "tmp").rglob("kept"))
    assert list(outcomes(tmp_path / "nowhere" / "copy", [], 1, 1)) == []  # not that of all tests there are
