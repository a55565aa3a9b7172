"""The table of formats: which reader opens a file."""

from __future__ import annotations

from pathlib import Path

from cone_kernels.names import VECTOR_FORMATS, VectorFormat
from cone_kernels.vector_files import arrays, binary, columns, indexes, lines, tensors, words
from cone_kernels.vector_files.reading import Format, Reader, VectorFileError

FORMATS: dict[str, Format] = {
    **arrays.FORMATS,
    **tensors.FORMATS,
    **columns.FORMATS,
    **lines.FORMATS,
    **binary.FORMATS,
    **words.FORMATS,
    **indexes.FORMATS,
}
_ENDINGS = {ending: name for name, about in VECTOR_FORMATS.items() for ending in about.endings}


def open_reader(path: Path, name: VectorFormat | None, field: str | None) -> Reader:
    """The reader of a file or folder.

    Args:
        path: what is read.
        name: its format; None tells it by the ending of the path's name.
        field: what holds the vectors; None where there is only one.

    Raises:
        FileNotFoundError, IsADirectoryError, VectorFileError, ValueError: as in `Vectors`.
    """
    if not path.exists():
        raise FileNotFoundError(f"vectors: there is no file {path}")
    if name is None:
        name = format_of(path)
    if path.is_dir() != (name == "dataset"):
        is_a, must_be = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise VectorFileError(f"{path} is a {is_a}; it must be a {must_be} to be read as {name}")
    if not path.is_dir() and not path.is_file():
        raise VectorFileError(f"{path} is not a regular file; it must be one")
    if path.is_file() and path.stat().st_size == 0:
        raise VectorFileError(f"{path} is empty; it must have a vector")
    about = FORMATS[name]
    if field is not None and not about.has_fields:
        raise ValueError(f"field: got {field!r} for {path}; it must be None, as {name} files hold one set of vectors")
    return about.open(path, field)


def format_of(path: Path) -> VectorFormat:
    """The format that the ending of a path's name tells; of a folder that datasets saved "dataset".

    Raises:
        IsADirectoryError, VectorFileError: it tells none.
    """
    if path.is_dir():
        if not any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            raise IsADirectoryError(f"{path} is a folder that datasets did not save; name the files in it")
        return "dataset"
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise VectorFileError(f"{path} ends in {ending!r}; it must end in {', '.join(_ENDINGS)}, or name its format")
    return _ENDINGS[ending]
