"""Every format and compression gives the same sentences, counts and fingerprint; what is damaged is named."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.corpora import Corpus, CorpusError
from cone_kernels.corpora import lines as readers

SENTENCES = ["b", "a, b", "b", ' "quoted" ', "   ", "", "é\u2028x", "a"]
DISTINCT = ["b", "a, b", ' "quoted" ', "é\u2028x", "a"]


def as_txt(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def as_jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"id": 3, "text": text}) + "\n" for text in texts).encode()


def as_csv(texts: Sequence[str]) -> bytes:
    written = io.StringIO()
    rows = csv.writer(written)
    rows.writerow(["id", "text"])
    rows.writerows([3, text] for text in texts)
    return written.getvalue().encode()


def as_tsv(texts: Sequence[str]) -> bytes:
    return b"id\ttext\n" + b"".join(f"3\t{text}\n".encode() for text in texts)


def table(texts: Sequence[str | None], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": [3] * len(texts), "text": pa.array(texts, pa.string()).cast(kind or pa.string())})


def rows_at_once(made: Sequence[Any] | pa.Table) -> int:
    """Of a row group or a batch: three of a few rows, and of many as many as make a hundred groups."""
    return max(3, len(made) // 100)


def as_parquet(texts: Sequence[str], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(texts), sink, **{"row_group_size": rows_at_once(texts), **options})
    return sink.getvalue()


def as_arrow(made: pa.Table, new: Callable[..., Any] = pa.ipc.new_file, rows: int | None = None) -> bytes:
    sink = io.BytesIO()
    with new(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=rows or rows_at_once(made))
    return sink.getvalue()


FORMATS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "txt": as_txt,
    "jsonl": as_jsonl,
    "csv": as_csv,
    "tsv": as_tsv,
    "parquet": as_parquet,
    "arrow": lambda texts: as_arrow(table(texts)),
    "stream.arrow": lambda texts: as_arrow(table(texts), pa.ipc.new_stream),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same(tmp_path: Path, form: str, compression: str) -> None:
    data = COMPRESSIONS[compression](FORMATS[form](SENTENCES))
    corpus = Corpus(write(tmp_path / f"a.{form}{compression}", data))
    expected = Corpus.from_sentences(SENTENCES)
    assert list(corpus) == list(expected) == DISTINCT
    found, wanted = corpus.summary.to_dict(), expected.summary.to_dict()
    assert found.pop("fields") == ([] if form == "txt" else ["text"])
    assert found.pop("name") == f"a.{form}{compression}"
    assert found == {name: value for name, value in wanted.items() if name not in ("fields", "name")}
    assert (corpus.summary.duplicates, corpus.summary.dropped["empty"]) == (1, 2)
    assert list(corpus) == DISTINCT


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_expected_sentences(tmp_path: Path, form: str, compression: str) -> None:
    texts = [f"sentence number {i:05}" for i in range(20_000)]
    corpus = Corpus(write(tmp_path / f"a.{form}{compression}", COMPRESSIONS[compression](FORMATS[form](texts))))
    reader = iter(corpus)
    for _ in range(15_000):
        next(reader)
    expected = corpus.expected_sentences()
    # An estimate: never below what was given out, and all in all right three quarters of the way. Files that are
    # unpacked first count as read.
    assert expected is not None
    assert 15_000 <= expected <= 30_000
    assert sum(1 for _ in reader) == 5_000
    assert corpus.expected_sentences() == 20_000


@pytest.mark.parametrize("form", ["csv", "parquet", "arrow", "stream.arrow"])
def test_fields_of_tables(tmp_path: Path, form: str) -> None:
    made = pa.table({"c": ["1", "2"], "premise": ["p1", "p2"], "hypothesis": ["h1", "h2"], "text": ["t", "t"]})
    parquet = io.BytesIO()
    pq.write_table(made, parquet)
    rows = [",".join(made.column_names), *(",".join(row.values()) for row in made.to_pylist())]
    data = {
        "csv": "\n".join(rows).encode(),
        "parquet": parquet.getvalue(),
        "arrow": as_arrow(made),
        "stream.arrow": as_arrow(made, pa.ipc.new_stream),
    }[form]
    path = write(tmp_path / f"a.{form}", data)
    assert list(Corpus(path)) == ["p1", "h1", "p2", "h2"]
    assert list(Corpus(path, fields=["text", "c"])) == ["t", "1", "2"]
    with pytest.raises(CorpusError, match=rf"a\.{form}.*'text'; the fields asked for are 'text', 'title'"):
        Corpus(path, fields=["text", "title"])


def test_csv_corner_cases(tmp_path: Path) -> None:
    data = (
        b'\xef\xbb\xbf"text",id\r\n'
        b'"two\nlines, and a ""quote""",1\r\n'
        b"\n"
        b"plain,2\r\n"
        b"too,many,cells\n"
        b"no id\n"
        b'"caf\xe9",3\n'
        b'"wrong" quote,4\n'
        b",5\n"
        b"last,6"
    )
    corpus = Corpus(write(tmp_path / "a.csv", data))
    assert list(corpus) == ['two\nlines, and a "quote"', "plain", "no id", "caf\ufffd", "last"]
    assert corpus.summary.dropped == {
        "empty": 2,
        "invalid_utf8": 0,
        "lone_surrogate": 0,
        "malformed_record": 2,
        "missing_field": 0,
    }
    assert corpus.summary.replaced["invalid_utf8"] == 1
    lines = [example.removeprefix(f"{tmp_path / 'a.csv'}:").split(":")[0] for example in corpus.summary.examples]
    assert lines == ["6", "8", "9"]
    assert "3 cells under a header of 2" in corpus.summary.examples[0]
    missing = Corpus(tmp_path / "a.csv", fields=["id"])
    assert list(missing) == ["1", "2", "3", "5", "6"]
    assert missing.summary.dropped["missing_field"] == 1
    with pytest.raises(CorpusError, match=r"a\.csv:6: 3 cells"):
        list(Corpus(tmp_path / "a.csv", malformed="raise"))


