"""Labelled pairs of texts in a file: which texts say the same, how alike they are, or which answers which query."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cone_kernels.corpora.lines import csv_rows, json_objects
from cone_kernels.corpora.pair_columns import (
    ENTAILMENT,
    NO_LABEL,
    TRUTH,
    PairColumns,
    found_columns,
    listed,
)
from cone_kernels.corpora.reading import CorpusError, Reading
from cone_kernels.corpora.sources import Source, find_sources
from cone_kernels.corpora.streams import check_stream, opened
from cone_kernels.names import measure_kind

_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class LabelledPairs:
    """The pairs of a file; texts are named by their place in `texts`.

    Attributes:
        name: of the file.
        sha256: of its bytes, decompressed.
        measure: what judges vectors by them: "auc", "spearman", "mrr" or "recall@K".
        columns: the names of the columns that were read.
        positive: for "auc" the label that a higher cosine should go with, in words.
        texts: every text once, in the order of the file.
        pairs: (first, second) texts of each pair; of a query and one text that is relevant to it.
        labels: one for each pair: 1 or 0 for "auc", a score for "spearman"; none where each pair is of a query.
        negatives: (query, text) of texts that are given as not relevant: candidates among which the relevant are found.
        dropped: counts by reason of records that are in no pair.
        examples: place and reason of the first of them.
    """

    name: str
    sha256: str
    measure: str
    columns: tuple[str, ...]
    positive: str | None
    texts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    labels: tuple[float, ...]
    negatives: tuple[tuple[int, int], ...]
    dropped: dict[str, int]
    examples: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What was read, as JSON data, without the texts."""
        names = ("name", "sha256", "positive", "dropped")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**found, "columns": list(self.columns), "texts": len(self.texts), "examples": list(self.examples)}

    def groups(self) -> list[int]:
        """The cluster of each text, counted from 0: texts that pairs lead from one to the other are in one cluster.

        Examples:
            >>> read_pairs("snli_dev.jsonl").groups()[:4]  # a premise and its three hypotheses
            [0, 0, 0, 0]
        """
        parent = list(range(len(self.texts)))

        def root(text: int) -> int:
            while parent[text] != text:
                parent[text] = parent[parent[text]]
                text = parent[text]
            return text

        for first, second in (*self.pairs, *self.negatives):
            parent[max(root(first), root(second))] = min(root(first), root(second))
        numbers: dict[int, int] = {}
        return [numbers.setdefault(root(text), len(numbers)) for text in range(len(self.texts))]


def read_pairs(path: str | os.PathLike[str], measure: str | None = None) -> LabelledPairs:
    """Reads labelled pairs from a file of .jsonl, .csv or .tsv, alone or with .gz or .zst after it.

    What kind they are is found from the names of the columns and the labels: premise and hypothesis, or sentence1 and
    sentence2, with a label of two kinds (entailment is one, all else the other) are judged by the AUC; with a graded
    score by Spearman's correlation; query and positive by the mean reciprocal rank. Records without a label, or with an
    empty text, are left out and counted.

    Args:
        path: of the file.
        measure: "auc", "spearman", "mrr" or "recall@K"; None finds it.

    Raises:
        FileNotFoundError, CorpusError: the file cannot be read, or its columns or labels are not understood; the error
            names them and the way round.
        ValueError: `measure` is none of those.

    Examples:
        >>> read_pairs("snli_dev.jsonl").measure
        'auc'
    """
    kind = None if measure is None else measure_kind(measure)
    source = _source(path)
    check_stream(source)
    reading = Reading(place=(f"{source.name}:", ""))
    reading.dropped["no_label"] = 0
    records = _records(source, reading)
    first = next(records, None)
    if first is None:
        raise CorpusError(f"pairs: {source.name} has no record; it must have at least one")
    columns = found_columns(list(first[1]), kind, source.name)
    taken = _Taken(columns, reading)
    taken.add(*first)
    for number, record in records:
        taken.add(number, record)
    if not taken.pairs:
        why = "; ".join(reading.examples[:3])
        raise CorpusError(f"pairs: {source.name} has no pair to use{': ' if why else ''}{why}")
    positive, labels = (None, ()) if columns.label is None else _numbers(taken.labels, columns, kind, source.name)
    found = "mrr" if columns.label is None else "spearman" if positive is None else "auc"
    return LabelledPairs(
        name=Path(source.name).name,
        sha256=_sha256(source),
        measure=measure or found,
        columns=columns.names,
        positive=positive,
        texts=tuple(taken.texts),
        pairs=tuple(taken.pairs),
        labels=labels,
        negatives=tuple(taken.negatives),
        dropped={reason: count for reason, count in reading.dropped.items() if count},
        examples=tuple(reading.examples),
    )


def opened_pairs(
    pairs: str | os.PathLike[str] | LabelledPairs | None, measure: str | None, *, no_model: bool = False
) -> LabelledPairs | None:
    """The pairs that an experiment was given, read before anything is run.

    Args:
        pairs: a file, or what `read_pairs` returned; None is none.
        measure: what they are judged by; None finds it.
        no_model: whether no model is run, which their texts would have to go through.

    Raises:
        ValueError: there is no model, or a measure without pairs, or with pairs that were read by another one.
        CorpusError, FileNotFoundError: as `read_pairs`.
    """
    if pairs is None:
        if measure is not None:
            raise ValueError(f"measure: got {measure!r} without pairs; name the file of labelled pairs")
        return None
    if no_model:
        raise ValueError("pairs: got some without a model and a corpus; their texts must go through a model")
    if not isinstance(pairs, LabelledPairs):
        return read_pairs(pairs, measure)
    if measure not in (None, pairs.measure):
        raise ValueError(f"measure: got {measure!r} with pairs that were read for {pairs.measure!r}; read them anew")
    return pairs


