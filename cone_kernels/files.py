"""Files that are written whole or not at all, and the checksum of files."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def write_whole(
    path: str | os.PathLike[str], content: bytes, *, previous: str | os.PathLike[str] | None = None
) -> None:
    """Writes aside, syncs and renames, so that `path` is the old file or the new one, whatever happens.

    Args:
        path: the file.
        content: what it is to hold.
        previous: a name in the same folder under which the old file is kept. A process that is killed between the two
            renames leaves that file alone, and none at `path`.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    descriptor, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        if previous is not None and target.exists():
            os.replace(target, previous)
        os.replace(aside, target)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(*paths: str | os.PathLike[str]) -> str:
    """sha256 (hex) over the content of the files, one after the other."""
    sha256 = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
