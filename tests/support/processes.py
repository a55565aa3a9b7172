"""Processes that tests start."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process has not ended, by /proc."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
