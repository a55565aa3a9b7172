"""A corpus gives each distinct sentence once, in order, and accounts for every line it does not give."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.corpora import Corpus, CorpusError
from cone_kernels.runs.options import open_corpus


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def jsonl(path: Path, *records: object) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def test_text_gives_distinct_sentences_in_order_of_first_appearance(tmp_path: Path) -> None:
    corpus = Corpus(write(tmp_path / "a.txt", "b\na\nb\n\n   \nc\na"))
    assert list(corpus) == ["b", "a", "c"]
    summary = corpus.summary
    assert (summary.sentences, summary.duplicates, summary.complete) == (3, 2, True)
    assert summary.dropped == {
        "empty": 2,
        "invalid_utf8": 0,
        "lone_surrogate": 0,
        "malformed_record": 0,
        "missing_field": 0,
    }


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028still one\r\ntwo\x0b\x0c\x85still two\rand on\nthree\r\n"
    corpus = Corpus(write(tmp_path / "a.txt", text))
    assert list(corpus) == ["one\u2028still one", "two\x0b\x0c\x85still two\rand on", "three"]


def test_surrounding_spaces_are_kept(tmp_path: Path) -> None:
    assert list(Corpus(write(tmp_path / "a.txt", " a\na \na\n"))) == [" a", "a ", "a"]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n")
    assert list(Corpus(path)) == ["a", "\ufeffb"]
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n')
    assert list(Corpus(path)) == ["a"]


def test_utf16_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.txt is UTF-16"):
        Corpus(write(tmp_path / "a.txt", "a\n".encode("utf-16")))


@pytest.mark.parametrize(
    ("record", "fields", "sentences"),
    [
        ({"hypothesis": "h", "premise": "p", "text": "t"}, ("premise", "hypothesis"), ["p", "h"]),
        ({"sentence2": "s2", "sentence1": "s1"}, ("sentence1", "sentence2"), ["s1", "s2"]),
        ({"text": "t", "sentence": "s"}, ("sentence",), ["s"]),
        ({"premise": "p", "text": "t"}, ("text",), ["t"]),
    ],
)
def test_fields_are_found_by_the_first_record(
    tmp_path: Path, record: dict[str, str], fields: tuple[str, ...], sentences: list[str]
) -> None:
    corpus = Corpus(jsonl(tmp_path / "a.jsonl", record))
    assert list(corpus) == sentences
    assert corpus.summary.fields == fields


def test_fields_can_be_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "t", "b": "1", "a": "2"}, {"a": "3", "b": "1"})
    assert list(Corpus(path, fields=["b", "a"])) == ["1", "2", "3"]


def test_unknown_fields_are_listed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"title": "t", "body": "b"})
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: the first record has 'title', 'body'; it must have"):
        list(Corpus(path))
    with pytest.raises(CorpusError, match="has 'title', 'body'; the fields asked for are 'headline'"):
        list(Corpus(path, fields=["headline"]))


def test_fields_of_a_text_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is a text file and has no fields"):
        Corpus(write(tmp_path / "a.txt", "a\n"), fields=["text"])


def test_one_string_is_no_list_of_fields(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="fields: got the string 'text'"):
        Corpus(jsonl(tmp_path / "a.jsonl", {"text": "t"}), fields="text")
    with pytest.raises(ValueError, match="each must be named once"):
        Corpus(jsonl(tmp_path / "a.jsonl", {"text": "t"}), fields=["text", "text"])


BAD_RECORDS = b'{"premise": "p1"\n[1]\n{"premise": "p", "hypothesis": null}\n{"hypothesis": "h"}\n\n{"premise": \n'


def test_malformed_records_are_dropped_and_located(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = b'{"premise": "p0", "hypothesis": "h0"}\n'
    path = write(tmp_path / "a.jsonl", first + BAD_RECORDS)
    corpus = Corpus(path)
    with caplog.at_level(logging.INFO, "cone_kernels.corpora"):
        assert list(corpus) == ["p0", "h0", "p", "h"]
    assert corpus.summary.dropped["malformed_record"] == 3
    assert corpus.summary.dropped["missing_field"] == 2
    assert corpus.summary.dropped["empty"] == 1
    lines = [int(example.removeprefix(f"{path}:").split(":")[0]) for example in corpus.summary.examples]
    assert lines == [2, 3, 4, 5, 7]
    assert "field 'hypothesis' is None, no string" in corpus.summary.examples[2]
    assert [record.message for record in caplog.records] == list(corpus.summary.examples)


def test_a_bad_first_line_leaves_the_choice_to_the_next_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'oops\n{"text": "a"}\n')
    assert list(Corpus(path)) == ["a"]


@pytest.mark.parametrize(("line", "what"), [(b"{\n", "not JSON"), (b"[[]]\n", "JSON list"), (b"{}\n", "is missing")])
def test_malformed_records_can_raise(tmp_path: Path, line: bytes, what: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line)
    with pytest.raises(CorpusError, match=rf"a\.jsonl:2: .*{what}"):
        list(Corpus(path, malformed="raise"))


def test_hostile_json_is_a_malformed_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000 + b'\n{"text": ' + b"9" * 5000 + b"}\n")
    corpus = Corpus(path)
    assert list(corpus) == ["a"]
    assert corpus.summary.dropped["malformed_record"] == 2


def test_invalid_utf8_by_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"fine\ncaf\xe9\n\xed\xa0\x80\n")
    corpus = Corpus(path)
    assert list(corpus) == ["fine", "caf\ufffd", "\ufffd\ufffd\ufffd"]
    assert corpus.summary.replaced == {"invalid_utf8": 2, "lone_surrogate": 0}
    assert sum(corpus.summary.dropped.values()) == 0
    corpus = Corpus(path, errors="drop")
    assert list(corpus) == ["fine"]
    assert corpus.summary.dropped["invalid_utf8"] == 2
    with pytest.raises(CorpusError, match=r"a\.txt:2: byte 0xe9 at column 4 is not UTF-8"):
        list(Corpus(path, errors="raise"))


def test_lone_surrogates_by_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rb'{"text": "a\ud83d\ude00"}' + b"\n" + rb'{"text": "b\ud83d"}' + b"\n")
    corpus = Corpus(path)
    assert list(corpus) == ["a\U0001f600", "b\ufffd"]
    assert corpus.summary.replaced["lone_surrogate"] == 1
    corpus = Corpus(path, errors="drop")
    assert list(corpus) == ["a\U0001f600"]
    assert corpus.summary.dropped["lone_surrogate"] == 1
    with pytest.raises(CorpusError, match=r"a\.jsonl:2: lone surrogate U\+D83D"):
        list(Corpus(path, errors="raise"))


def test_limit_is_the_first_distinct_sentences_and_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a\na\nb\nc\n\xff\n")
    corpus = Corpus(path, limit=2, errors="raise")
    assert list(corpus) == ["a", "b"]
    assert (corpus.summary.duplicates, corpus.summary.complete, corpus.summary.limit) == (1, True, 2)
    assert corpus.expected_sentences() == 2


def test_expected_sentences_is_judged_by_the_bytes_read(tmp_path: Path) -> None:
    corpus = Corpus(write(tmp_path / "a.txt", "".join(f"{i:04}\n" for i in range(1000))))
    assert corpus.expected_sentences() is None
    reader = iter(corpus)
    for _ in range(10):
        next(reader)
    assert corpus.expected_sentences() == 1000
    assert not corpus.summary.complete


def test_fingerprint_is_over_the_sentences_used(tmp_path: Path) -> None:
    expected = hashlib.sha256()
    for sentence in ("p", "hé"):
        expected.update(len(sentence.encode()).to_bytes(8, "little") + sentence.encode())
    records = jsonl(tmp_path / "a.jsonl", {"premise": "p", "hypothesis": "hé"}, {"premise": "x", "hypothesis": "p"})
    text = write(tmp_path / "a.txt", "p\np\n\nhé\n")
    for corpus in (Corpus(records, limit=2), Corpus(text), Corpus.from_sentences(["p", "hé"])):
        list(corpus)
        assert corpus.summary.fingerprint == expected.hexdigest()
    joined = Corpus.from_sentences(["ph", "é"])
    list(joined)
    assert joined.summary.fingerprint != expected.hexdigest()


def test_every_iteration_reads_anew(tmp_path: Path) -> None:
    corpus = Corpus(write(tmp_path / "a.txt", "a\nb\na\n"))
    assert list(corpus) == list(corpus)
    assert corpus.summary.duplicates == 1


@given(st.lists(st.text(max_size=3), max_size=12), st.integers(1, 10))
def test_sentences_in_python_follow_the_same_rules(sentences: list[str], limit: int) -> None:
    corpus = Corpus.from_sentences(sentences, limit=limit)
    kept = [s for s in dict.fromkeys(sentences) if s.strip()]
    assert list(corpus) == kept[:limit]
    if len(kept) < limit:
        summary = corpus.summary
        assert summary.sentences + summary.duplicates + summary.dropped["empty"] == len(sentences)


def test_sentences_in_python_are_checked() -> None:
    with pytest.raises(TypeError, match="must be an iterable of sentences"):
        Corpus.from_sentences("a sentence")
    with pytest.raises(TypeError, match=r"sentences\[1\]: got int"):
        list(Corpus.from_sentences(["a", 3]))


def test_unreadable_paths_are_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Corpus(tmp_path / "missing.txt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        Corpus(tmp_path)
    with pytest.raises(CorpusError, match=r"ends in '\.pdf'; it must end in \.txt, \.jsonl, "):
        Corpus(write(tmp_path / "a.pdf", "a"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limit": 0}, "limit: got 0"),
        ({"errors": "ignore"}, "errors: got 'ignore'; it must be replace, drop or raise"),
        ({"malformed": "replace"}, "malformed: got 'replace'; it must be drop or raise"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Corpus(write(tmp_path / "a.txt", "a"), **options)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("name", "text"), [("a.txt", "A man plays.\nTwo cats"), ("a.jsonl", '{"text": "a man"}\n')])
def test_utf_16_without_its_mark_is_told(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    with pytest.raises(CorpusError, match=f"{name} looks like UTF-16 without its mark; it must be UTF-8"):
        Corpus(write(tmp_path / name, text.encode(encoding)))
    assert list(Corpus(write(tmp_path / "nul.txt", b"a\0b\n\0\n"))) == ["a\0b", "\0"]


def test_names_of_files_are_no_sentences(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.txt", b"a cat\n") for name in "ab"]
    with pytest.raises(TypeError, match=r"corpus: got names of files in a list, such as '.*a.txt'; it must be"):
        open_corpus(files, {})
    with pytest.raises(ValueError, match=r"corpus: got names of files in a tuple, such as '.*a.txt'"):
        open_corpus(tuple(map(str, files)), {})
    assert list(open_corpus(["a.txt is a file", str(files[0])], {})) == ["a.txt is a file", str(files[0])]
