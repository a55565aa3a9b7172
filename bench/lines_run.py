"""Which tests run a line of the package, the quickest first: one run of the suite under coverage tells.

`bench.mutate` asks for the tests of a faulty line. Needs pytest-cov (`requirements/mutate.txt`). This file is also the
pytest plugin that notes how long each test takes in that run.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from coverage import CoverageData

TIMES = "times.json"
LINES = "lines.coverage"
# Where the plugin writes the times; not set where the plugin does nothing.
TIMES_TO = "CONE_TIMES_TO"


@dataclass(frozen=True)
class TestTimes:
    """How long each test takes by itself, and for each file how long the fixtures take that its tests share."""

    __test__ = False  # no test, for pytest
    of_tests: Mapping[str, float]
    of_fixtures: Mapping[str, float]

    @classmethod
    def of(cls, set_up: Mapping[str, float], ran: Mapping[str, float]) -> TestTimes:
        """From how long it took to set up and to run each test: the first test of a file sets up what all share."""
        of_fixtures: dict[str, float] = {}
        for test, seconds in set_up.items():
            of_fixtures[file_of(test)] = max(seconds, of_fixtures.get(file_of(test), 0.0))
        return cls(ran, of_fixtures)

    def quickest_first(self, tests: Iterable[str], closest: Sequence[str] = ()) -> list[str]:
        """The tests whose times are known: those of the closest files first, and the quickest of them first, each with
        its share of its file's fixtures."""
        known = self.of_tests.keys() & set(tests)
        sharing = Counter(map(file_of, known))

        def place(test: str) -> tuple[bool, float, str]:
            shared = self.of_fixtures.get(file_of(test), 0.0) / sharing[file_of(test)]
            return file_of(test) not in closest, self.of_tests[test] + shared, test

        return sorted(known, key=place)

    def within(self, seconds: float, ordered: Sequence[str], after: Collection[str] = ()) -> list[str]:
        """The first of the tests that take no longer together, file by file: what the tests of a file share is set up
        once. Those of `after` have been chosen before them and take their part of the time."""
        chosen: dict[str, list[str]] = {}
        begun: set[str] = set()
        for test in (*after, *ordered):
            needed = self.of_tests[test] + (0.0 if file_of(test) in begun else self.of_fixtures.get(file_of(test), 0.0))
            if test not in after and needed > seconds:
                continue
            seconds -= needed
            begun.add(file_of(test))
            if test not in after:
                chosen.setdefault(file_of(test), []).append(test)
        return [test for tests in chosen.values() for test in tests]


@dataclass(frozen=True)
class LinesRun:
    """The tests that ran each line of a file, and how long they took.

    Examples:
        >>> lines = LinesRun.read(folder)
        >>> lines.tests(Path("cone_kernels/sums.py"), source, 40, seconds=60, closest=["tests/test_metrics.py"])
        ['tests/test_metrics.py::test_of_one_row']
    """

    of_files: CoverageData
    times: TestTimes
    _read: dict[str, dict[int, list[str]]] = field(default_factory=dict, repr=False)

    @classmethod
    def record(cls, folder: Path, root: Path, tests: Sequence[str], processes: int) -> None:
        """Runs the tests under coverage; what they ran and how long they took is kept in the folder."""
        configuration = folder / "coverage.ini"
        configuration.write_text("[run]\nrelative_files = true\n")  # another copy of the package reads them too
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", __name__, "-n", str(processes), "--dist", "loadfile"),
            *("--cov=cone_kernels", f"--cov-config={configuration}", "--cov-context=test", "--cov-report="),
        ]
        to = {"COVERAGE_FILE": str(folder / LINES), TIMES_TO: str(folder / TIMES)}
        environment = {**os.environ, "PYTHONPATH": str(root), **to}
        subprocess.run([*command, *tests], cwd=root, env=environment, check=False)

    @classmethod
    def read(cls, folder: Path) -> LinesRun:
        """What `record` has kept in the folder."""
        from coverage import CoverageData

        of_files = CoverageData(str(folder / LINES))
        of_files.read()
        return cls(of_files, TestTimes.of(**json.loads((folder / TIMES).read_text())))

    def tests(self, module: Path, source: str, line: int, seconds: float, closest: Sequence[str] = ()) -> list[str]:
        """Tests that run the statement of this line, as many as take so many seconds: of the closest files first, and
        the quickest of them first.

        A statement of the module or of a class runs when it is imported: then every test counts that runs the file.
        Of a fixture that several tests of a file share, all the file's tests count.
        """
        if str(module) not in self._read:
            self._read[str(module)] = self.of_files.contexts_by_lineno(str(module))
        of_lines = self._read[str(module)]
        wanted = lines_of_statement(ast.parse(source), line)
        contexts = {context for number in wanted or of_lines for context in of_lines.get(number, ())}
        shared = {file_of(context) for context in contexts if context.endswith("|setup")}
        running = {context.rpartition("|")[0] for context in contexts}
        running |= {test for test in self.times.of_tests if file_of(test) in shared}
        return self.times.within(seconds, self.times.quickest_first(running, closest))


class _NotedTimes:
    """Notes how long each test takes, of whichever process runs it."""

    def __init__(self) -> None:
        self.set_up: dict[str, float] = {}
        self.ran: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            self.set_up[report.nodeid] = report.duration
        else:
            self.ran[report.nodeid] = self.ran.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        Path(os.environ[TIMES_TO]).write_text(json.dumps(vars(self)))


def pytest_configure(config: pytest.Config) -> None:
    """In the process that all of the tests report to."""
    if TIMES_TO in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_NotedTimes())


def file_of(test: str) -> str:
    """The file of a test's name."""
    return test.split("::")[0]


def lines_of_statement(tree: ast.Module, line: int) -> range | None:
    """The lines of the innermost statement with this line, without its body; None outside of functions."""
    inner: ast.stmt | None = None
    in_function = False
    for statement, of_function in _statements(tree, False):
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            inner, in_function = statement, of_function
    if inner is None or not in_function:
        return None
    body = getattr(inner, "body", None)
    last = body[0].lineno - 1 if body else inner.end_lineno or inner.lineno
    return range(inner.lineno, max(last, inner.lineno) + 1)


def _statements(node: ast.AST, in_function: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Every statement, the outer before the inner, and whether it stands in a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child, in_function
        yield from _statements(child, in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))
