"""Ranks that wait for each other: all come, one is late, one never comes."""

from __future__ import annotations

import logging
import time

import pytest
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from cone_kernels.runs.sharing import attendance
from cone_kernels.runs.sharing.attendance import Attendance
from cone_kernels.runs.sharing.ranks import process_group
from cone_kernels.runs.sharing.workers import WorkerError
from tests.support.gloo_ranks import run_ranks


def waited(seconds: float) -> tuple[float, float]:
    """When a rank, which works for that long times its number, is done, and when its wait for the others is over."""
    with process_group() as store, Attendance(store, dist.get_rank(), dist.get_world_size()) as ranks:
        time.sleep(seconds * dist.get_rank())
        done = time.time()
        ranks.wait_for_all()
        return done, time.time()


def test_nobody_goes_on_before_all_are_done() -> None:
    found = run_ranks(waited, 3, 0.7)
    assert min(over for _, over in found) >= max(done for done, _ in found)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_SIGN_S": 0.02, "_LOOK_S": 0.01, "_SAY_S": 0.2, "_SILENT_S": 0.6}.items():
        monkeypatch.setattr(attendance, name, seconds)


@pytest.mark.usefixtures("soon")
def test_who_is_waited_for_is_said_and_one_that_is_never_heard_of_ends_the_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, begin = HashStore(), time.monotonic()
    store.set("3/done", "")
    with (
        caplog.at_level(logging.WARNING),
        Attendance(store, 1, 4),
        Attendance(store, 0, 4) as ranks,
        pytest.raises(WorkerError, match=r"^rank 2: no sign of life for 1 s; it has died or is cut off$"),
    ):
        ranks.wait_for_all()
    assert time.monotonic() - begin >= 0.6
    assert {record.message for record in caplog.records} == {"rank 0 is done and waits for rank 1, rank 2"}
    assert len(caplog.records) <= 3


@pytest.mark.usefixtures("soon")
def test_signs_end_with_the_work_and_are_then_missed() -> None:
    store = HashStore()
    with Attendance(store, 1, 2):
        time.sleep(0.1)
    assert store.check(["1/sign"])
    with Attendance(store, 0, 2) as ranks, pytest.raises(WorkerError, match=r"^rank 1: no sign"):
        ranks.wait_for_all()
