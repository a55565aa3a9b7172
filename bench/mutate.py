"""How many faults the tests notice: `make mutate` puts them, one at a time, into a copy of the package.

A fault is one changed operator, comparison, constant or condition, or one statement or condition left out, in a module
that decides numbers or claims; a sample of them is drawn by a seed. Each is run against the tests that run its line,
those of files about the module first, and what they do not notice against all files that name it; what a test noticed
that fails without the fault too does not count. A fault that no test notices is a survivor: it needs a test, or a
reason why it changes nothing. What came of it is kept in `bench/results/mutations.json`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.lines_run import TIMES, LinesRun

ROOT = Path(__file__).resolve().parent.parent
# What decides numbers and claims.
DECIDE = (
    *("metrics.py", "sums.py", "axes.py", "centering.py", "state/*.py", "statistics/*.py", "experiments/*.py"),
    *("runs/measurement.py", "runs/checkpoint.py", "runs/shard_tree.py", "runs/mixing.py", "runs/part.py"),
    *("loss/*.py", "probe/*.py", "ops/*.py", "models/output.py", "models/baseline.py", "corpora/pair*.py"),
    *("corpora/seen.py", "corpora/sample.py", "integrations/alerts.py", "integrations/scalars.py"),
    *("integrations/step_means.py", "integrations/held_out.py"),
)
# Tests that start machines or browsers of their own, or look at pages alone.
LEFT_OUT = ("gpu", "triton", "cuda", "simt", "sharing", "browser", "report")
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And, ast.USub: ast.UAdd, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
CALLED_INSTEAD = {"min": "max", "max": "min", "any": "all", "all": "any"}
# A module that fewer test files are called like or name is run by those called like its users too.
FEW = 3
# So many of a module's own test files come before others that run a line of it.
CLOSEST = 5
# Each run of the tests is forked from a process that has imported what takes them longest.
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["torch", "transformers", "scipy.stats", "sklearn.linear_model", "matplotlib", "pytest"])
# pytest's exit code where no test was found.
NO_TEST = 5


@dataclass(frozen=True)
class Fault:
    """One change of one module: the change of this number in the order of a walk over its tree."""

    module: Path
    number: int

    def source(self) -> tuple[str, int, str]:
        """The module with the fault in it, the fault's line, and the change in words.

        Examples:
            >>> source, line, words = Fault(ROOT / "cone_kernels" / "sums.py", 0).source()
        """
        tree = ast.parse(self.module.read_text())
        node, changed = next(itertools.islice(_changes(tree), self.number, None))
        line = getattr(node, "lineno", 0)
        words = f"{self.module.relative_to(ROOT)}:{line}: {ast.unparse(node)}  →  {ast.unparse(changed)}"
        _put(tree, node, changed)
        return ast.unparse(ast.fix_missing_locations(tree)), line, words


def modules() -> list[Path]:
    """What decides numbers and claims, without the files that hand on a package's names."""
    found = {path for pattern in DECIDE for path in (ROOT / "cone_kernels").glob(pattern)}
    return sorted(path for path in found if path.stem != "__init__")


