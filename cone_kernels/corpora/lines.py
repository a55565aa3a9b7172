"""Readers of text by lines: see `READERS`.

Only a line feed, or a carriage return and a line feed, ends a line: U+2028 and its like are text.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from cone_kernels.corpora.reading import (
    MAX_LINE,
    CorpusError,
    Reading,
    first_record_fields,
    record_texts,
    table_fields,
)
from cone_kernels.corpora.sources import Reader, Source
from cone_kernels.corpora.streams import READ_ERRORS, check_stream, opened

# The most characters of a cell: a quote that is never closed would otherwise take the rest of the file into memory.
MAX_CELL = MAX_LINE
# So many records of a file may lack what is read before one that has it.
FIRST_RECORDS = 1000
# What tells a table in a text file: so many lines, all cut by as many tabs.
_START = 1 << 16
# What stands between the elements of a JSON array.
_BETWEEN = ", \t\r\n"
_TABLE_LINES, _TABLE_TABS = 3, 2


def text_lines(source: Source, reading: Reading) -> Iterator[tuple[int, str]]:
    """(line, text) of every line that is UTF-8, and of others what the policy `errors` makes of them."""
    for number, raw in _raw_lines(source, reading):
        text = reading.decoded(raw.removesuffix(b"\n").removesuffix(b"\r"), number)
        if text is not None:
            yield number, text


def jsonl_records(source: Source, reading: Reading) -> Iterator[tuple[int, str]]:
    """(line, text) of the fields of JSON objects, one a line, or of those in an array.

    Raises:
        CorpusError: none of the first `FIRST_RECORDS` objects has one of the fields.
    """
    fields: tuple[str, ...] = ()
    without: list[CorpusError] = []
    for number, record in json_objects(source, reading):
        if not fields:
            try:
                fields = reading.use(first_record_fields(reading.asked, record, reading.where(number)))
            except CorpusError as error:
                without.append(error)
                if len(without) == FIRST_RECORDS:
                    break
                reading.refuse("missing_field", number, "it has none of the fields that are read")
                continue
        yield from record_texts(record, fields, number, reading)
    if without and not fields:
        raise without[0]


def json_objects(source: Source, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of every line that is a JSON object or an array of some, or of an array over many lines.

    What is none of these is refused as `reading` says.
    """
    for number, found in _json_values(source, reading):
        for record in found if isinstance(found, list) else [found]:
            if isinstance(record, dict):
                yield number, record
            else:
                reading.refuse("malformed_record", number, f"a JSON {type(record).__name__}; it must be an object")


def _json_values(source: Source, reading: Reading) -> Iterator[tuple[int, Any]]:
    """(line, value) of every line, or of every element of an array that begins in the first line and goes on."""
    lines = text_lines(source, reading)
    is_first = True
    for number, line in lines:
        if not line.strip():
            reading.drop_empty()
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            if is_first and line.lstrip().startswith("[") and _is_cut(error, line):
                yield from _elements(itertools.chain([(number, line.lstrip()[1:])], lines), reading)
                return
            reading.refuse("malformed_record", number, f"not JSON: {error}")
        is_first = False


def _is_cut(error: Exception, text: str) -> bool:
    """Whether all of a text could be the beginning of JSON."""
    return isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip())


def _elements(lines: Iterator[tuple[int, str]], reading: Reading) -> Iterator[tuple[int, Any]]:
    """(line where it begins, value) of the elements of a JSON array that was opened; one is in memory at a time."""
    decoder, pending, begin, closed = json.JSONDecoder(), "", 1, False
    problem: Exception | None = None
    for number, line in lines:
        begin = begin if pending else number
        pending = f"{pending}\n{line}".lstrip(_BETWEEN)
        # An element over many lines ends where a line closes it; to try at every line would take their square.
        while pending and not closed and ("\n" not in pending or line.rstrip(_BETWEEN).endswith(("}", "]"))):
            if pending.startswith("]"):
                closed, pending = True, pending[1:].strip()
                break
            try:
                value, end = decoder.raw_decode(pending)
            except (ValueError, RecursionError) as error:
                problem = None if _is_cut(error, pending) else error
                break
            yield begin, value
            begin, pending = number, pending[end:].lstrip(_BETWEEN)
        if problem or len(pending) > MAX_LINE or (closed and pending):
            break
    if closed and pending:
        reading.refuse("malformed_record", begin, "not JSON: text behind the end of the array")
    elif not closed:
        what = problem or ("the array is not closed" if len(pending) <= MAX_LINE else f"over {MAX_LINE:,} characters")
        reading.refuse("malformed_record", begin, f"not JSON, from here on: {what}")


