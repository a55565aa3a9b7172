"""A corpus: distinct sentences in order of first appearance, with everything left out counted."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from cone_kernels.corpora import columns, images, lines
from cone_kernels.corpora.arguments import (
    UTF_8,
    check_policies,
    checked_delimiter,
    checked_encoding,
    checked_fields,
    name_of,
)
from cone_kernels.corpora.reading import (
    MAX_SENTENCE,
    CorpusError,
    Encoding,
    Malformed,
    Reading,
    first_record_fields,
    record_texts,
)
from cone_kernels.corpora.sample import Sentence, draw, shuffled
from cone_kernels.corpora.seen import DEDUP_MEMORY, DIGEST_BYTES, SeenDigests
from cone_kernels.corpora.sources import IMAGE, Reader, Source, find_sources
from cone_kernels.corpora.summary import CorpusSummary
from cone_kernels.names import TEXT_FORMATS, TextFormat

_READERS: dict[str, Reader] = {**lines.READERS, **columns.READERS, **images.READERS}
_SEPARATED = ("csv", "tsv")


@dataclass
class _Tally:
    """The counts of the pass that is running."""

    reading: Reading = field(default_factory=Reading)
    sentences: int = 0
    duplicates: int = 0
    drawn_from: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    size_before: int = 0  # bytes of the files that are done
    complete: bool = False
    group: int = 0


class Corpus:
    """The distinct sentences of files, in order of first appearance; every iteration reads them anew.

    Formats, by suffix (`cone_kernels.names.FORMATS` lists them): `.txt` has one sentence a line; `.jsonl` one JSON
    object, or an array of them, a line, or one array over many lines; `.csv` records under a header, `.tsv` such with
    tabs and without quotes; `.parquet` and `.arrow` (an IPC file or stream) columns of strings; each also compressed,
    with `.gz` or `.zst` after it. Files are read as streams: a line, an element of an array, a row group or a record
    batch is in memory at a time (a compressed `.parquet` or `.arrow` is unpacked to a temporary file). A number in a
    message is a line of a text format (of a record its first one) or a row of a table, from 1. Files of images
    (`cone_kernels.names.IMAGE_SUFFIXES`), or a folder of such without any of the others, are a corpus for a model of
    images: a sentence is the path of one.

    Args:
        path: one of these, or a sequence of them: a file; a glob (`data/*.jsonl.gz`, `data/**/*.txt`); a folder, which
            stands for all files of these suffixes in it and below, without hidden ones; a URL that fsspec knows
            (`s3://`, `https://`, ...; a file, a glob or a folder); `datasets:NAME:SPLIT` or
            `datasets:NAME:CONFIG:SPLIT`, a data set of the Hugging Face hub, streamed; `-`, standard input. Globs and
            folders are read in the order of the paths. Text is UTF-8 (a byte order mark at a file's start is no text).
        format: of standard input, one of `cone_kernels.names.TEXT_FORMATS`; for other sources the suffix tells it.
        fields: the fields of a record, or columns of a table, to read, in this order; None finds them in each file by
            its first record or its columns: premise and hypothesis, sentence1 and sentence2, sentence, or text.
        limit: give out the first `limit` distinct sentences only.
        sample: give out this many of the distinct sentences, drawn uniformly without replacement, in the order of the
            corpus; all of them where there are fewer. The sample is in memory, and given out when the whole corpus
            has been read.
        shuffle: give out the sentences in an order drawn by chance, so that neighbours are no longer alike and standard
            errors are right; all of them (with `limit` the first ones, with `sample` those drawn) are in memory then.
        seed: of the sample and the order, default 0; one seed draws one sample, however the sentences are ordered and
            spread over files.
        group_by: a field of the records that says which sentences belong together, such as the id of a document: they
            share a jackknife group, so that standard errors are right though they are alike. A sentence that comes
            again belongs to the first of its records.
        dedup: leave out the sentences that came before. False gives out every one, for corpora known to be distinct.
        dedup_memory: bytes for the digests (16 bytes each) by which repeated sentences are found; where that is not
            enough they go to a temporary file.
        delimiter: what separates the cells of `.csv` and `.tsv` files; None for a comma, or a tab.
        encoding: of files of text, one that has ASCII as it is, such as "latin-1"; default "utf-8".
        errors: what becomes of bytes that are not of the encoding, and of lone surrogates from JSON escapes: "replace"
            by U+FFFD, "drop" the line or sentence, or "raise".
        malformed: what becomes of lines that are no JSON object or no record under the header, of records without
            one of the fields, of lines of over 64 MiB and of sentences of over 8,388,608 characters: "drop" or "raise".

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: `path` cannot be read; found at once.
        ModuleNotFoundError: pyarrow (`.parquet`, `.arrow`, `.zst`), fsspec or datasets is not installed.
        CorpusError: unknown suffix or encoding, fields that the first record does not have, columns that are no
            strings, a damaged or truncated file, or what a policy raises. At once where a file's first bytes, header,
            schema or footer show it, else with the line or row where reading comes upon it.
        ValueError: an argument is out of range, or does not go with another.

    Examples:
        >>> corpus = Corpus("snli_dev.jsonl", limit=300)
        >>> sentences = list(corpus)
        >>> corpus.summary.sentences
        300
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        format: TextFormat | None = None,  # noqa: A002
        fields: Sequence[str] | None = None,
        limit: int | None = None,
        sample: int | None = None,
        shuffle: bool = False,
        seed: int | None = None,
        group_by: str | None = None,
        dedup: bool = True,
        dedup_memory: int = DEDUP_MEMORY,
        delimiter: str | None = None,
        encoding: str = UTF_8,
        errors: Encoding = "replace",
        malformed: Malformed = "drop",
    ) -> None:
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        self._set_policies(limit, sample, shuffle, seed, dedup, dedup_memory, errors, malformed)
        self.delimiter, self.encoding = checked_delimiter(delimiter), checked_encoding(encoding)
        self.group_by = group_by
        self.fields = checked_fields(fields)
        self.name = name_of(paths)
        self._sentences: Iterable[str] | Iterable[Mapping[str, object]] | None = None
        self._sources = find_sources(paths, format)
        self._was_read = False
        for source in self._sources:
            self._check(source)
        kinds = {source.format == IMAGE for source in self._sources}
        if len(kinds) > 1:
            raise CorpusError(f"corpus: {self.name} has images and texts; it must be of one kind")

    @property
    def of_images(self) -> bool:
        """Whether its sentences are images: the paths of files, or names of images in memory."""
        return isinstance(self._sentences, images.ImageRows) or any(source.format == IMAGE for source in self._sources)

    @classmethod
    def from_sentences(
        cls,
        sentences: Iterable[str] | Iterable[Mapping[str, object]],
        *,
        fields: Sequence[str] | None = None,
        limit: int | None = None,
        sample: int | None = None,
        shuffle: bool = False,
        seed: int | None = None,
        group_by: str | None = None,
        dedup: bool = True,
        dedup_memory: int = DEDUP_MEMORY,
        errors: Encoding = "replace",
        malformed: Malformed = "drop",
        name: str = "<sentences>",
    ) -> Corpus:
        """A corpus of sentences given in Python, deduplicated and counted as those of a file are.

        Args:
            sentences: strings; or records that have them in fields, such as the rows of a data set of Hugging Face; or
                `images.ImageRows`.
            fields: the fields of records to read; None finds them by the first record, as in a file.
            limit, sample, shuffle, seed, group_by, dedup, dedup_memory, errors, malformed: as for files.
            name: what messages and results call it.

        Raises:
            TypeError: `sentences` is one string; while reading, an item that is neither a string nor a record.
            CorpusError: while reading, fields are asked of strings, or the first record has none of them.
            ValueError: an argument is out of range, or does not go with another.

        Examples:
            >>> Corpus.from_sentences(datasets.load_dataset("snli", split="validation"), fields=["premise"])
        """
        if isinstance(sentences, str):
            raise TypeError("sentences: got one string; it must be an iterable of sentences")
        corpus = cls.__new__(cls)
        corpus.name = name
        corpus.fields = checked_fields(fields)
        corpus.group_by = group_by
        corpus.delimiter, corpus.encoding = None, UTF_8
        corpus._sentences = sentences
        corpus._sources = ()
        corpus._was_read = False
        corpus._set_policies(limit, sample, shuffle, seed, dedup, dedup_memory, errors, malformed)
        return corpus

    def made_of(self, sentences: list[str]) -> Corpus:
        """A corpus of some of its sentences, as they are: of texts, of files of images, or of images in memory."""
        if self.of_images and self._sources:
            return Corpus(sentences, dedup=False)
        return Corpus.from_sentences(images.image_rows(sentences, None) or sentences, dedup=False)

    def _set_policies(
        self,
        limit: int | None,
        sample: int | None,
        shuffle: bool,
        seed: int | None,
        dedup: bool,
        dedup_memory: int,
        errors: Encoding,
        malformed: Malformed,
    ) -> None:
        check_policies(limit, sample, shuffle, seed, dedup, dedup_memory, errors, malformed)
        self.limit = limit
        self.sample = sample
        self.shuffle = shuffle
        self.seed = None if sample is None and not shuffle else seed or 0
        self.dedup = dedup
        self.dedup_memory = dedup_memory
        self.errors = errors
        self.malformed = malformed
        self._tally = _Tally()

    def _check(self, source: Source) -> None:
        reader = _READERS[source.format]
        if self.fields and not reader.has_fields:
            raise CorpusError(f"fields: got some; it must be None, as {source.name} is a text file and has no fields")
        if self.group_by is not None and not reader.has_fields:
            what = f"group_by: got {self.group_by!r}; it must be None"
            raise CorpusError(f"{what}, as {source.name} is a text file and has no fields")
        if self.delimiter is not None and source.format not in _SEPARATED:
            what = f"delimiter: got {self.delimiter!r}; it must be None"
            raise CorpusError(f"{what}, as {source.name} is no file of separated cells ({', '.join(_SEPARATED)})")
        if self.encoding != UTF_8 and source.format not in TEXT_FORMATS:
            what = f"encoding: got {self.encoding!r}; it must be {UTF_8}"
            raise CorpusError(f"{what}, as {source.name} says itself how its texts are encoded")
        if not source.once:
            reader.check(source, self._reading())

    def _reading(self) -> Reading:
        return Reading(
            self.fields,
            self.errors,
            self.malformed,
            group_by=self.group_by,
            delimiter=self.delimiter,
            encoding=self.encoding,
        )

    @property
    def read_once(self) -> bool:
        """Whether it can be read only once."""
        return self.read_once_because is not None

    @property
    def read_once_because(self) -> str | None:
        """What of it can be read only once, "standard input" or "an iterator"; None where nothing is so."""
        if isinstance(self._sentences, Iterator):
            return "an iterator"
        return "standard input" if any(source.once for source in self._sources) else None

    @property
    def in_files(self) -> bool:
        """Whether all of it is in files or data sets, which every process can open anew."""
        return bool(self._sources) and not self.read_once

    def __getstate__(self) -> dict[str, Any]:
        """Pickled, a corpus is as before its first pass: another process reads it anew."""
        return {**self.__dict__, "_tally": None, "_was_read": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _tally=_Tally())

    @property
    def group(self) -> int | None:
        """The jackknife group of the sentence that was given out last; None without `group_by`."""
        return None if self.group_by is None else self._tally.group

    @property
    def summary(self) -> CorpusSummary:
        """The counts of the latest pass so far; all zero before the first."""
        tally = self._tally
        sample = None
        if self.sample is not None and self.seed is not None:
            sample = {"size": self.sample, "seed": self.seed, "drawn_from": tally.drawn_from}
        return CorpusSummary(
            name=self.name,
            fields=tally.reading.fields,
            sentences=tally.sentences,
            duplicates=tally.duplicates,
            dropped=dict(tally.reading.dropped),
            replaced=dict(tally.reading.replaced),
            examples=tuple(tally.reading.examples),
            fingerprint=tally.sha256.hexdigest(),
            limit=self.limit,
            sample=sample,
            shuffle=self.seed if self.shuffle else None,
            group_by=self.group_by,
            complete=tally.complete,
        )

    def expected_sentences(self) -> int | None:
        """How many sentences this pass will give: exact once complete, before that judged by the bytes read."""
        tally = self._tally
        if tally.complete:
            return tally.sentences
        most = self.limit if self.sample is None else self.sample
        sizes = [source.size for source in self._sources]
        if not tally.sentences or self.sample is not None or not sizes or None in sizes:
            return most
        done = tally.size_before + tally.reading.position()
        if not done:
            return most
        estimate = round(tally.sentences * sum(size or 0 for size in sizes) / done)
        return estimate if most is None else min(most, estimate)

    def __iter__(self) -> Iterator[str]:
        if self.read_once and self._was_read:
            kept = "write it to a file" if self._sources else "make it a list"
            what = f"{self.read_once_because} has been read, which can be done once"
            raise CorpusError(f"corpus: {what}; {kept} to read it again")
        self._was_read = True
        self._tally = tally = _Tally(self._reading())
        sentences = self._distinct(tally) if self.dedup else self._candidates(tally)
        if self.sample is not None and self.seed is not None:
            drawn, tally.drawn_from = draw(sentences, self.sample, self.seed)
            sentences = iter(drawn)
        if self.shuffle and self.seed is not None:
            sentences = iter(shuffled(itertools.islice(sentences, self.limit), self.seed))
        for sentence, encoded, tally.group in sentences:
            tally.sentences += 1
            tally.sha256.update(len(encoded).to_bytes(8, "little") + encoded)
            # Set before the last sentence is given out: a reader with the same limit may stop there.
            tally.complete = tally.sentences == self.limit
            yield sentence
            if tally.complete:
                return
        tally.complete = True

    def drawn(self, size: int, *, among: int) -> list[tuple[str, int | None]]:
        """Some of its first sentences, drawn without replacement, in its order; `summary` stays that of the last pass.

        With `sample` or `shuffle` too they are the first in the files, so that no corpus is read to its end for them.

        Args:
            size: how many; all where there are fewer.
            among: from how many sentences they are drawn.

        Returns:
            The text of each, and its jackknife group, None without `group_by`.

        Examples:
            >>> Corpus("snli_dev.jsonl").drawn(2, among=1000)
            [('A woman is ...', None), ('Two men ...', None)]
        """
        tally = _Tally(self._reading())
        sentences = self._distinct(tally) if self.dedup else self._candidates(tally)
        found, _ = draw(itertools.islice(sentences, min(among, self.limit or among)), size, seed=0)
        return [(text, None if self.group_by is None else group) for text, _, group in found]

    def _distinct(self, tally: _Tally) -> Iterator[Sentence]:
        with closing(SeenDigests(self.dedup_memory)) as seen:
            for sentence in self._candidates(tally):
                if seen.add(hashlib.blake2b(sentence[1], digest_size=DIGEST_BYTES).digest()):
                    yield sentence
                else:
                    tally.duplicates += 1

    def _candidates(self, tally: _Tally) -> Iterator[Sentence]:
        """Every sentence that is not empty, duplicates among them."""
        for number, text in self._texts(tally):
            if len(text) > MAX_SENTENCE:
                what = f"a sentence of {len(text):,} characters; it must be of at most {MAX_SENTENCE:,}"
                tally.reading.refuse("malformed_record", number, what)
                continue
            found = tally.reading.encoded(text, number)
            if found is None:
                continue
            if text.strip():
                yield *found, tally.reading.group
            else:
                tally.reading.drop_empty()

    def _texts(self, tally: _Tally) -> Iterator[tuple[int, str]]:
        """(number, text) of every candidate sentence, empty ones among them."""
        reading = tally.reading
        if self._sentences is not None:
            reading.place = ("sentences[", "]")
            yield from self._given_texts(self._sentences, reading)
            return
        for source in self._sources:
            reading.place = (f"{source.name}:", "")
            yield from _READERS[source.format].records(source, reading)
            tally.size_before += source.size or 0
            reading.position = int

    @staticmethod
    def _given_texts(
        items: Iterable[str] | Iterable[Mapping[str, object]], reading: Reading
    ) -> Iterator[tuple[int, str]]:
        """(index, text) of sentences given in Python, or of the fields of records."""
        fields: tuple[str, ...] = ()
        for index, item in enumerate(items):
            if isinstance(item, Mapping):
                if not fields:
                    fields = reading.use(first_record_fields(reading.asked, item, reading.where(index)))
                yield from record_texts(item, fields, index, reading)
            elif not isinstance(item, str):
                raise TypeError(f"{reading.where(index)}: got {type(item).__name__}; it must be a string or a record")
            elif group_by := reading.group_by:
                what = f"group_by: got {group_by!r}; it must be None"
                raise CorpusError(f"{what}, as {reading.where(index)} is a string")
            elif reading.asked:
                raise CorpusError(f"fields: got some; it must be None, as {reading.where(index)} is a string")
            else:
                yield index, item
