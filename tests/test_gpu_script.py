"""`make gpu` where there is no GPU; what it does where there is one is seen there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: `make gpu` would run")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--results", str(tmp_path), "bench"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout.strip() == "gpu: torch finds no GPU on this machine; nothing was run"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_stage_is_refused() -> None:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "deploy"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "invalid choice: 'deploy'" in result.stderr
