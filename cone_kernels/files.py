"""Files that are written whole or not at all, and the checksum of files."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

_CANNOT = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# What could not be written so far, where the rest is written all the same.
_failed: ContextVar[list[str] | None] = ContextVar("failed", default=None)


@contextmanager
def every_output() -> Iterator[None]:
    """Inside, a file of `writing` that cannot be written costs no other one; at the end one error names them all.

    Raises:
        OSError: at the end, where there was one; within another `every_output` at the end of that.

    Examples:
        >>> with every_output():
        ...     with writing("state.safetensors"):
        ...         state.save("state.safetensors")
        ...     print(table)
    """
    if _failed.get() is not None:
        yield
        return
    failed: list[str] = []
    token = _failed.set(failed)
    try:
        yield
    except BaseException:
        for message in failed:
            logger.warning("%s", message)
        raise
    finally:
        _failed.reset(token)
    if failed:
        raise OSError("; ".join(failed))


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around the writing of one result: where it cannot be written, the error names the file.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be written; within `every_output` only at the end of that.
    """
    try:
        yield
    except OSError as error:
        message = f"{os.fspath(path)} could not be written: {error.strerror or error}"
        failed = _failed.get()
        if failed is None:
            raise OSError(message) from error
        failed.append(message)


def require_local(name: str, path: str | os.PathLike[str] | None) -> None:
    """Refuses an output on a remote place, which would become a folder of this machine called `s3:`.

    Args:
        name: of the argument.
        path: where it is to be written; None is nowhere.

    Raises:
        ValueError: it is a URL.
    """
    if path is not None and "://" in os.fspath(path):
        raise ValueError(
            f"{name}: got {os.fspath(path)!r}; it must be a path of this machine: write there, and copy it afterwards"
        )


def require_room(name: str, path: str | os.PathLike[str], needed: int) -> None:
    """Refuses a file that its disk has no room for.

    Args:
        name: of the argument that names the file.
        path: of the file.
        needed: bytes.

    Raises:
        OSError: less is free.
    """
    folder = Path(os.path.realpath(path)).parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{name}: {folder} must have room for {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")


def write_whole(
    path: str | os.PathLike[str], content: bytes, *, previous: str | os.PathLike[str] | None = None
) -> None:
    """Writes aside, syncs and renames, so that `path` is the old file or the new one, whatever happens.

    Args:
        path: the file; of a link, what it leads to.
        content: what it is to hold.
        previous: a name in the same folder under which the old file is kept. A process that is killed between the two
            renames leaves that file alone, and none at `path`.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
        ValueError: `path` is a URL.
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

    Examples:
        >>> with whole_file("vectors.fbin") as file:
        ...     file.write(header)
    """
    require_local("path", path)
    target = Path(path) if previous is not None else Path(os.path.realpath(path))
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