def csv_records(source: Source, reading: Reading) -> Iterator[tuple[int, str]]:
    """(line, text) of the cells of separated records under a header; a record is named by its first line.

    Cells may be quoted, but in a `.tsv` file, where a quote is text.

    Raises:
        CorpusError: the header does not have the fields, a quote is left open, or a cell is beyond `MAX_CELL`.
    """
    rows = csv_rows(source, reading)
    number, header = next(rows, (1, []))
    if not header:
        return
    fields = reading.use(table_fields(reading.asked, header, reading.where(number)))
    cells = [(name, header.index(name)) for name in fields]
    grouped = None if reading.group_by is None else _column(header, reading.group_by, reading.where(number))
    for number, row in rows:
        if len(row) > len(header):
            reading.refuse("malformed_record", number, f"{len(row)} cells under a header of {len(header)}")
            continue
        if grouped is not None and not reading.begin_record(row[grouped] if grouped < len(row) else None, number):
            continue
        for name, at in cells:
            if at >= len(row):
                reading.refuse_missing(name, number)
                continue
            # What was not UTF-8 came through the parser as lone surrogates, which give the bytes back.
            raw = row[at].encode("utf-8", "surrogateescape")
            text = reading.decoded(raw, number)
            if text is not None:
                yield number, text


def _column(header: list[str], name: str, where: str) -> int:
    """Where a column is; it must be one of its name."""
    table_fields((name,), header, where)
    return header.index(name)


def _check_text(source: Source, settings: Reading) -> None:
    check_stream(source)


def _check_lines(source: Source, settings: Reading) -> None:
    """Checks before a run that a text file is no table, of which numbers and names would be measured too.

    Raises:
        CorpusError: it is one, or cannot be read.
    """
    check_stream(source)
    if source.once:
        return
    with opened(source) as (stream, _):
        try:
            start = stream.read(_START)
        except READ_ERRORS as error:
            raise CorpusError(f"corpus: {source.name} cannot be read: {error}") from error
    lines = start.split(b"\n")[:-1] if len(start) == _START else start.splitlines()
    tabs = {line.count(b"\t") for line in lines}
    if len(lines) >= _TABLE_LINES and len(tabs) == 1 and min(tabs) >= _TABLE_TABS:
        raise CorpusError(
            f"corpus: {source.name} is a table of {tabs.pop() + 1} columns cut by tabs, and not a sentence a line; "
            "name it .tsv where it has a header, or give the file of records (.jsonl, .csv) that is often beside it"
        )


def _check_csv(source: Source, settings: Reading) -> None:
    """Checks before a run that the first bytes can be read and that the header has the fields.

    Raises:
        CorpusError: they cannot, or it lacks a field.
    """
    check_stream(source)
    reading = replace(settings, place=(f"{source.name}:", ""))
    for number, header in csv_rows(source, reading):
        table_fields(reading.asked, header, reading.where(number))
        return


def csv_rows(source: Source, reading: Reading) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of every record that is not empty, the header among them.

    What was not of the encoding comes through as lone surrogates, which give the bytes back.

    Raises:
        CorpusError: a quote is left open, or a line or a cell is too long.
    """
    # The delimiter and quotes are ASCII, which every encoding here has as it is.
    lines = (raw.decode("utf-8", "surrogateescape") for _, raw in _raw_lines(source, reading, may_drop=False))
    plain = source.format == "tsv"
    rows = csv.reader(
        lines,
        strict=True,
        delimiter=reading.delimiter or ("\t" if plain else ","),
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
    )
    while True:
        first = rows.line_num + 1
        # The limit is one for the whole process, so it is set only while this reader reads.
        limit = csv.field_size_limit(MAX_CELL)
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if "field larger" in str(error):
                raise CorpusError(f"{reading.where(first)}: a cell of over {MAX_CELL:,} characters") from None
            if "end of data" in str(error):
                raise CorpusError(f"{reading.where(first)}: a quote is opened and never closed") from None
            reading.refuse("malformed_record", first, f"not CSV: {error}")
            continue
        finally:
            csv.field_size_limit(limit)
        if row:
            yield first, row if first > 1 else [_header_cell(cell, reading) for cell in row]
        else:
            reading.drop_empty()


def _header_cell(cell: str, reading: Reading) -> str:
    return cell.encode("utf-8", "surrogateescape").decode(reading.encoding, "replace")


def _raw_lines(source: Source, reading: Reading, *, may_drop: bool = True) -> Iterator[tuple[int, bytes]]:
    """(line, bytes with their line feed), the first without a byte order mark; lines beyond `MAX_LINE` are refused.

    Raises:
        CorpusError: the source cannot be read, or a line is too long and must not be left out (not `may_drop`).
    """
    number = 0
    with opened(source) as (stream, reading.position):
        if not isinstance(stream, (io.BufferedReader, io.BytesIO)):  # files of fsspec cannot read a part of a line
            stream = io.BufferedReader(cast(Any, stream), _START)
            reading.position = stream.tell
        try:
            for number in itertools.count(1):
                raw = stream.readline(MAX_LINE + 1)
                if not raw:
                    return
                if len(raw) > MAX_LINE:
                    what = f"a line of over {MAX_LINE:,} bytes"
                    if not may_drop:
                        raise CorpusError(f"{reading.where(number)}: {what}")
                    reading.refuse("malformed_record", number, what)
                    while raw and not raw.endswith(b"\n"):
                        raw = stream.readline(_START)
                    continue
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        except READ_ERRORS as error:
            raise CorpusError(f"{reading.where(number)}: cannot be read: {error}") from error


READERS = {
    "txt": Reader(text_lines, _check_lines, has_fields=False),
    "jsonl": Reader(jsonl_records, _check_text),
    "csv": Reader(csv_records, _check_csv),
    "tsv": Reader(csv_records, _check_csv),
}
