"""Files that are written whole or not at all, and the checksum of files."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CANNOT = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


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
    with whole_file(path, previous=previous) as file:
        file.write(content)


@contextmanager
def whole_file(path: str | os.PathLike[str], *, previous: str | os.PathLike[str] | None = None) -> Iterator[BinaryIO]:
    """As `write_whole`, of content that comes piece by piece: at the end it is at `path`.

    Args:
        path, previous: as in `write_whole`.

    Raises:
        OSError: as `write_whole`. Whatever is raised within the block, nothing is left behind.

    Example:
        >>> with whole_file("vectors.fbin") as file:
        ...     file.write(header)
    """
    target = Path(path)
    descriptor, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        with _where_the_disk_can():
            os.chmod(aside, 0o666 & ~_umask())
        if previous is not None and target.exists():
            os.replace(target, previous)
        os.replace(aside, target)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    # The file is there; that its name is on the disk too is more than some disks can be asked.
    with _where_the_disk_can():
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sync(descriptor: int) -> None:
    """Waits until what was written to a file is on the disk, where the disk can be asked.

    Args:
        descriptor: of the open file.

    Raises:
        OSError: it could not be written: the disk is full or broken.
    """
    with _where_the_disk_can():
        os.fsync(descriptor)


def sha256_of(*paths: str | os.PathLike[str]) -> str:
    """sha256 (hex) over the content of the files, one after the other."""
    sha256 = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


@contextmanager
def _where_the_disk_can() -> Iterator[None]:
    """Network disks and FUSE know no modes of files, or do not sync folders: what they refuse so is no harm."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
