"""A pytest plugin that runs tests once for each fault: the tests are imported and collected once, then each fault has
a process forked from that one, with the fault switched on and the tests that may notice it.

`bench.mutate` starts pytest with it in a copy of the package whose modules have every fault behind a switch
(`bench.faults.switched`), hands the faults over in a file, and reads what came of each from a pipe.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.faults import IN_FORCE, SWITCH

# Where the faults are handed over (a file of JSON), and where it is told what came of them (a pipe's number).
RUNS = "CONE_FAULT_RUNS"
TOLD = "CONE_FAULTS_TOLD"
# Set for a process of its own that runs the tests of one fault: the pipe for the names of tests that fail.
FAILED = "CONE_FAULT_FAILED"
# pytest's exit codes where every test passed, and where there was none.
UNNOTICED = (0, 5)


@dataclass(frozen=True)
class FaultRun:
    """One fault and the tests that may notice it, those first that are run first.

    `fresh` is for what runs when a module is imported: then the tests run in a process that imports it anew. Without
    `first_only` all tests run and all that fail are told.
    """

    fault: int
    tests: list[str]
    seconds: float
    fresh: bool = False
    first_only: bool = True


@dataclass(frozen=True)
class FaultOutcome:
    """What the tests of one fault said: "noticed", "SURVIVED", "not finished" or "not begun"; and those that failed."""

    fault: int
    said: str
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Running:
    run: FaultRun
    begin: float
    pipe: int
    scratch: Path
    told: bytes = b""


class _FailedTests:
    """Tells the name of each test that fails."""

    def __init__(self, pipe: int, first_only: bool) -> None:
        self.pipe, self.first_only = pipe, first_only
        self.any = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not (self.any and self.first_only):
            self.any = True
            os.write(self.pipe, f"{report.nodeid}\n".encode())


def pytest_configure(config: pytest.Config) -> None:
    """In a process of its own for one fault, the name of the test that fails is told."""
    if FAILED in os.environ:
        config.pluginmanager.register(_FailedTests(int(os.environ[FAILED]), first_only=True))


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Runs the faults that were handed over in place of the tests."""
    if RUNS not in os.environ:
        return None
    handed_over = json.loads(Path(os.environ.pop(RUNS)).read_text())
    runs = [FaultRun(**run) for run in handed_over["runs"]]
    pipe = int(os.environ.pop(TOLD))
    os.set_inheritable(pipe, False)
    with os.fdopen(pipe, "w") as told:
        for outcome in outcomes(session, runs, handed_over["processes"], handed_over["minutes"]):
            print(json.dumps(asdict(outcome)), file=told, flush=True)
    return True


def outcomes(
    session: pytest.Session, runs: Sequence[FaultRun], processes: int, minutes: float
) -> Iterator[FaultOutcome]:
    """What the tests said of each fault, in the order in which they end; none begins after so many minutes."""
    items = {item.nodeid: item for item in session.items}
    waiting, end = list(runs), time.monotonic() + 60 * minutes
    running: dict[int, _Running] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            run = waiting.pop(0)
            if time.monotonic() > end:
                yield FaultOutcome(run.fault, "not begun")
                continue
            process, begun = _begin(run, session.config, [items[test] for test in run.tests if test in items])
            running[process] = begun
        for process in list(running):
            outcome = _outcome(process, running[process])
            if outcome is not None:
                del running[process]
                yield outcome
        time.sleep(0.02)


def _begin(run: FaultRun, config: Any, items: list[pytest.Item]) -> tuple[int, _Running]:
    reading, writing = os.pipe()
    scratch = Path(f"{os.environ['TMPDIR']}-of-faults", str(run.fault))
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            code = _run(run, config, items, writing, scratch)
        finally:
            os._exit(code)
    os.close(writing)
    os.set_blocking(reading, False)
    return process, _Running(run, time.monotonic(), reading, scratch)


def _outcome(process: int, running: _Running) -> FaultOutcome | None:
    """None where the process goes on and has the time to."""
    ended, status = os.waitpid(process, os.WNOHANG)
    with suppress(BlockingIOError):
        running.told += os.read(running.pipe, 1 << 20)
    seconds = time.monotonic() - running.begin
    if not ended and seconds < running.run.seconds:
        return None
    # A session of its own: the processes that tests start end with it.
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    if not ended:
        os.waitpid(process, 0)
    os.close(running.pipe)
    shutil.rmtree(running.scratch, ignore_errors=True)
    failed = running.told.decode().splitlines()
    if not ended:
        return FaultOutcome(running.run.fault, "not finished", failed, seconds)
    unnoticed = not failed and os.waitstatus_to_exitcode(status) in UNNOTICED
    return FaultOutcome(running.run.fault, "SURVIVED" if unnoticed else "noticed", failed, seconds)


def _run(run: FaultRun, config: Any, items: list[pytest.Item], pipe: int, scratch: Path) -> int:
    """The tests of a fault, in this process: pytest's exit code."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ[IN_FORCE] = str(run.fault)
    if run.fresh:
        os.set_inheritable(pipe, True)
        environment = {**os.environ, FAILED: str(pipe)}
        options = ["-q", "-x", "-s", "-p", "no:cov", "-p", "no:cacheprovider", f"--basetemp={scratch / 'tests'}"]
        os.execve(sys.executable, [sys.executable, "-m", "pytest", "-p", __name__, *options, *run.tests], environment)
    importlib.import_module(f"cone_kernels.{SWITCH}").number = run.fault  # type: ignore[attr-defined]
    failed = _FailedTests(pipe, run.first_only)
    config._tmp_path_factory._basetemp = scratch
    config.pluginmanager.register(failed)
    for place, item in enumerate(items):
        following = items[place + 1] if place + 1 < len(items) else None
        config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if failed.any and run.first_only:
            return 1
    return int(failed.any)
