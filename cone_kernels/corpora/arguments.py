"""What a `Corpus` is told, checked before anything is read, and what it is called."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

from cone_kernels.corpora.reading import Encoding, Malformed
from cone_kernels.corpora.sample import MAX_SEED
from cone_kernels.corpora.seen import MIN_DEDUP_MEMORY

UTF_8 = "utf-8"

_NAMES_SHOWN = 3
_ASCII = bytes(range(128)).decode("ascii")


def check_policies(
    limit: int | None,
    sample: int | None,
    shuffle: bool,
    seed: int | None,
    dedup: bool,
    dedup_memory: int,
    errors: Encoding,
    malformed: Malformed,
) -> None:
    """Raises ValueError where an argument of a `Corpus` is out of range, or does not go with another."""
    for name, value in (("limit", limit), ("sample", sample)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}; it must be at least 1, or None for all sentences")
    if sample is not None and limit is not None:
        raise ValueError(f"sample: got {sample} with limit={limit}; it must be None, or limit must be")
    if sample is not None and not dedup:
        raise ValueError(f"sample: got {sample} with dedup=False; it must be drawn from distinct sentences")
    if shuffle and not dedup:
        raise ValueError("shuffle: got True with dedup=False; it must be of distinct sentences")
    if seed is not None and sample is None and not shuffle:
        raise ValueError(f"seed: got {seed} without sample or shuffle; it must be None, as only these have a seed")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed: got {seed}; it must be from 0 to {MAX_SEED}")
    if dedup_memory < MIN_DEDUP_MEMORY:
        raise ValueError(f"dedup_memory: got {dedup_memory}; it must be at least {MIN_DEDUP_MEMORY} bytes")
    if errors not in {"replace", "drop", "raise"}:
        raise ValueError(f"errors: got {errors!r}; it must be replace, drop or raise")
    if malformed not in {"drop", "raise"}:
        raise ValueError(f"malformed: got {malformed!r}; it must be drop or raise")


def checked_fields(fields: Sequence[str] | None) -> tuple[str, ...] | None:
    """Distinct names of fields; None where none are given.

    Raises:
        TypeError: it is one string.
        ValueError: a name comes twice.
    """
    if isinstance(fields, str):
        raise TypeError(f"fields: got the string {fields!r}; it must be a sequence of field names")
    if fields and len(set(fields)) < len(fields):
        raise ValueError(f"fields: got {', '.join(fields)}; each must be named once")
    return tuple(fields) if fields else None


def checked_delimiter(delimiter: str | None) -> str | None:
    """One character that can stand between cells, or None; ValueError where it cannot."""
    if delimiter is not None and (len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n'):
        raise ValueError(f"delimiter: got {delimiter!r}; it must be one character of ASCII, no quote and no line feed")
    return delimiter


def checked_encoding(encoding: str) -> str:
    """The name of the encoding as Python spells it; lines, cells and JSON are found by the bytes of ASCII."""
    try:
        name = codecs.lookup(encoding).name
        has_ascii = _ASCII.encode(name) == _ASCII.encode()
    except (LookupError, UnicodeError):
        raise ValueError(f"encoding: got {encoding!r}; it must be one that Python knows, such as latin-1") from None
    if not has_ascii:
        raise ValueError(
            f"encoding: got {encoding!r}; it must be one that has ASCII as it is, so convert the file first"
        )
    return name


def name_of(paths: Sequence[str | os.PathLike[str]]) -> str:
    """The last parts of the paths: "a.txt", "a.txt, b.txt", "a.txt, b.txt, c.txt and 4 more"."""
    names = [Path(path).name or os.fspath(path) for path in paths]
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