def test_csv_cells_may_be_long_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    long = "word " * 100_000
    before = csv.field_size_limit()
    assert list(Corpus(write(tmp_path / "a.csv", as_csv([long, "short"])))) == [long, "short"]
    assert csv.field_size_limit() == before


def test_csv_cells_without_an_end_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", b'text\nfine\n"open\nand on\n')
    reader = iter(Corpus(path))
    assert next(reader) == "fine"
    with pytest.raises(CorpusError, match=r"a\.csv:3: a quote is opened and never closed"):
        next(reader)
    monkeypatch.setattr("cone_kernels.corpora.lines.MAX_CELL", 10)
    path = write(tmp_path / "b.csv", b'text\nfine\n"much too long to be a cell"\n')
    with pytest.raises(CorpusError, match=r"b\.csv:3: a cell of over 10 characters"):
        list(Corpus(path))


def test_quotes_of_a_tab_separated_file_are_text_and_cells_of_it_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b'id\ttext\n1\t"Never closed, he said\n2\ta\tb\n3\n4\t\xe9\n')
    corpus = Corpus(path)
    assert list(corpus) == ['"Never closed, he said', "\ufffd"]
    assert corpus.summary.examples == (
        f"{path}:3: dropped, 3 cells under a header of 2",
        f"{path}:4: dropped, field 'text' is missing",
        f"{path}:5: replaced by U+FFFD, byte 0xe9 at column 1 is not UTF-8",
    )
    with pytest.raises(CorpusError, match=r"a\.tsv:1: the columns are 'id', 'text'; the fields asked for are 'none'"):
        Corpus(path, fields=["none"])


def test_the_delimiter_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text;id\n"a; b";1\n"c ""d""";2\n')
    assert list(Corpus(path, delimiter=";")) == ["a; b", 'c "d"']
    with pytest.raises(CorpusError, match=r"a\.csv:1: the columns are 'text;id'"):
        Corpus(path)
    (tmp_path / "a.txt").write_bytes(b"a\n")
    with pytest.raises(CorpusError, match=r"delimiter: got ';'; it must be None, as .*a\.txt is no file of separated"):
        Corpus(tmp_path / "a.txt", delimiter=";")
    for wrong in ("", "ab", '"', "\n", "é"):
        with pytest.raises(ValueError, match=r"delimiter: got .*; it must be one character of ASCII"):
            Corpus(path, delimiter=wrong)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "koi8_r", "shift_jis"])
