"""Reads a corpus: distinct sentences in order of first appearance, with everything left out counted.

`.txt` holds one sentence a line; `.jsonl` one JSON object a line. Only a line feed, or a carriage return and
a line feed, ends a line: U+2028 and its like are text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

# The first of these whose fields a file's first record has are read, in this order within a record.
KNOWN_FIELDS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence",), ("text",))
SUFFIXES = (".txt", ".jsonl")
DROP_REASONS = ("empty", "invalid_utf8", "lone_surrogate", "malformed_record", "missing_field")
REPLACE_REASONS = ("invalid_utf8", "lone_surrogate")
MAX_EXAMPLES = 10

Encoding = Literal["replace", "drop", "raise"]
Malformed = Literal["drop", "raise"]
_SURROGATE = re.compile("[\ud800-\udfff]")


class CorpusError(ValueError):
    """A corpus cannot be read as asked; the message names the file and, where there is one, the line."""


@dataclass(frozen=True)
class CorpusSummary:
    """What one pass over a corpus used and left out.

    Attributes:
        name: the file's name, or "<sentences>" for sentences given in Python.
        fields: the record fields that were read; empty for text files.
        sentences: distinct sentences given out.
        duplicates: sentences seen before, and so not given out again.
        dropped: sentences, lines or records left out, by reason (`DROP_REASONS`).
        replaced: sentences given out, or seen before, with U+FFFD in place of what is no text, by reason.
        examples: file, line and reason of the first ten dropped or replaced ones, empty lines not among them.
        fingerprint: sha256 over the sentences given out, each with its length, in order.
        limit: how many sentences were asked for at most.
        complete: whether the pass reached its end (the limit, or the end of the file).
    """

    name: str
    fields: tuple[str, ...]
    sentences: int
    duplicates: int
    dropped: Mapping[str, int]
    replaced: Mapping[str, int]
    examples: tuple[str, ...]
    fingerprint: str
    limit: int | None
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON data."""
        return {
            "name": self.name,
            "fields": list(self.fields),
            "limit": self.limit,
            "sentences": self.sentences,
            "duplicates": self.duplicates,
            "dropped": dict(self.dropped),
            "replaced": dict(self.replaced),
            "examples": list(self.examples),
            "fingerprint": self.fingerprint,
        }


@dataclass
class _Tally:
    """The counts of a pass that is under way."""

    fields: tuple[str, ...] = ()
    sentences: int = 0
    duplicates: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    replaced: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REPLACE_REASONS, 0))
    examples: list[str] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)
    bytes_read: int = 0
    complete: bool = False

    def drop(self, reason: str, where: str, what: str) -> None:
        self.dropped[reason] += 1
        if reason != "empty":
            self._note(f"{where}: dropped, {what}")

    def replace(self, reason: str, where: str, what: str) -> None:
        self.replaced[reason] += 1
        self._note(f"{where}: replaced by U+FFFD, {what}")

    def _note(self, line: str) -> None:
        logger.info(line)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(line)


