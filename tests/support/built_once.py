"""What tests build and keep in the temporary folder: built by one process, while others that want it wait."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder of this user that keeps builds from one run of the tests to the next."""
    folder = Path(tempfile.gettempdir()) / f"cone-{name}-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def built_once(target: Path, build: Callable[[Path], object]) -> Path:
    """`target`, which ``build(path)`` writes unless it is there; whole or not at all, and once for all processes."""
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            build(partial)
            partial.rename(target)
    return target
