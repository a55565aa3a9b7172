"""How many faults the tests notice: `make mutate` puts them, one at a time, into a copy of the package.

A fault is one changed operator, comparison, constant or condition, or one statement or condition left out, in a module
that decides numbers or claims (`bench/faults.py`); a sample of them is drawn by a seed. Each is run against the tests
that run its line, those of files about the module first, and then against others of files that name it; what a test
noticed that fails without the fault too does not count. A fault that no test notices is a survivor: it needs a test, or
a reason why it changes nothing. What came of it is kept in `bench/results/mutations.json`.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from bench.fault_runs import RUNS, TOLD, FaultOutcome, FaultRun
from bench.faults import ROOT, SWITCH, SWITCH_SOURCE, Fault, faults_of, modules, switched
from bench.lines_run import TIMES, LinesRun, file_of, lines_of_statement

# Tests that start machines or browsers of their own, or look at pages alone.
LEFT_OUT = ("gpu", "triton", "cuda", "simt", "sharing", "browser", "report")
# A module that fewer test files are called like or name is run by those called like its users too.
FEW = 3
# So many of a module's own test files come before others that run a line of it.
CLOSEST = 5
# No fault: what fails now fails anyway.
NONE = -1


@cache
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


def test_files() -> list[str]:
    """The files whose tests are run."""
    files = [str(file.relative_to(ROOT)) for file in _files("tests") if file.stem.startswith("test_")]
    return [name for name in files if not any(map(name.__contains__, LEFT_OUT))]


def lines_run(folder: Path, root: Path, processes: int) -> LinesRun:
    """Which tests run which line of the copy in `root`; read from the folder where it is kept there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TIMES).exists():
        LinesRun.record(folder, root, test_files(), processes)
    return LinesRun.read(folder)


def run_of(fault: Fault, source: str, lines: LinesRun, seconds: float) -> FaultRun:
    """The tests of a fault: those that run its line for half of the seconds, others of files about it for the rest."""
    named = files_that_test(ROOT / fault.module)
    running = lines.tests(fault.module, source, fault.line, seconds / 2, named[:CLOSEST])
    of_files = (test for test in lines.times.of_tests if file_of(test) in named and test not in running)
    others = lines.times.within(seconds, lines.times.quickest_first(of_files), after=running)
    fresh = lines_of_statement(ast.parse(source), fault.line) is None
    return FaultRun(fault.number, [*running, *others], 2 * seconds + 30, fresh)


def copied(root: Path) -> None:
    """The checkout without what is built, fetched or measured."""
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "results"))
    (root.parent / "shared").unlink(missing_ok=True)
    (root.parent / "shared").symlink_to(ROOT.parent / "shared")  # the sentences that lie beside a checkout


def switch_all(root: Path) -> list[Fault]:
    """Puts every fault into the modules of a copy, each behind its switch; the faults in the order of their numbers."""
    (root / "cone_kernels" / f"{SWITCH}.py").write_text(SWITCH_SOURCE)
    found: list[Fault] = []
    for module in modules():
        name, source = module.relative_to(ROOT), (root / module.relative_to(ROOT)).read_text()
        faults = faults_of(source, name, len(found))
        (root / name).write_text(switched(source, len(found)))
        found += faults
    return found


def outcomes(root: Path, runs: Sequence[FaultRun], processes: int, minutes: float) -> Iterator[FaultOutcome]:
    """What the tests of the copy said of each fault, as it becomes known."""
    if not runs:
        return
    handed_over = root.parent / "runs.json"
    handed_over.write_text(
        json.dumps({"runs": [asdict(run) for run in runs], "processes": processes, "minutes": minutes})
    )
    files = sorted({file_of(test) for run in runs for test in run.tests})
    reading, writing = os.pipe()
    of_copy = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "TMPDIR": str(root.parent / "tmp")}
    environment = {**os.environ, **of_copy, RUNS: str(handed_over), TOLD: str(writing)}
    Path(of_copy["TMPDIR"]).mkdir(exist_ok=True)
    options = ["-q", "-s", "-p", "no:cov", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-p", "bench.fault_runs", *options, *files]
    said = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=root, env=environment, pass_fds=[writing], stdout=said, stderr=said):
        os.close(writing)
        with os.fdopen(reading) as told:
            for line in told:
                yield FaultOutcome(**json.loads(line))


def main() -> None:
    """Draws a sample of faults, runs their tests, and prints the score and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="faults at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="no fault begins after so many")
    parser.add_argument("--each", type=float, default=60.0, help="seconds of tests for one fault")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", help="modules whose path holds this")
    kept = "a folder to keep which tests run which line, for the next sample of the same sources"
    parser.add_argument("--lines", type=Path, help=kept)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "copy")
        copied(root)
        lines = lines_run(asked.lines or Path(folder, "lines"), root, asked.processes)
        sources = {module.relative_to(ROOT): (root / module.relative_to(ROOT)).read_text() for module in modules()}
        everything = switch_all(root)
        drawn_of = [fault for fault in everything if (asked.only or "") in str(fault.module)]
        sample = random.Random(asked.seed).sample(drawn_of, min(asked.sample, len(drawn_of)))
        runs = [run_of(fault, sources[fault.module], lines, asked.each) for fault in sample]
        found = []
        for outcome in outcomes(root, runs, asked.processes, asked.minutes):
            found.append(outcome)
            words, failed = everything[outcome.fault].words, " ".join(outcome.failed)
            print(f"{outcome.said:12} {outcome.seconds:4.0f} s  {words}  {failed}", flush=True)
        noticing = sorted({test for outcome in found for test in outcome.failed})
        control = FaultRun(NONE, noticing, 3600, first_only=False)
        failing = {test for outcome in outcomes(root, [control] if noticing else [], 1, 1) for test in outcome.failed}
    for test in sorted(failing):
        print(f"fails without a fault too: {test}")
    of_itself = sum(outcome.said == "noticed" and bool(failing.intersection(outcome.failed)) for outcome in found)
    said = Counter(outcome.said for outcome in found)
    caught = said["noticed"] - of_itself
    judged = caught + said["SURVIVED"]
    share = 100 * caught / max(1, judged)
    print(f"{caught} of {judged} faults noticed ({share:.0f} %), of {len(drawn_of):,} that there can be;")
    print(
        f"{said['not finished']} not finished, {said['not begun']} not begun, {of_itself} of which a test failed that "
        f"fails anyway; seed {asked.seed}"
    )


if __name__ == "__main__":
    main()
