"""A pass over a corpus as its readers see it: what to read, what was left out, and how far the pass is."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

logger = logging.getLogger(__name__)

# The first of these whose fields a file's first record has are read, in this order within a record.
KNOWN_FIELDS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence",), ("text",))
DROP_REASONS = ("empty", "invalid_utf8", "lone_surrogate", "malformed_record", "missing_field")
REPLACE_REASONS = ("invalid_utf8", "lone_surrogate")
MAX_EXAMPLES = 10
# The most bytes of a line, and the most characters of a sentence: a tokenizer takes some 50 bytes for each of these
# before it cuts them. Longer ones stand for a file without line feeds, or for one made to fill the memory.
MAX_LINE = 1 << 26
MAX_SENTENCE = 1 << 23
# Of the jackknife, as `cone_kernels.sums.GROUPS`, which needs torch.
GROUPS = 64

Encoding = Literal["replace", "drop", "raise"]
Malformed = Literal["drop", "raise"]
_SURROGATE = re.compile("[\ud800-\udfff]")


class CorpusError(ValueError):
    """A corpus cannot be read as asked; the message names the file and, where there is one, the line or row."""


@dataclass
class Reading:
    """The settings of a pass over a corpus, and what its readers count.

    Attributes:
        asked: the fields to read; None for the first of `KNOWN_FIELDS` that a file has.
        errors, malformed: the policies, as in `Corpus`.
        place: what messages put before and after the number of a line or row.
        fields: the fields that were read, of all files.
        dropped, replaced: counts by reason.
        examples: place and reason of the first ten.
        group_by: the field whose value says which sentences belong together; None where none does.
        group: the jackknife group of the record that is read, by that value.
        delimiter: what separates the cells of a record; None for what the format says.
        encoding: of texts.
        position: gives how many bytes of the current file have been read.
    """

    asked: tuple[str, ...] | None = None
    errors: Encoding = "replace"
    malformed: Malformed = "drop"
    place: tuple[str, str] = ("", "")
    fields: tuple[str, ...] = ()
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    replaced: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REPLACE_REASONS, 0))
    examples: list[str] = field(default_factory=list)
    group_by: str | None = None
    group: int = 0
    delimiter: str | None = None
    encoding: str = "utf-8"
    position: Callable[[], int] = int

    def where(self, number: int) -> str:
        """A line, row or sentence as messages name it."""
        return f"{self.place[0]}{number}{self.place[1]}"

    def use(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Remembers the fields that are read of a file, and returns them."""
        self.fields = tuple(dict.fromkeys(self.fields + fields))
        return fields

    def begin_record(self, value: object, number: int) -> bool:
        """Notes the jackknife group of a record; False where it has no value of `group_by` and is refused.

        Records of one value are in one group, whatever their order and file: the value's hash decides it.

        Args:
            value: what the record has in the field `group_by`, a string or a number.
            number: of its line or row.
        """
        assert self.group_by is not None
        if value is None or isinstance(value, (bytes, list, dict)):
            self.refuse("missing_field", number, f"field {self.group_by!r} is {value!r:.40}; it must name a group")
            return False
        encoded = str(value).encode("utf-8", "surrogatepass")
        self.group = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little") % GROUPS
        return True

    def drop_empty(self) -> None:
        """Counts an empty line, record or sentence; it is not listed among the examples."""
        self.dropped["empty"] += 1

    def refuse(self, reason: str, number: int, what: str) -> None:
        """Drops a record or a field, or raises, by `malformed`.

        Raises:
            CorpusError: the policy is "raise".
        """
        if self.malformed == "raise":
            raise CorpusError(f"{self.where(number)}: {what}")
        self._drop(reason, number, what)

    def refuse_no_string(self, name: str, found: object, number: int) -> None:
        """`refuse` of a field that is there, but no string."""
        self.refuse("missing_field", number, f"field {name!r} is {found!r:.40}, no string")

    def refuse_missing(self, name: str, number: int) -> None:
        """`refuse` of a field that is not there."""
        self.refuse("missing_field", number, f"field {name!r} is missing")

    def decoded(self, raw: bytes, number: int) -> str | None:
        """The text of the encoding; of other bytes what the policy `errors` makes of them, None where it drops them.

        Raises:
            CorpusError: it is not of the encoding and the policy is "raise".
        """
        try:
            return raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            what = f"byte {error.object[error.start]:#04x} at column {error.start + 1} is not {self.encoding.upper()}"
        return raw.decode(self.encoding, "replace") if self._replaces("invalid_utf8", number, what) else None

    def encoded(self, text: str, number: int) -> tuple[str, bytes] | None:
        """The text and its UTF-8; lone surrogates are treated by the policy `errors`, None where it drops the text.

        Raises:
            CorpusError: it has a lone surrogate and the policy is "raise".
        """
        try:
            return text, text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"lone surrogate U+{ord(text[error.start]):04X}"
        if not self._replaces("lone_surrogate", number, what):
            return None
        text = _SURROGATE.sub("\ufffd", text)
        return text, text.encode("utf-8")

    def _replaces(self, reason: str, number: int, what: str) -> bool:
        if self.errors == "raise":
            raise CorpusError(f"{self.where(number)}: {what}")
        if self.errors == "drop":
            self._drop(reason, number, what)
            return False
        self.replaced[reason] += 1
        self._note(f"{self.where(number)}: replaced by U+FFFD, {what}")
        return True

    def _drop(self, reason: str, number: int, what: str) -> None:
        self.dropped[reason] += 1
        self._note(f"{self.where(number)}: dropped, {what}")

    def _note(self, line: str) -> None:
        logger.info(line)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(line)