def test_the_encoding_can_be_given(tmp_path: Path, encoding: str) -> None:
    texts = {"koi8_r": ["кот", "два кота"], "shift_jis": ["猫ソ", "二匹の猫"]}.get(encoding, ["naïve", "café, à la"])
    for suffix, written in (("txt", as_txt), ("csv", as_csv), ("tsv", as_tsv)):
        path = write(tmp_path / f"a.{suffix}", written(texts).decode().encode(encoding))
        assert list(Corpus(path, encoding=encoding, errors="raise")) == texts
        assert list(Corpus(path)) != texts
    path = write(tmp_path / "b.csv", f"né,texte\n1,{texts[0]}\n".encode("cp1252", "replace"))
    assert len(list(Corpus(path, encoding="cp1252", fields=["né"]))) == 1


def test_encodings_that_are_none_or_cannot_be_cut_into_lines_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a\x81\n")
    with pytest.raises(ValueError, match="encoding: got 'latin-99'; it must be one that Python knows"):
        Corpus(path, encoding="latin-99")
    for wrong in ("utf-16", "cp037"):
        with pytest.raises(ValueError, match=f"encoding: got '{wrong}'; it must be one that has ASCII as it is"):
            Corpus(path, encoding=wrong)
    with pytest.raises(CorpusError, match=r"a\.txt:1: byte 0x81 at column 2 is not CP1252"):
        list(Corpus(path, encoding="cp1252", errors="raise"))
    with pytest.raises(CorpusError, match=r"encoding: got 'cp1252'; it must be utf-8, as .*a\.parquet says itself"):
        Corpus(write(tmp_path / "a.parquet", as_parquet(["a"])), encoding="cp1252")


def test_an_array_of_objects_is_as_many_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'[{"text": "a"}, 3, {"id": 1}, {"text": "b"}]\n{"text": "c"}\n[]\n[["d"]]\n')
    corpus = Corpus(path)
    assert list(corpus) == ["a", "b", "c"]
    assert corpus.summary.examples == (
        f"{path}:1: dropped, a JSON int; it must be an object",
        f"{path}:1: dropped, field 'text' is missing",
        f"{path}:4: dropped, a JSON list; it must be an object",
    )


def test_an_element_over_lines_is_no_longer_than_a_line_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 40)
    path = write(
        tmp_path / "a.jsonl", b'[{"text": "a"},\n{"text":\n"b",\n' + b'"other": 1,\n' * 9 + b'"id": 1},\n{"text": "c"}]'
    )
    corpus = Corpus(path)
    assert list(corpus) == ["a"]
    assert corpus.summary.examples == (f"{path}:2: dropped, not JSON, from here on: over 40 characters",)


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=8)


@given(TEXTS, st.sampled_from([None, 0, 1, "\t"]), st.booleans())
def test_an_array_over_lines_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], indent: int | str | None, nested: bool
) -> None:
    records = [{"id": [1, {"a": "]"}] if nested else 1, "text": text} for text in texts]
    path = tmp_path_factory.getbasetemp() / "given.jsonl"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(Corpus(path)) == [text for text in dict.fromkeys(texts) if text.strip()]


@pytest.mark.parametrize(
    ("text", "sentences", "examples"),
    [
        ('[\n{"text": "a"},\n3,\n{"text":\n"b"}\n]\n', ["a", "b"], ["3: dropped, a JSON int; it must be an object"]),
        ('[{"text":\n"a"}, {"id": 1}]', ["a"], ["2: dropped, field 'text' is missing"]),
        ('\n [{"text": "a"},\n', ["a"], ["2: dropped, not JSON, from here on: the array is not closed"]),
        (
            '[{"text": "a"},\n{"text": b},\n{"text": "c"}]',
            ["a"],
            ["2: dropped, not JSON, from here on: Expecting value: line 1 column 10 (char 9)"],
        ),
        (
            '[{"text": "a"}\n]\n\n{"text": "b"}',
            ["a"],
            ["4: dropped, not JSON: text behind the end of the array"],
        ),
        ('[{"text": a}]\n{"text": "b"}', ["b"], ["1: dropped, not JSON: Expecting value: line 1 column 11 (char 10)"]),
        ('{"text": "a"}\n[\n', ["a"], ["2: dropped, not JSON: Expecting value: line 1 column 2 (char 1)"]),
    ],
)
def test_an_array_over_lines(tmp_path: Path, text: str, sentences: list[str], examples: list[str]) -> None:
    corpus = Corpus(write(tmp_path / "a.jsonl", text.encode()))
    assert list(corpus) == sentences
    assert [example.rpartition("a.jsonl:")[2] for example in corpus.summary.examples] == examples