class Corpus:
    """The distinct sentences of a file, in order of first appearance; every iteration reads the file anew.

    Args:
        path: a `.txt` or `.jsonl` file, UTF-8 (a byte order mark at its start is no text).
        fields: the fields of a `.jsonl` record to read, in this order; None finds them by the first record:
            premise and hypothesis, sentence1 and sentence2, sentence, or text.
        limit: give out the first `limit` distinct sentences only.
        errors: bytes that are not UTF-8, and lone surrogates from JSON escapes: "replace" by U+FFFD, "drop"
            the line or sentence, or "raise".
        malformed: lines that are not a JSON object, and records without one of the fields: "drop" or "raise".

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: `path` cannot be read; found at once.
        CorpusError: unknown suffix or encoding, fields that the first record does not have, or what a policy
            raises.
        ValueError: an argument is out of range.

    Example:
        >>> corpus = Corpus("snli_dev.jsonl", limit=300)
        >>> sentences = list(corpus)
        >>> corpus.summary.sentences
        300
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
        errors: Encoding = "replace",
        malformed: Malformed = "drop",
    ) -> None:
        self.path: Path | None = Path(path).expanduser()
        self.name = self.path.name
        self._sentences: Iterable[str] | None = None
        self._set_policies(limit, errors, malformed)
        if isinstance(fields, str):
            raise TypeError(f"fields: got the string {fields!r}; it must be a sequence of field names")
        self.fields = tuple(fields) if fields else None
        if self.fields and len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields: got {', '.join(self.fields)}; each may be named once")
        self._check_file()

    @classmethod
    def from_sentences(
        cls,
        sentences: Iterable[str],
        *,
        limit: int | None = None,
        errors: Encoding = "replace",
        name: str = "<sentences>",
    ) -> Corpus:
        """A corpus of sentences given in Python, deduplicated and counted as those of a file are."""
        if isinstance(sentences, str):
            raise TypeError("sentences: got one string; it must be an iterable of sentences")
        corpus = cls.__new__(cls)
        corpus.path = None
        corpus.name = name
        corpus.fields = None
        corpus._sentences = sentences
        corpus._set_policies(limit, errors, "raise")
        return corpus

    def _set_policies(self, limit: int | None, errors: Encoding, malformed: Malformed) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit: got {limit}; it must be at least 1, or None for all sentences")
        if errors not in {"replace", "drop", "raise"}:
            raise ValueError(f"errors: got {errors!r}; it must be replace, drop or raise")
        if malformed not in {"drop", "raise"}:
            raise ValueError(f"malformed: got {malformed!r}; it must be drop or raise")
        self.limit = limit
        self.errors = errors
        self.malformed = malformed
        self._tally = _Tally()

    def _check_file(self) -> None:
        assert self.path is not None
        if not self.path.exists():
            raise FileNotFoundError(f"corpus: there is no file {self.path}")
        if self.path.is_dir():
            raise IsADirectoryError(f"corpus: {self.path} is a folder; it must be a {' or '.join(SUFFIXES)} file")
        suffix = self.path.suffix.lower()
        if suffix not in SUFFIXES:
            raise CorpusError(f"corpus: {self.path} ends in {suffix!r}; it must be a {' or '.join(SUFFIXES)} file")
        if self.fields and suffix == ".txt":
            raise CorpusError(f"fields: {self.path} is a text file and has no fields")
        with self.path.open("rb") as file:
            start = file.read(2)
        if start in {b"\xff\xfe", b"\xfe\xff"}:
            raise CorpusError(f"corpus: {self.path} is UTF-16; it must be UTF-8")

    @property
    def summary(self) -> CorpusSummary:
        """The counts of the latest pass so far; all zero before the first."""
        tally = self._tally
        return CorpusSummary(
            name=self.name,
            fields=tally.fields,
            sentences=tally.sentences,
            duplicates=tally.duplicates,
            dropped=dict(tally.dropped),
            replaced=dict(tally.replaced),
            examples=tuple(tally.examples),
            fingerprint=tally.sha256.hexdigest(),
            limit=self.limit,
            complete=tally.complete,
        )

    def expected_sentences(self) -> int | None:
        """How many sentences this pass will give: exact once complete, before that judged by the bytes read."""
        tally = self._tally
        if tally.complete:
            return tally.sentences
        if self.path is None or not tally.bytes_read or not tally.sentences:
            return self.limit
        estimate = round(tally.sentences * self.path.stat().st_size / tally.bytes_read)
        return estimate if self.limit is None else min(self.limit, estimate)

    def __iter__(self) -> Iterator[str]:
        self._tally = tally = _Tally()
        seen: set[bytes] = set()
        for where, text in self._texts(tally):
            sentence, encoded = self._encoded(text, where, tally)
            if sentence is None:
                continue
            if not sentence.strip():
                tally.drop("empty", where, "empty")
                continue
            digest = hashlib.blake2b(encoded, digest_size=16).digest()
            if digest in seen:
                tally.duplicates += 1
                continue
            seen.add(digest)
            tally.sentences += 1
            tally.sha256.update(len(encoded).to_bytes(8, "little") + encoded)
            # Set before the last sentence is given out: a reader with the same limit asks for no further one.
            tally.complete = tally.sentences == self.limit
            yield sentence
            if tally.complete:
                return
        tally.complete = True

    def _texts(self, tally: _Tally) -> Iterator[tuple[str, str]]:
        """(where, text) of every candidate sentence, duplicates and empty ones among them."""
        if self._sentences is not None:
            for index, text in enumerate(self._sentences):
                if not isinstance(text, str):
                    raise TypeError(f"sentences[{index}]: got {type(text).__name__}; it must be a string")
                yield f"sentences[{index}]", text
            return
        assert self.path is not None
        lines = self._lines(self.path, tally)
        yield from lines if self.path.suffix.lower() == ".txt" else self._records(lines, tally)

    def _lines(self, path: Path, tally: _Tally) -> Iterator[tuple[str, str]]:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                tally.bytes_read += len(raw)
                line = raw.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                where = f"{path}:{number}"
                try:
                    yield where, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    what = f"byte {error.object[error.start]:#04x} at column {error.start + 1} is not UTF-8"
                    if self.errors == "raise":
                        raise CorpusError(f"{where}: {what}") from None
                    if self.errors == "drop":
                        tally.drop("invalid_utf8", where, what)
                        continue
                    tally.replace("invalid_utf8", where, what)
                    yield where, line.decode("utf-8", "replace")

    def _records(self, lines: Iterator[tuple[str, str]], tally: _Tally) -> Iterator[tuple[str, str]]:
        fields: tuple[str, ...] = ()
        for where, line in lines:
            if not line.strip():
                tally.drop("empty", where, "empty")
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                self._refuse("malformed_record", where, f"not JSON: {error}", tally)
                continue
            if not isinstance(record, dict):
                what = f"a JSON {type(record).__name__}; it must be an object"
                self._refuse("malformed_record", where, what, tally)
                continue
            if not fields:
                fields = tally.fields = self._choose_fields(record, where)
            for name in fields:
                if isinstance(record.get(name), str):
                    yield where, record[name]
                else:
                    found = f"is {record[name]!r:.40}, no string" if name in record else "is missing"
                    self._refuse("missing_field", where, f"field {name!r} {found}", tally)

    def _choose_fields(self, record: dict[str, Any], where: str) -> tuple[str, ...]:
        found = ", ".join(map(repr, record)) or "no field"
        if self.fields:
            if not any(name in record for name in self.fields):
                wanted = ", ".join(map(repr, self.fields))
                raise CorpusError(f"{where}: the first record has {found}; the fields asked for are {wanted}")
            return self.fields
        for names in KNOWN_FIELDS:
            if all(name in record for name in names):
                return names
        known = "; ".join(" and ".join(names) for names in KNOWN_FIELDS)
        raise CorpusError(f"{where}: the first record has {found}; it must have one of: {known}; or name the fields")

    def _refuse(self, reason: str, where: str, what: str, tally: _Tally) -> None:
        if self.malformed == "raise":
            raise CorpusError(f"{where}: {what}")
        tally.drop(reason, where, what)

    def _encoded(self, text: str, where: str, tally: _Tally) -> tuple[str | None, bytes]:
        """The sentence and its UTF-8, with lone surrogates treated by policy; None where it is dropped."""
        try:
            return text, text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"lone surrogate U+{ord(text[error.start]):04X}"
        if self.errors == "raise":
            raise CorpusError(f"{where}: {what}")
        if self.errors == "drop":
            tally.drop("lone_surrogate", where, what)
            return None, b""
        tally.replace("lone_surrogate", where, what)
        text = _SURROGATE.sub("\ufffd", text)
        return text, text.encode("utf-8")
