"""Which tests run a line of the package, the quickest first: one run of the suite under coverage tells.

`bench.mutate` asks for the tests of a faulty line. Needs pytest-cov (`requirements/mutate.txt`).
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from coverage import CoverageData

TIMES = "times.xml"
LINES = "lines.coverage"


@dataclass(frozen=True)
class LinesRun:
    """The tests that ran each line of a file, and how long each test took.

    Examples:
        >>> lines = LinesRun.read(folder)
        >>> lines.tests(Path("cone_kernels/sums.py"), source, 40, seconds=60, closest=["tests/test_metrics.py"])
        ['tests/test_metrics.py::test_of_one_row']
    """

    of_files: CoverageData
    seconds: dict[str, float]

    @classmethod
    def record(cls, folder: Path, root: Path, tests: Sequence[str], processes: int) -> None:
        """Runs the tests under coverage; what they ran and how long they took is kept in the folder."""
        configuration = folder / "coverage.ini"
        configuration.write_text("[run]\nrelative_files = true\n")  # another copy of the package reads them too
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-n", str(processes), "--dist", "loadfile", *tests),
            *("--cov=cone_kernels", f"--cov-config={configuration}", "--cov-context=test", "--cov-report="),
            f"--junitxml={folder / TIMES}",
        ]
        environment = {**os.environ, "PYTHONPATH": str(root), "COVERAGE_FILE": str(folder / LINES)}
        subprocess.run(command, cwd=root, env=environment, check=False)

    @classmethod
    def read(cls, folder: Path) -> LinesRun:
        """What `record` has kept in the folder."""
        from coverage import CoverageData

        of_files = CoverageData(str(folder / LINES))
        of_files.read()
        cases = ElementTree.parse(folder / TIMES).iter("testcase")
        return cls(of_files, {_name(case): float(case.get("time", 0)) for case in cases})

    def tests(self, module: Path, source: str, line: int, seconds: float, closest: Sequence[str] = ()) -> list[str]:
        """Tests that run the statement of this line, as many as take so many seconds: of the closest files first, and
        the quickest of them first.

        A statement of the module or of a class runs when it is imported: then every test counts that runs the file.
        Of a fixture that several tests of a file share, all the file's tests count.
        """
        of_lines = self.of_files.contexts_by_lineno(str(module))
        wanted = lines_of_statement(ast.parse(source), line)
        contexts = {context for number in wanted or of_lines for context in of_lines.get(number, ())}
        shared = {_file(context) for context in contexts if context.endswith("|setup")}
        running = {context.rpartition("|")[0] for context in contexts}
        running |= {test for test in self.seconds if _file(test) in shared}
        chosen, left = [], seconds
        by_place = sorted(
            running & self.seconds.keys(), key=lambda test: (_file(test) not in closest, self.seconds[test])
        )
        for test in by_place:
            left -= self.seconds[test]
            if left < 0:
                break
            chosen.append(test)
        return chosen


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


def _name(case: ElementTree.Element) -> str:
    return f"{str(case.get('classname')).replace('.', '/')}.py::{case.get('name')}"


def _file(test: str) -> str:
    return test.split("::")[0]