@given(TEXTS)
def test_csv_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "given.csv", as_csv(texts))
    assert list(Corpus(path)) == [text for text in dict.fromkeys(texts) if text.strip()]


KINDS = [
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_columns_of_strings_of_every_type(tmp_path: Path, kind: pa.DataType, new: Callable[..., Any]) -> None:
    made = table(["a", None, "b", "a", "é"], kind)
    # One dictionary for all batches: the file format allows no other.
    corpus = Corpus(write(tmp_path / "a.arrow", as_arrow(made.unify_dictionaries(), new, rows=2)))
    assert list(corpus) == ["a", "b", "é"]
    assert (corpus.summary.duplicates, corpus.summary.dropped["missing_field"]) == (1, 1)
    assert corpus.summary.examples == (f"{tmp_path / 'a.arrow'}:2: dropped, field 'text' is None, no string",)
    if not pa.types.is_binary_view(kind):
        pq.write_table(made, tmp_path / "a.parquet", row_group_size=2)
        assert list(Corpus(tmp_path / "a.parquet")) == ["a", "b", "é"]


def test_a_column_of_nulls_is_text_that_is_missing(tmp_path: Path) -> None:
    made = pa.table({"text": pa.nulls(3), "other": ["a", "b", "c"]})
    pq.write_table(made, tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", write(tmp_path / "a.arrow", as_arrow(made))):
        corpus = Corpus(path)
        assert list(corpus) == []
        assert corpus.summary.dropped["missing_field"] == 3
        with pytest.raises(CorpusError, match=rf"{path.name}:1: field 'text' is None"):
            list(Corpus(path, malformed="raise"))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([["a"]]), "list<"),
        (pa.array([{"text": "a"}]), "struct<"),
        (pa.array([1]), "int64"),
        (pa.array([{"a": 1}]).cast(pa.struct([("a", pa.int64())])), "struct<"),
        (pa.array([1, 1])[:1].dictionary_encode(), "dictionary<values=int64"),
    ],
)
def test_columns_that_are_no_strings_are_refused_at_once(tmp_path: Path, column: pa.Array, kind: str) -> None:
    made = pa.table({"text": column, "sentence_id": ["x"]})
    if not kind.startswith("dictionary"):
        pq.write_table(made, tmp_path / "a.parquet")
        with pytest.raises(CorpusError, match=rf"a\.parquet: column 'text' is of {kind}.*; it must be of strings"):
            Corpus(tmp_path / "a.parquet")
        assert list(Corpus(tmp_path / "a.parquet", fields=["sentence_id"])) == ["x"]
    for new in (pa.ipc.new_file, pa.ipc.new_stream):
        path = write(tmp_path / "a.arrow", as_arrow(made, new))
        with pytest.raises(CorpusError, match=rf"a\.arrow: column 'text' is of {kind}"):
            Corpus(path)
        assert list(Corpus(path, fields=["sentence_id"])) == ["x"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    made = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "one"])
    with pytest.raises(CorpusError, match="2 of them are called 'text'"):
        Corpus(write(tmp_path / "a.arrow", as_arrow(made)))
    with pytest.raises(CorpusError, match="2 of them are called 'text'"):
        Corpus(write(tmp_path / "a.csv", b"text,text,one\na,b,c\n"))
    assert list(Corpus(tmp_path / "a.arrow", fields=["one"])) == ["c"]
    assert list(Corpus(tmp_path / "a.csv", fields=["one"])) == ["c"]


