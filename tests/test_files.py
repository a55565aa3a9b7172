"""Files written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from cone_kernels.extras import require
from cone_kernels.files import sha256_of, write_whole


def test_replaces_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for content in (b"long content", b"short", b""):
        write_whole(file, content)
        assert file.read_bytes() == content
    assert os.listdir(tmp_path) == ["a"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "inside").write_bytes(b"old")
    # A folder that is not empty cannot be replaced by a file, which shows only at the rename.
    with pytest.raises(OSError):
        write_whole(target, b"new")
    assert os.listdir(tmp_path) == ["folder"]
    assert (target / "inside").read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
@pytest.mark.parametrize("call", ["chmod", "fsync", "open"])
def test_what_a_network_disk_cannot_do_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Modes of files, syncing of a folder or of anything, opening a folder: the file is whole without it."""
    write_whole(tmp_path / "a", b"old")
    allowed = getattr(os, call)

    def refuses(what: object, *rest: int) -> object:
        if call == "open" and Path(str(what)) != tmp_path:
            return allowed(what, *rest)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuses)
    write_whole(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_or_broken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write_whole(tmp_path / "a", b"old")

    def fails(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_whole(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_sha256_of_several_files_is_that_of_their_content_in_order(tmp_path: Path) -> None:
    contents = [b"x" * 3_000_000, b"", b"y"]
    files = [tmp_path / str(number) for number in range(3)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    assert sha256_of(*files) == hashlib.sha256(b"".join(contents)).hexdigest()


def test_a_missing_package_is_named_with_its_extra() -> None:
    require("json", "report", "nothing")
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package is not installed; a page needs it: pip install "):
        require("no_such_package", "report", "a page")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
