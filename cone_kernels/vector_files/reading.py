"""What all readers of vectors share: their interface, the error, what numbers are taken, how a field is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# What numbers a file may hold. The floats are given out as they are; bytes become float32.
FLOATS = ("float32", "float64", "float16", "bfloat16")
BYTES = ("int8", "uint8")
KINDS = (*FLOATS, *BYTES)


class VectorFileError(ValueError):
    """Vectors cannot be read as asked; the message names the file and, where there is one, the row or line."""


class Reader(ABC):
    """One opened source of vectors: a file, a folder, an index or what was given in Python.

    Attributes:
        name: as messages name it.
        dim: d, the width.
        kind: the dtype of its numbers, one of `KINDS`.
        rows: how many there are; None while that is not known.
        fields: names that its ids can be read from.
        files: what its fingerprint is made of.
        once: whether it can be read only once, in order.
    """

    name: str
    dim: int
    kind: str
    rows: int | None
    fields: Sequence[str] = ()
    files: Sequence[Path] = ()
    once: bool = False

    @abstractmethod
    def pieces(self, start: int, stop: int) -> Iterable[Tensor]:
        """Rows from `start` up to `stop` in order, as tensors (n, d) of `kind`; fewer only where the source ends,
        and then `rows` is known.
        """

    def ids(self, field: str, rows: Sequence[int]) -> list[str | None]:
        """What `field` has at these rows; None for null."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """Of a source that is not in `files`."""
        return None


@dataclass(frozen=True)
class Format:
    """How the files of one format are read.

    Attributes:
        open: gives the reader of a path, with the field that is asked for. Raises `VectorFileError` for all that a
            header, a size, a schema, a footer or the first record shows.
        has_fields: whether a file can hold several sets of vectors, told apart by name.
    """

    open: Callable[[Path, str | None], Reader]
    has_fields: bool = False


def check_kind(kind: str, where: str) -> str:
    """The kind itself, where it is one of `KINDS`.

    Raises:
        VectorFileError: it is another one.
    """
    if kind not in KINDS:
        raise VectorFileError(f"{where} holds {kind}; it must hold {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    return kind


def check_shape(shape: Sequence[int], where: str) -> tuple[int, int]:
    """(n, d) of a shape that is one.

    Raises:
        VectorFileError: it has not two dimensions, or no column.
    """
    if len(shape) != 2 or shape[1] < 1:
        raise VectorFileError(f"{where} has shape {tuple(shape)}; it must be (n, d), one vector a row")
    return shape[0], shape[1]


def chosen(field: str | None, found: Mapping[str, str], usable: Sequence[str], where: str, what: str) -> str:
    """The field that is asked for, or the only one that can hold vectors.

    Args:
        field: what is asked for; None for the only one.
        found: every name there is, with what it holds.
        usable: those that can hold vectors.
        where: the file.
        what: what they are called there, in the plural.

    Raises:
        VectorFileError: there is no such field, or none or several could be meant.
    """
    listed = ", ".join(f"{name!r} ({kind})" for name, kind in found.items()) or "none"
    if field is not None:
        if field not in found:
            raise VectorFileError(f"{where}: there is no field {field!r}; the {what} are {listed}")
        return field
    if len(usable) != 1:
        count = "none" if not usable else f"{len(usable)}"
        raise VectorFileError(f"{where}: {count} of the {what} can hold vectors: {listed}; name one as the field")
    return usable[0]


def as_floats(rows: Tensor, scale: float | None) -> Tensor:
    """Floats as they are; bytes as float32, times the scale."""
    if rows.is_floating_point():
        return rows
    floats = rows.to(torch.float32)
    return floats if scale is None else floats.mul_(scale)
