"""Texts and ids of rows: lines of files, columns beside the vectors, and what is given in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cone_kernels.vector_files import VectorFileError, Vectors
from cone_kernels.vector_files.ids import IdLines
from tests.support.vector_writers import WRITERS, lists, numbers, write_jsonl, write_word2vec

TABLES = ("parquet", "arrow", "compressed feather", "arrow stream", "jsonl", "dataset")
ROWS = [22, 0, 7, 6, 7, 15]


@pytest.mark.parametrize("case", TABLES)
def test_a_column_beside_the_vectors(tmp_path: Path, case: str) -> None:
    name, kinds, write = WRITERS[case]
    write(tmp_path / name, numbers(kinds[-1], 23, 3))
    vectors = Vectors(tmp_path / name, ids="text")
    assert vectors.has_ids
    assert vectors.ids_of(ROWS) == [f"text {row}" for row in ROWS]
    assert Vectors(tmp_path / name, ids="id").ids_of(ROWS) == [str(row) for row in ROWS]


@pytest.mark.parametrize("ends", [b"\n", b""], ids=["C tool", "gensim"])
def test_the_words_of_word2vec(tmp_path: Path, ends: bytes) -> None:
    words = ["</s>", "in", "naïve", "日本", "in", "a_b", "\u2028"]
    # A line feed and a space are bytes of numbers too.
    array = np.frombuffer(b"\n \n " * 7 * 2, "<f4").reshape(7, 2)
    write_word2vec(tmp_path / "v.bin", array, words=words, ends=ends)
    vectors = Vectors(tmp_path / "v.bin", ids="word")
    assert vectors.ids_of([6, 0, 3, 2, 1, 4, 5]) == [words[row] for row in (6, 0, 3, 2, 1, 4, 5)]
    np.testing.assert_array_equal(vectors.read(2, 5).numpy(), array[2:5])
    content = (tmp_path / "v.bin").read_bytes().replace("naïve".encode(), b"na\xefve!")
    (tmp_path / "v.bin").write_bytes(content)
    with pytest.raises(VectorFileError, match=r"v\.bin has changed since it was opened; it must stay as it is"):
        vectors.read(0, 1)
    again = Vectors(tmp_path / "v.bin", ids="word")
    np.testing.assert_array_equal(again.read(0, 7).numpy(), array)
    with pytest.raises(VectorFileError, match=r"v\.bin: word 2 is not UTF-8"):
        again.ids_of([2])


def test_a_column_over_several_files(tmp_path: Path) -> None:
    array = numbers("float64", 23, 3)
    for part, (a, b) in enumerate([(0, 5), (5, 6), (6, 23)]):
        WRITERS["parquet"][2](tmp_path / f"{part}.parquet", array[a:b])
        write_jsonl(tmp_path / f"{part}.jsonl", array[a:b])
    wanted = ["text 16", "text 0", "text 1", "text 0", "text 1", "text 9"]
    assert Vectors(sorted(tmp_path.glob("*.parquet")), ids="text").ids_of(ROWS) == wanted
    in_lines = Vectors(sorted(tmp_path.glob("*.jsonl")), ids="text")
    with pytest.raises(
        ValueError, match=r"0\.jsonl and 2 more, not read yet; all must be read before ids are asked for"
    ):
        in_lines.ids_of(ROWS)
    assert len(list(in_lines.blocks())) == 1
    assert in_lines.ids_of(ROWS) == wanted


def test_null_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": lists(numbers("float32", 3, 2)), "t": ["a", None, ""]}), tmp_path / "v.parquet")
    assert Vectors(tmp_path / "v.parquet", ids="t").ids_of([2, 1, 0]) == ["", None, "a"]
    (tmp_path / "v.jsonl").write_text('{"v": [1], "t": null}\n{"v": [2]}\n')
    vectors = Vectors(tmp_path / "v.jsonl", ids="t")
    assert vectors.ids_of([0]) == [None]
    with pytest.raises(VectorFileError, match=r"v\.jsonl: line 2 has no field 't'"):
        vectors.ids_of([1])
    with pytest.raises(VectorFileError, match=r"v\.jsonl has 2 rows; there is no row 5"):
        vectors.ids_of([0, 5])


def test_lines_of_files(tmp_path: Path) -> None:
    lines = [f"line {row} \u2028 ü" for row in range(5000)]
    (tmp_path / "a.txt").write_text("\n".join(lines[:3000]) + "\n", encoding="utf-8")
    (tmp_path / "none.txt").touch()
    (tmp_path / "b.txt").write_bytes("\r\n".join(lines[3000:]).encode())
    np.save(tmp_path / "v.npy", numbers("float32", 5000, 2))
    vectors = Vectors(tmp_path / "v.npy", ids=[tmp_path / "a.txt", tmp_path / "none.txt", str(tmp_path / "b.txt")])
    rows = [4999, 0, 1023, 1024, 1025, 2999, 3000, 3001]
    assert vectors.ids_of(rows) == [lines[row] for row in rows]
    (tmp_path / "odd.txt").write_bytes(b"a\n\n\xff")
    odd = IdLines([tmp_path / "odd.txt"])
    assert (odd.rows, odd.ids([1])) == (3, [""])
    with pytest.raises(VectorFileError, match=r"odd\.txt: line 3 is not UTF-8"):
        odd.ids([2])


def test_another_number_of_ids_than_of_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", numbers("float32", 3, 2))
    (tmp_path / "ids.txt").write_text("a\nb\n")
    with pytest.raises(VectorFileError, match=r"ids\.txt has 2 lines for 3 vectors; it must have one for each"):
        Vectors(tmp_path / "v.npy", ids=tmp_path / "ids.txt")
    with pytest.raises(VectorFileError, match="ids has 2 lines for 3 vectors"):
        Vectors.from_rows(np.ones((3, 2)), ids=["a", "b"])
    # Of lines the number is known once they have been read.
    (tmp_path / "v.jsonl").write_text("[1]\n[2]\n[3]\n")
    vectors = Vectors(tmp_path / "v.jsonl", ids=str(tmp_path / "ids.txt"))
    with pytest.raises(VectorFileError, match=r"ids\.txt has 2 lines for 3 vectors"):
        list(vectors.blocks())


def test_ids_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS["parquet"][2](Path("v.parquet"), numbers("float32", 3, 2))
    with pytest.raises(
        FileNotFoundError, match="no file x, nor a field of this name; the fields are 'id', 'text', 'tokens'"
    ):
        Vectors("v.parquet", ids="x")
    with pytest.raises(ValueError, match="ids: got none for these vectors"):
        Vectors("v.parquet").ids_of([0])
    with pytest.raises(VectorFileError, match=r"column 'tokens' is of list<.*>; ids must be strings or integers"):
        Vectors("v.parquet", ids="tokens").ids_of([0])
    Path("text").write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match=r"got 'text', a field and a file; it must be \./text for the file"):
        Vectors("v.parquet", ids="text")
    assert Vectors("v.parquet", ids="./text").ids_of([2]) == ["c"]
    np.save("v.npy", numbers("float32", 3, 2))
    with pytest.raises(VectorFileError, match=r"v\.npy has no field 'text' for ids; v\.parquet has"):
        Vectors(["v.parquet", "v.npy"], ids="text")


def test_ids_that_are_given() -> None:
    vectors = Vectors.from_rows(np.ones((3, 2)), ids=["a", "b", "c"])
    assert vectors.ids_of([2, 0]) == ["c", "a"]
    for rows in ([0, 3], [-1]):
        with pytest.raises(ValueError, match=r"rows: got .*; each must be from 0 to one before 3"):
            vectors.ids_of(rows)
