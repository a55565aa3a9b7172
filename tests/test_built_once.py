"""What the tests themselves build: once for all that want it, whole or not at all."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.built_once import built_once


def test_of_many_one_builds_and_all_get_what_is_whole(tmp_path: Path) -> None:
    target, builds = tmp_path / "target", []

    def build(path: Path) -> None:
        builds.append(path)
        path.write_text("ha")
        time.sleep(0.05)
        assert not target.exists()
        path.write_text("half and half")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: built_once(target, build).read_text(), range(4)))
    assert found == ["half and half"] * 4
    assert len(builds) == 1


def test_a_build_that_fails_leaves_nothing_to_be_taken(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("ha")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        built_once(tmp_path / "target", fail)
    assert built_once(tmp_path / "target", lambda path: path.write_text("whole")).read_text() == "whole"