def _source(path: str | os.PathLike[str]) -> Source:
    name = os.fspath(path)
    bare = name.lower().removesuffix(".gz").removesuffix(".zst")
    if not bare.endswith((".jsonl", ".csv", ".tsv")):
        raise CorpusError(f"pairs: got {name}; its name must end in .jsonl, .csv or .tsv, alone or with .gz or .zst")
    if not Path(name).is_file():
        raise FileNotFoundError(f"pairs: there is no file {name}")
    return find_sources([name], None)[0]


def _records(source: Source, reading: Reading) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line, record) of every record that can be read."""
    if source.format == "jsonl":
        yield from json_objects(source, reading)
        return
    rows = csv_rows(source, reading)
    _, header = next(rows, (1, []))
    if len(set(header)) < len(header):
        raise CorpusError(f"pairs: {source.name} has the columns {listed(header)}; each must be there once")
    for number, row in rows:
        if len(row) != len(header):
            reading.refuse("malformed_record", number, f"{len(row)} cells under a header of {len(header)}")
            continue
        # What was not UTF-8 came through the parser as lone surrogates, which give the bytes back.
        cells = [reading.decoded(cell.encode("utf-8", "surrogateescape"), number) for cell in row]
        if None not in cells:
            yield number, dict(zip(header, cells, strict=True))


@dataclass
class _Taken:
    """The records that were taken so far."""

    columns: PairColumns
    reading: Reading
    texts: dict[str, int] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    labels: list[object] = field(default_factory=list)
    negatives: list[tuple[int, int]] = field(default_factory=list)

    def add(self, number: int, record: Mapping[str, object]) -> None:
        """Takes a record, or counts why not."""
        columns, found = self.columns, []
        for name in (columns.first, columns.second, *columns.negatives):
            text = self._text(record, name, number)
            if text is None:
                return
            found.append(text)
        label = None if columns.label is None else record.get(columns.label)
        if columns.label is not None and (label is None or str(label).strip() in NO_LABEL):
            self.reading.refuse("no_label", number, f"field {columns.label!r} is {label!r}: no label")
            return
        if columns.label is None and found[0] == found[1]:
            self.reading.refuse("malformed_record", number, "the query is its own relevant text")
            return
        first, second, *others = (self.texts.setdefault(text, len(self.texts)) for text in found)
        self.pairs.append((first, second))
        self.labels.append(label)
        self.negatives += [(first, other) for other in others]

    def _text(self, record: Mapping[str, object], name: str, number: int) -> str | None:
        value = record.get(name)
        if name not in record:
            self.reading.refuse_missing(name, number)
            return None
        if not isinstance(value, str):
            self.reading.refuse_no_string(name, value, number)
            return None
        encoded = self.reading.encoded(value, number)
        if encoded is None:
            return None
        if not encoded[0].strip():
            self.reading.drop_empty()
            return None
        return encoded[0]


def _numbers(
    labels: list[object], columns: PairColumns, kind: str | None, name: str
) -> tuple[str | None, tuple[float, ...]]:
    """What is positive, in words, and 1 or 0 for each label; None and the scores where labels are graded."""
    words = {str(label).strip().lower() for label in labels}
    what = f"pairs: {name} has in the column {columns.label!r} the labels {listed(sorted(words)[:8])}"
    if len(words) < 2:
        raise CorpusError(f"{what}; there must be two that differ")
    if kind != "spearman":
        if words <= set(ENTAILMENT):
            return "entailment", tuple(float(str(label).strip().lower() == "entailment") for label in labels)
        if words <= set(TRUTH):
            return "true", tuple(float(TRUTH[str(label).strip().lower()]) for label in labels)
    try:
        values = tuple(float(label) if isinstance(label, (int, float)) else float(str(label)) for label in labels)
    except ValueError:
        raise CorpusError(
            f"{what}; they must be numbers, or {listed(ENTAILMENT)}, or {listed(TRUTH)}: write them so"
        ) from None
    if not all(map(math.isfinite, values)):
        raise CorpusError(f"{what}; numbers must be finite")
    kinds = sorted(set(values))
    if kind == "spearman" or (kind is None and len(kinds) > 2 and not columns.of_entailment):
        return None, values
    if len(kinds) == 2:
        return f"{kinds[1]:g}", tuple(float(value == kinds[1]) for value in values)
    if columns.of_entailment and kind is None:
        raise CorpusError(
            f"{what}, beside {columns.first!r} and {columns.second!r}; if they stand for kinds, write them as "
            f"{listed(ENTAILMENT[:3])}; if they are graded scores, say measure='spearman' (--measure spearman)"
        )
    raise CorpusError(
        f"{what}, {len(kinds)} numbers; for measure 'auc' they must be two, and for graded scores say 'spearman'"
    )


def _sha256(source: Source) -> str:
    digest = hashlib.sha256()
    with opened(source) as (stream, _):
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
