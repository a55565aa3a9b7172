"""What a corpus is read from: files by path, glob or folder, remote files, standard input, data sets of the hub."""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from cone_kernels.corpora.reading import CorpusError, Reading
from cone_kernels.extras import require
from cone_kernels.names import FORMATS, IMAGE_SUFFIXES, TEXT_FORMATS, Format, TextFormat, listed_suffixes

Compression = Literal["gz", "zst"]

logger = logging.getLogger(__name__)

STDIN = "-"
_ABOUT = {"README", "LICENSE", "CITATION"}
DATASET = "datasets:"
IMAGE: Literal["image"] = "image"
_SUFFIXES = f"{listed_suffixes()}, alone or with .gz or .zst after it"


@dataclass(frozen=True)
class Source:
    """One file, or one data set, of a corpus.

    Attributes:
        name: as messages name it.
        format: how its content is laid out.
        compression: what is around the content; None for nothing.
        open: gives its bytes from the start, as a file; of a data set the data set.
        size: bytes, compressed as they are; None where that is not known.
        once: whether it can be read only once.
    """

    name: str
    format: Format | Literal["dataset", "image"]
    compression: Compression | None
    open: Callable[[], Any]
    size: int | None
    once: bool = False


@dataclass(frozen=True)
class Reader:
    """How the files of one format are read.

    Attributes:
        records: gives (line or row, text) of every candidate sentence of a source.
        check: finds before a run what a file's first bytes, header, schema or footer show; raises `CorpusError`.
        has_fields: whether a record has fields that are read by name.
    """

    records: Callable[[Source, Reading], Iterator[tuple[int, str]]]
    check: Callable[[Source, Reading], None]
    has_fields: bool = True


def find_sources(paths: Sequence[str | os.PathLike[str]], text_format: TextFormat | None) -> tuple[Source, ...]:
    """The files that paths name, in their order; those of a glob or a folder sorted by name.

    Args:
        paths: as in `Corpus`.
        text_format: the format of standard input.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError, ModuleNotFoundError, ValueError: as in `Corpus`.
    """
    if not paths:
        raise ValueError("corpus: got no file; it must be at least one")
    if text_format is not None and text_format not in TEXT_FORMATS:
        raise ValueError(f"format: got {text_format!r}; it must be {', '.join(TEXT_FORMATS)}")
    from_stdin = STDIN in paths
    if from_stdin and text_format is None:
        raise ValueError(f"format: got none; of {STDIN} (standard input) it must be {', '.join(TEXT_FORMATS)}")
    if not from_stdin and text_format is not None:
        raise ValueError(f"format: got {text_format!r} for files, whose suffix tells it; it must be None")
    sources = tuple(source for path in paths for source in _expanded(os.fspath(path), text_format))
    seen: set[str] = set()
    for source in sources:
        if source.name in seen:
            raise ValueError(f"corpus: {source.name} is named twice; each file must be named once")
        seen.add(source.name)
    return sources


def _expanded(path: str, text_format: TextFormat | None) -> Iterator[Source]:
    if not path:
        raise ValueError("corpus: got an empty path; it must name a file")
    if path == STDIN:
        assert text_format is not None
        yield Source("<stdin>", text_format, None, _stdin, None, once=True)
    elif path.startswith(DATASET):
        yield _dataset(path)
    elif "://" in path:
        yield from _remote(path)
    else:
        yield from _local(Path(path).expanduser())


def _stdin() -> Any:
    if sys.stdin is None:
        raise CorpusError(f"corpus: got {STDIN}, but standard input is closed")
    return sys.stdin.buffer


def _local(path: Path) -> Iterator[Source]:
    if path.is_dir():
        yield from _folder(path)
    elif path.exists():
        yield _local_file(path)
    elif glob.has_magic(str(path)):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise FileNotFoundError(f"corpus: no file matches {path}")
        for match in map(Path, matches):
            # A pattern with ** matches a folder as well as the files in it.
            if not match.is_dir():
                yield _local_file(match)
            elif "**" not in str(path):
                yield from _folder(match)
    else:
        raise FileNotFoundError(f"corpus: there is no file {path}")


def _folder(folder: Path) -> Iterator[Source]:
    found = [path for path in folder.rglob("*") if _is_listed(str(path.relative_to(folder))) and path.is_file()]
    about = [path for path in found if path.stem.upper() in _ABOUT]
    found = [path for path in found if path not in about]
    for path in about:
        logger.warning("corpus: %s is left out, for it is about the folder; name it to read it", path)
    found = found or image_files(folder)
    if not found:
        raise IsADirectoryError(f"corpus: {folder} is a folder with no file in it that ends in {_SUFFIXES}")
    yield from map(_local_file, sorted(found))


def image_files(folder: Path) -> list[Path]:
    """The files of images in a folder and below, without hidden ones, in the order of their paths."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _local_file(path: Path) -> Source:
    if not path.is_file():
        raise CorpusError(f"corpus: {path} is not a regular file; it must be one (a pipe is read as {STDIN})")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Source(str(path), IMAGE, None, partial(open, path, "rb"), path.stat().st_size)
    return Source(str(path), *_layout_of(path.name, str(path)), partial(open, path, "rb"), path.stat().st_size)


def _remote(url: str) -> Iterator[Source]:
    require("fsspec", "remote", url)
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url)
    is_web = url.startswith(("http://", "https://"))
    if glob.has_magic(path) and not is_web:
        paths = sorted(found for found in files.glob(path) if not files.isdir(found))
        if not paths:
            raise FileNotFoundError(f"corpus: no file matches {url}")
    elif not is_web and files.isdir(path):
        paths = sorted(found for found in files.find(path) if _is_listed(found.removeprefix(path)))
        if not paths:
            raise IsADirectoryError(f"corpus: {url} is a folder with no file in it that ends in {_SUFFIXES}")
    elif files.exists(path):
        paths = [path]
    else:
        raise FileNotFoundError(f"corpus: there is no file {url}")
    for found in paths:
        name = url if is_web else files.unstrip_protocol(found)
        layout = _layout_of(name.split("?")[0] if is_web else name, name)
        yield Source(name, *layout, partial(files.open, found, "rb"), files.size(found))


def _is_listed(path: str) -> bool:
    """Whether a folder stands for the file at this path in it: of a known suffix, not hidden."""
    return _layout(path) is not None and not any(part.startswith(".") for part in path.split("/"))


def _dataset(path: str) -> Source:
    parts = path.removeprefix(DATASET).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"corpus: got {path!r}; it must be {DATASET}NAME:SPLIT or {DATASET}NAME:CONFIG:SPLIT")
    require("datasets", "datasets", path)
    return Source(path, "dataset", None, partial(_load, *parts[:-1], split=parts[-1]), None)


def _load(name: str, config: str | None = None, *, split: str) -> Any:
    from datasets import load_dataset

    return load_dataset(name, config, split=split, streaming=True)


def _layout(name: str) -> tuple[Format, Compression | None] | None:
    """Format and compression by a file's suffixes; None where they are not known."""
    parts: list[Any] = name.rsplit("/", 1)[-1].lower().split(".")
    compression = parts.pop() if parts[-1] in get_args(Compression) else None
    return (parts[-1], compression) if len(parts) > 1 and parts[-1] in FORMATS else None


def _layout_of(name: str, path: str) -> tuple[Format, Compression | None]:
    found = _layout(name)
    if found is None:
        suffixes = "".join(Path(name).suffixes[-2:] if name.lower().endswith((".gz", ".zst")) else Path(name).suffix)
        raise CorpusError(f"corpus: {path} ends in {suffixes!r}; it must end in {_SUFFIXES}")
    return found
