"""Which format the sentences on standard input have, told by how they begin."""

from __future__ import annotations

import csv
import io
import json
import sys

import click

from cone_kernels.names import TextFormat

STDIN = "-"
_BEGINNING = 4096  # bytes that are looked at


def guessed_format() -> TextFormat | None:
    """The format of standard input, of which nothing is consumed; what was guessed is said on stderr.

    Returns:
        "jsonl" where the first line begins an object of JSON, "csv" where it is a header with a field that is known,
        else "txt"; None where there is no standard input, which is said when it is read.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or not hasattr(stream, "peek"):
        return None
    beginning = stream.peek(_BEGINNING)[:_BEGINNING].decode("utf-8-sig", "replace")
    found = format_of(beginning)
    click.echo(f"standard input is read as {found}; --format names another", err=True)
    return found


def format_of(beginning: str) -> TextFormat:
    """The format of a text by its first lines.

    Examples:
        >>> format_of('{"text": "a"}'), format_of("id,text"), format_of("Hello, world")
        ('jsonl', 'csv', 'txt')
    """
    first = next((line.strip() for line in beginning.splitlines() if line.strip()), "")
    if first.startswith("{") and _begins_object(first):
        return "jsonl"
    header = next(csv.reader(io.StringIO(first)), [])
    return "csv" if len(header) > 1 and _known(header) else "txt"


def _begins_object(line: str) -> bool:
    """Whether a line is an object of JSON, or the beginning of one that is longer than what was looked at."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return len(line) >= _BEGINNING - 1 and line.lstrip("{ ").startswith('"')


def _known(header: list[str]) -> bool:
    from cone_kernels.corpora import KNOWN_FIELDS

    names = {name.strip() for name in header}
    return any(names.issuperset(fields) for fields in KNOWN_FIELDS)
