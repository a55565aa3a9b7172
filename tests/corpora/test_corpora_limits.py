"""Lines and sentences too long to be held in memory are counted and named, however small the file is."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cone_kernels.corpora import Corpus, CorpusError, lines, reading


def test_a_small_file_that_holds_one_vast_line(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(b"first\n" + b"a" * 20_000_000 + b"\nlast\n", 1))
    assert path.stat().st_size < 100_000
    corpus = Corpus(path)
    assert list(corpus) == ["first", "last"]
    assert corpus.summary.dropped["malformed_record"] == 1
    assert corpus.summary.examples == (
        f"{path}:2: dropped, a sentence of 20,000,000 characters; it must be of at most 8,388,608",
    )
    with pytest.raises(CorpusError, match=r"bomb\.txt\.gz:2: a sentence of 20,000,000 characters; it must"):
        list(Corpus(path, malformed="raise"))


@pytest.mark.parametrize("end", [b"\n", b""], ids=["ended", "at the end of the file"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_lines_beyond_the_limit_are_skipped_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, end: bytes
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 40)
    monkeypatch.setattr(lines, "_START", 7)

    def line(text: str) -> bytes:
        return (text if suffix == "txt" else json.dumps({"text": text})).encode()

    room = 40 - 1 - len(line(""))
    fits, long = "f" * room, "x" * (room + 1)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"\n".join([line("a"), line(long * 3), line(fits), line(long)]) + end)
    corpus = Corpus(path)
    # The last line has no line feed, which counts as a byte of the line.
    assert list(corpus) == ["a", fits, *([] if end else [long])]
    assert corpus.summary.dropped["malformed_record"] == (2 if end else 1)
    assert corpus.summary.examples[0] == f"{path}:2: dropped, a line of over 40 bytes"


def test_a_record_of_a_table_is_not_left_out_by_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 40)
    path = tmp_path / "a.csv"
    path.write_text('text\nfine\n"begun\n' + "x" * 60 + '\nended"\n')
    with pytest.raises(CorpusError, match=r"a\.csv:4: a line of over 40 bytes"):
        list(Corpus(path))


def test_long_sentences_of_every_format_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cone_kernels.corpora.corpus.MAX_SENTENCE", 5)
    table, records = pa.table({"text": ["short", "longer", "also"]}), io.StringIO()
    for text in table["text"].to_pylist():
        records.write(json.dumps({"text": text}) + "\n")
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(records.getvalue())
    for corpus in (
        Corpus(tmp_path / "a.parquet"),
        Corpus(tmp_path / "a.jsonl"),
        Corpus.from_sentences(["short", "longer", "also"]),
    ):
        assert list(corpus) == ["short", "also"]
        (example,) = corpus.summary.examples
        assert example.endswith("dropped, a sentence of 6 characters; it must be of at most 5")


def test_the_limits_leave_room_for_books() -> None:
    assert reading.MAX_SENTENCE >= 4 * 2**20  # characters, and a line in UTF-8 has up to four bytes for each
    assert reading.MAX_LINE >= 4 * reading.MAX_SENTENCE
