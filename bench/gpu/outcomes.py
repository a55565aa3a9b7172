"""A pytest plugin that writes each test's outcome as a line of JSON at once, so that a stopped run leaves those it had.

CONE_GPU_OUTCOMES is the file; CONE_GPU_PART, such as 3/8, the part of the tests to run. Tests that the file says have
had their turn are left out. Where the device answers no more after a failure, the process ends with `LOST_DEVICE`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.process import LOST_DEVICE, ROOT, device_is_lost
from bench.gpu.tests import read_outcomes

_FILE = Path(os.environ["CONE_GPU_OUTCOMES"])
_PART, _PARTS = map(int, os.environ["CONE_GPU_PART"].split("/"))
_MOST_TEXT = 1500
_failed: set[str] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deals the tests out, neighbours to different parts as they are alike; those of the state come first."""
    parts = [turn % _PARTS for turn in range(len(items))]
    random.Random(0).shuffle(parts)
    mine = [item for item, part in zip(items, parts, strict=True) if part == _PART]
    known = read_outcomes(_FILE)
    for item in mine:
        if item.nodeid not in known:
            _write(item.nodeid, outcome="not run")
    items[:] = [item for item in mine if known.get(item.nodeid, {"outcome": "not run"})["outcome"] == "not run"]
    items.sort(key=lambda item: item.path.name != "test_gpu_state.py")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(report.nodeid, outcome="failed", text=_told(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(nodeid, outcome="not finished")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.nodeid in _failed:
        return  # what failed first says why
    if report.when == "call" or not report.passed:
        text = {} if report.passed else {"text": _told(report)}
        _write(report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), **text)
    if report.failed:
        _failed.add(report.nodeid)


def pytest_runtest_logfinish(nodeid: str) -> None:
    if nodeid in _failed and device_is_lost():
        os._exit(LOST_DEVICE)


def _told(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The end of what pytest says; files are named from the repository's root on."""
    return report.longreprtext.replace(f"{ROOT}{os.sep}", "")[-_MOST_TEXT:]


def _write(test: str, **known: Any) -> None:
    with _FILE.open("a") as file:
        file.write(json.dumps({"test": test, **known}) + "\n")