def first_record_fields(asked: Sequence[str] | None, found: Iterable[str], where: str) -> tuple[str, ...]:
    """The fields of records that need not be alike, by the first one: one of those asked for is enough.

    Raises:
        CorpusError: it has none of them, or none of `KNOWN_FIELDS` where none is asked for.

    Examples:
        >>> first_record_fields(None, ["id", "text"], "a.jsonl:1")
        ('text',)
    """
    names = list(found)
    what = f"{where}: the first record has {_listed(names)}"
    if asked and not any(name in names for name in asked):
        raise CorpusError(f"{what}; the fields asked for are {_listed(asked)}")
    return tuple(asked or _known_fields(names, what))


def record_texts(
    record: Mapping[str, object], fields: Sequence[str], number: int, reading: Reading
) -> Iterator[tuple[int, str]]:
    """(number, text) of the fields of a record; one that is missing or no string is refused as `reading` says.

    Examples:
        >>> list(record_texts({"id": 3, "text": "Hi."}, ["text"], 1, Reading()))
        [(1, 'Hi.')]
    """
    if reading.group_by is not None and not reading.begin_record(record.get(reading.group_by), number):
        return
    for name in fields:
        value = record.get(name)
        if isinstance(value, str):
            yield number, value
        elif name in record:
            reading.refuse_no_string(name, value, number)
        else:
            reading.refuse_missing(name, number)


def table_fields(asked: Sequence[str] | None, columns: Sequence[str], where: str) -> tuple[str, ...]:
    """The fields of a table, by its columns: all of those asked for must be there, each once.

    Raises:
        CorpusError: a field is not among the columns, or several columns have its name.
    """
    what = f"{where}: the columns are {_listed(columns)}"
    if asked and not set(asked) <= set(columns):
        raise CorpusError(f"{what}; the fields asked for are {_listed(asked)}")
    fields = tuple(asked or _known_fields(columns, what))
    for name in fields:
        if columns.count(name) > 1:
            raise CorpusError(f"{what}; {columns.count(name)} of them are called {name!r}, and it must be one")
    return fields


def _known_fields(names: Sequence[str], what: str) -> tuple[str, ...]:
    for known in KNOWN_FIELDS:
        if all(name in names for name in known):
            return known
    wanted = "; ".join(" and ".join(known) for known in KNOWN_FIELDS)
    raise CorpusError(f"{what}; it must have one of: {wanted}; or name the fields")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no field"
