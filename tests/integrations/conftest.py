from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def no_search_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate looks through all objects for garbage around each job, which takes longer than a tiny job."""
    memory = sys.modules.get("accelerate.utils.memory")
    if memory is not None:
        monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))
