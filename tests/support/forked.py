"""Processes forked from one that has imported torch and transformers and started no thread: at once, not in seconds."""

from __future__ import annotations

import multiprocessing

import pytest

from cone_kernels.runs.sharing import workers

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["torch", "torch.distributed", "transformers.trainer"])


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test, the workers of a run are forked too; all else that they do is the same."""
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: forked)
