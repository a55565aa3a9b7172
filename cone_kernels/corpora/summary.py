"""What a pass over a corpus used and left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CorpusSummary:
    """What one pass over a corpus used and left out.

    Attributes:
        name: the file's name, or the names of several, or "<sentences>" for sentences given in Python.
        fields: the record fields that were read, of all files; empty for text files.
        sentences: distinct sentences given out.
        duplicates: sentences seen before, and so not given out again.
        dropped: sentences, lines or records left out, by reason (`DROP_REASONS`).
        replaced: sentences, repeated ones too, in which U+FFFD stands for what is no text, by reason.
        examples: file, line and reason of the first ten dropped or replaced ones, empty lines not among them.
        fingerprint: sha256 over the sentences given out, each with its length, in order; the format of the files, their
            compression and how the sentences are spread over them do not enter.
        limit: how many sentences were asked for at most.
        sample: of a sample the size asked for, the seed, and how many distinct sentences it was drawn from; None
            where no sample was asked for.
        shuffle: the seed of the order, where the sentences were given out in one drawn by chance.
        group_by: the field that says which sentences belong together.
        complete: whether the pass reached its end (the limit, or the end of the last file).
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
    sample: Mapping[str, int] | None
    shuffle: int | None
    group_by: str | None
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON data."""
        return {
            "name": self.name,
            "fields": list(self.fields),
            "limit": self.limit,
            "sample": None if self.sample is None else dict(self.sample),
            "shuffle": self.shuffle,
            "group_by": self.group_by,
            "sentences": self.sentences,
            "duplicates": self.duplicates,
            "dropped": dict(self.dropped),
            "replaced": dict(self.replaced),
            "examples": list(self.examples),
            "fingerprint": self.fingerprint,
        }