def faults_of(module: Path) -> list[Fault]:
    """Every fault that can be put into a module."""
    return [Fault(module, number) for number, _ in enumerate(_changes(ast.parse(module.read_text())))]


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(node, what takes its place) of every change, by a walk that is the same for a copy of the tree."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AnnAssign, ast.arg)):
            hints = [getattr(node, "returns", None), getattr(node, "annotation", None)]
            skipped |= {id(part) for hint in hints if hint is not None for part in ast.walk(hint)}
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(part) for part in ast.walk(node)}
        # How a class or a function is made, such as a frozen dataclass.
        for decorator in getattr(node, "decorator_list", ()):
            skipped |= {id(part) for part in ast.walk(decorator)}
        if isinstance(node, (ast.JoinedStr, ast.Raise)):  # words
            skipped |= {id(part) for child in ast.iter_child_nodes(node) for part in ast.walk(child)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for changed in _changed(node):
            yield node, changed


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.AugAssign)) and type(node.op) in SWAPPED:
        other = copy.deepcopy(node)
        other.op = SWAPPED[type(node.op)]()  # type: ignore[assignment]
        yield other
        if isinstance(node, ast.BoolOp):
            for left_out in range(len(node.values)):
                kept = [value for place, value in enumerate(node.values) if place != left_out]
                yield kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
    elif isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            other = copy.deepcopy(node)
            other.ops[place] = SWAPPED[type(operator)]()  # type: ignore[call-overload]
            yield other
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED_INSTEAD:
        other = copy.deepcopy(node)
        other.func = ast.Name(CALLED_INSTEAD[node.func.id], ast.Load())
        yield other
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield ast.Constant(value if not isinstance(node.value, float) else 2 * node.value + (node.value == 0))
    elif isinstance(node, (ast.If, ast.IfExp)):
        other = copy.deepcopy(node)
        other.test = ast.UnaryOp(ast.Not(), node.test)
        yield other
    elif isinstance(node, ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()


def _put(tree: ast.Module, at: ast.AST, changed: ast.AST) -> None:
    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return changed if node is at else self.generic_visit(node)

    Put().visit(tree)


def files_that_test(module: Path) -> list[str]:
    """The test files of a module, the closest first.

    They are those called like it; those that name it; where these are few, those called like the modules that use it;
    and all of the folder that is called like its own. Where there is none, its users' own.
    """
    called, naming, beside = _test_files(module)
    own, users = [*called, *naming], _users(module)
    if len(own) < FEW:
        own += itertools.chain.from_iterable(_test_files(user)[0] for user in users)
    found = list(dict.fromkeys([*own, *beside]))
    return found or list(dict.fromkeys(itertools.chain.from_iterable(map(files_that_test, users))))


def _test_files(module: Path) -> tuple[list[str], list[str], list[str]]:
    """The test files called like a module, those that name it, and all of the folder called like its own."""
    topic, dotted = module.stem.split("_result")[0].split("_claims")[0], _dotted(module)
    called, naming, beside = [], [], []
    for file in _files("tests"):
        name, text = str(file.relative_to(ROOT)), _text(file)
        if not file.stem.startswith("test_") or any(word in name for word in LEFT_OUT):
            continue
        if topic in file.stem:
            called.append(name)
        if dotted in text or f"experiments.{topic}(" in text or f"import {topic}" in text:
            naming.append(name)
        if file.parent.name == module.parent.name != "experiments":
            beside.append(name)
    return called, naming, beside


def _users(module: Path) -> list[Path]:
    return [file for file in _files("cone_kernels") if f"{_dotted(module)} import" in _text(file)]


@cache
def _files(folder: str) -> list[Path]:
    return [file for file in sorted((ROOT / folder).rglob("*.py")) if file.stem != "__init__"]


@cache
def _text(file: Path) -> str:
    return file.read_text()


def _dotted(module: Path) -> str:
    return ".".join(module.relative_to(ROOT).with_suffix("").parts)


@dataclass(frozen=True)
class Outcome:
    """What the tests of one fault said: "noticed", "SURVIVED", "not finished" or "not begun"; and those that failed."""

    said: str
    failed: tuple[str, ...] = ()


def outcome_of(of: Path, source: str, copy_of_root: Path, seconds: float, tests: Sequence[str]) -> Outcome:
    """Whether one of the tests fails with this source of a module, and which; tests that do not end did not fail."""
    module = copy_of_root / of.relative_to(ROOT)
    whole = module.read_text()
    module.write_text(source)
    try:
        code = _pytest(copy_of_root, ["-x", *tests], seconds)
    finally:
        module.write_text(whole)
    if code in (None, 0, NO_TEST):
        return Outcome("not finished" if code is None else "SURVIVED")
    return Outcome("noticed", tuple(_failed(copy_of_root)))


def _pytest(root: Path, arguments: Iterable[str], seconds: float | None = None) -> int | None:
    """pytest's exit code; None where it takes longer than so many seconds."""
    shutil.rmtree(root / ".pytest_cache", ignore_errors=True)
    process = _FORKED.Process(target=_run_pytest, args=(str(root), ["-q", "-p", "no:cov", *arguments]))
    process.start()
    process.join(seconds)
    code = process.exitcode
    # A session of its own: the processes that tests start end with it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return code


def _run_pytest(root: str, arguments: list[str]) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.chdir(root)
    # This copy and no other, here and in what the tests start.
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    sys.path[:] = [root, *(entry for entry in sys.path if Path(entry).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("bench", "tests", "cone_kernels")]:
        del sys.modules[name]
    import pytest

    code = pytest.main(arguments)
    os._exit(int(code))


def _failed(root: Path) -> list[str]:
    """The tests that failed in the last run; none where it ended before a test."""
    noted = root / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return list(json.loads(noted.read_text())) if noted.exists() else []


def failing_anyway(tests: Sequence[str], copy_of_root: Path) -> set[str]:
    """Which of the tests fail without any fault: what they noticed does not count."""
    return set(_failed(copy_of_root)) if tests and _pytest(copy_of_root, tests) else set()


def lines_run(kept_in: Path | None, scratch: Path, root: Path, processes: int) -> LinesRun:
    """Which tests run which line of the copy in `root`; kept, and read where it is kept already."""
    folder = kept_in or scratch / "lines"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TIMES).exists():
        tests = [str(file.relative_to(ROOT)) for file in _files("tests") if file.stem.startswith("test_")]
        LinesRun.record(folder, root, [name for name in tests if not any(map(name.__contains__, LEFT_OUT))], processes)
    return LinesRun.read(folder)


def main() -> None:
    """Draws a sample of faults, runs their tests, and prints the score and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=60, help="faults at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="no fault begins after so many")
    parser.add_argument("--each", type=float, default=180.0, help="seconds for the tests of one fault")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", help="modules whose path holds this")
    kept = "a folder to keep which tests run which line, for the next sample of the same sources"
    parser.add_argument("--lines", type=Path, help=kept)
    asked = parser.parse_args()
    everything = [fault for module in modules() if (asked.only or "") in str(module) for fault in faults_of(module)]
    sample = random.Random(asked.seed).sample(everything, min(asked.sample, len(everything)))
    # All that is read of the checkout is read now: it may change meanwhile, and the copies do not.
    work = [
        (fault.module, fault.module.read_text(), *fault.source(), files_that_test(fault.module)) for fault in sample
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.processes) as threads:
        copies = [Path(folder, str(number)) for number in range(asked.processes)]
        for root in copies:
            shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "results"))
        Path(folder, "shared").symlink_to(ROOT.parent / "shared")  # the sentences that lie beside a checkout
        lines = lines_run(asked.lines, Path(folder), copies[0], asked.processes)
        end = time.monotonic() + 60 * asked.minutes

        def run(module: Path, whole: str, source: str, line: int, words: str, named: list[str]) -> Outcome:
            if time.monotonic() > end:
                return Outcome("not begun")
            running = lines.tests(module.relative_to(ROOT), whole, line, asked.each / 2, named[:CLOSEST])
            root = copies.pop()
            try:
                found = outcome_of(module, source, root, asked.each, running) if running else Outcome("SURVIVED")
                if found.said == "SURVIVED":
                    found = outcome_of(module, source, root, asked.each, named)
            finally:
                copies.append(root)
            print(f"{found.said:12}  {' '.join(words.split())[:300]}  {' '.join(found.failed)}", flush=True)
            return found

        outcomes = list(threads.map(run, *zip(*work, strict=True)))
        failing = failing_anyway(sorted({test for outcome in outcomes for test in outcome.failed}), copies[0])
    for test in failing:
        print(f"fails without a fault too: {test}")
    of_itself = sum(bool(failing.intersection(outcome.failed)) for outcome in outcomes)
    said = [outcome.said for outcome in outcomes]
    caught, survived = said.count("noticed") - of_itself, said.count("SURVIVED")
    share = 100 * caught / max(1, caught + survived)
    print(f"{caught} of {caught + survived} faults noticed ({share:.0f} %), of {len(everything):,} that there can be;")
    print(
        f"{said.count('not finished')} not finished in {asked.each:.0f} s, {said.count('not begun')} not begun, "
        f"{of_itself} of which a test failed that fails anyway; seed {asked.seed}"
    )


if __name__ == "__main__":
    main()