def test_invalid_utf8_in_columns_by_policy(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffbc")])
    made = pa.table({"text": text})
    pq.write_table(made, tmp_path / "a.parquet")
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 1]), text)
    files = [
        tmp_path / "a.parquet",
        write(tmp_path / "a.arrow", as_arrow(made)),
        write(tmp_path / "b.arrow", as_arrow(pa.table({"text": encoded}))),
    ]
    for path in files:
        corpus = Corpus(path)
        assert list(corpus) == ["a", "\ufffdb", "c"]
        assert corpus.summary.replaced["invalid_utf8"] >= 1
        assert corpus.summary.examples[0].startswith(f"{path}:2: replaced by U+FFFD, byte 0xff at column 1")
        assert list(Corpus(path, errors="drop")) == ["a", "c"]
        with pytest.raises(CorpusError, match=rf"{path.name}:2: byte 0xff"):
            list(Corpus(path, errors="raise"))


def test_rows_are_counted_over_row_groups(tmp_path: Path) -> None:
    texts: list[str | None] = [f"s{i}" for i in range(9_999)]
    pq.write_table(table([*texts, None]), tmp_path / "a.parquet", row_group_size=3_000)
    corpus = Corpus(tmp_path / "a.parquet")
    assert list(corpus) == texts
    assert corpus.summary.examples[0].startswith(f"{tmp_path / 'a.parquet'}:10000: dropped")


def test_only_the_columns_that_are_read_are_touched(tmp_path: Path) -> None:
    noise = pa.array([bytes([i]) * 100_000 for i in range(50)])
    made = pa.table({"noise": noise, "text": [f"s{i}" for i in range(50)]})
    path = tmp_path / "a.parquet"
    pq.write_table(made, path, compression="none", use_dictionary=False, row_group_size=10)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    damaged = bytearray(path.read_bytes())
    damaged[4 : chunk.total_compressed_size] = bytes(chunk.total_compressed_size - 4)
    path.write_bytes(damaged)
    assert list(Corpus(path)) == made["text"].to_pylist()


def test_the_wrong_compression_is_found_at_once(tmp_path: Path) -> None:
    plain, packed = as_txt(SENTENCES), gzip.compress(as_txt(SENTENCES))
    with pytest.raises(CorpusError, match=r"a\.txt\.gz is not a gzip file"):
        Corpus(write(tmp_path / "a.txt.gz", plain))
    with pytest.raises(CorpusError, match=r"a\.txt\.zst is not a zstd file"):
        Corpus(write(tmp_path / "a.txt.zst", packed))
    with pytest.raises(CorpusError, match=r"b\.txt\.gz is empty"):
        Corpus(write(tmp_path / "b.txt.gz", b""))
    with pytest.raises(CorpusError, match=r"a\.txt is a gzip file; its name must end in \.gz"):
        Corpus(write(tmp_path / "a.txt", packed))
    with pytest.raises(CorpusError, match=r"a\.csv\.zst is UTF-16"):
        Corpus(write(tmp_path / "a.csv.zst", zstandard.compress("text\na".encode("utf-16"))))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_frames_of_a_compressed_file_are_all_read(tmp_path: Path, compression: str) -> None:
    compress = COMPRESSIONS[compression]
    path = write(tmp_path / f"a.txt{compression}", compress(b"a\nb") + compress(b"c\nd\n"))
    assert list(Corpus(path)) == ["a", "bc", "d"]


def test_zstd_frames_to_be_skipped_may_come_first(tmp_path: Path) -> None:
    skipped = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"size"
    assert list(Corpus(write(tmp_path / "a.txt.zst", skipped + zstandard.compress(b"a\n")))) == ["a"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_truncated_compressed_files_are_named(tmp_path: Path, form: str, compression: str) -> None:
    texts = [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(10_000)]
    whole = COMPRESSIONS[compression](FORMATS[form](texts))
    path = write(tmp_path / f"a.{form}{compression}", whole[: len(whole) * 2 // 3])
    given_out: list[str] = []
    with pytest.raises(CorpusError, match=rf"a\.{form}{compression}.*(cannot be read|cannot be unpacked): .") as raised:
        given_out.extend(Corpus(path))
    assert given_out == texts[: len(given_out)]
    if form in ("txt", "jsonl", "csv"):
        line = int(str(raised.value).removeprefix(f"{path}:").split(":")[0])
        assert line == len(given_out) + (2 if form == "csv" else 1)
        assert len(given_out) > 1000


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("keep", [0, 3, 5, 200, -1, -40])
def test_truncated_tables_are_found_at_once(tmp_path: Path, form: str, keep: int) -> None:
    path = write(tmp_path / f"a.{form}", FORMATS[form](SENTENCES)[:keep])
    with pytest.raises(CorpusError, match=rf"a\.{form} is not an? (Parquet|Arrow) file"):
        Corpus(path)


def test_a_truncated_stream_is_named_with_its_row(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(1000)]
    whole = as_arrow(table(texts), pa.ipc.new_stream, rows=100)
    path = write(tmp_path / "a.arrow", whole[: len(whole) * 2 // 3])
    given_out: list[str] = []
    with pytest.raises(CorpusError) as raised:
        given_out.extend(Corpus(path))
    assert given_out == texts[: len(given_out)]
    assert len(given_out) >= 500
    assert str(raised.value).startswith(f"{path}:{len(given_out) + 1}: cannot be read: ")


def test_a_damaged_row_group_is_named_with_its_row(tmp_path: Path) -> None:
    texts = [f"sentence {i}" for i in range(1000)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        table(texts), path, row_group_size=100, compression="none", use_dictionary=False, write_page_checksum=True
    )
    chunk = pq.ParquetFile(path).metadata.row_group(6).column(1)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(damaged)
    given_out: list[str] = []
    with pytest.raises(CorpusError, match=r"a\.parquet:601: cannot be read: .*checksum"):
        given_out.extend(Corpus(path))
    assert given_out == texts[:600]


def test_offsets_that_point_outside_are_named(tmp_path: Path) -> None:
    made = pa.table({"text": ["aa", "bb", "cc"]})
    data = as_arrow(made)
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 2, 4, 6))
    assert data.count(offsets) == 1
    path = write(tmp_path / "a.arrow", data.replace(offsets, offsets[:4] + b"\xff\xff\xff\x7f" + offsets[8:]))
    with pytest.raises(CorpusError, match=r"a\.arrow:1: cannot be read: "):
        list(Corpus(path))


def test_records_before_the_first_that_has_the_field_are_dropped_as_later_ones(tmp_path: Path) -> None:
    lines = ['{"id": 1}', '{"text": "a cat"}', '{"id": 2}', '{"text": "a dog"}']
    corpus = Corpus(write(tmp_path / "a.jsonl", "\n".join(lines).encode()))
    assert list(corpus) == ["a cat", "a dog"]
    assert corpus.summary.dropped["missing_field"] == 2
    with pytest.raises(CorpusError, match=r"a.jsonl:1: it has none of the fields that are read"):
        list(Corpus(tmp_path / "a.jsonl", malformed="raise"))
    with pytest.raises(CorpusError, match=r"b.jsonl:1: the first record has 'id'"):
        list(Corpus(write(tmp_path / "b.jsonl", b'{"id": 1}\n' * 5000)))


def test_a_table_in_a_text_file_is_told(tmp_path: Path) -> None:
    rows = "gold_label\tsentence1\tsentence2\n" + "neutral\tA man.\tA cat.\n" * 9
    with pytest.raises(CorpusError, match=r"snli.txt is a table of 3 columns cut by tabs, and not a sentence a line"):
        Corpus(write(tmp_path / "snli.txt", rows.encode()))
    prose = "One\ttab.\nNo tab.\nA\tB\tC\n"
    assert len(list(Corpus(write(tmp_path / "prose.txt", prose.encode())))) == 3


def test_what_is_about_a_folder_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "README.txt", b"About this data set.\n")
    write(tmp_path / "a.txt", b"A cat.\n")
    assert list(Corpus(tmp_path)) == ["A cat."]
    assert caplog.messages == [
        f"corpus: {tmp_path / 'README.txt'} is left out, for it is about the folder; name it to read it"
    ]
    assert list(Corpus(tmp_path / "README.txt")) == ["About this data set."]
