"""What cannot be read is refused with the file, and the row or line where there is one."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file

from cone_kernels.vector_files import VectorFileError, Vectors
from tests.support.vector_writers import (
    Array,
    lists,
    numbers,
    table,
    write_bin,
    write_safetensors,
    write_vecs,
    write_word2vec,
)

FLOATS = numbers("float32", 9, 4)


def cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size - size)


def saved_cut(write: Callable[[Path, Array], Any], size: int) -> Callable[[Path], None]:
    """Writes nine rows of four floats and cuts so many bytes off."""

    def make(path: Path) -> None:
        write(path, FLOATS)
        cut(path, size)

    return make


def parquet(column: Any, *, name: str = "v") -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table({name: column}), path, row_group_size=2)


def array(values: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, values)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def damaged_parquet(path: Path) -> None:
    """The pages of the second row group are overwritten."""
    pq.write_table(
        table(numbers("float32", 4000, 8)), path, row_group_size=2000, compression="none", use_dictionary=False
    )
    about = pq.ParquetFile(path).metadata.row_group(1)
    place = next(about.column(at).data_page_offset for at in range(8) if "vector" in about.column(at).path_in_schema)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 300)


# (name, what writes it, what the message says after the file's name)
def altered_array(find: bytes, replacement: bytes, at: int = 0, *, compressed: bool = False) -> Callable[[Path], None]:
    """An array, or an archive with one, in which bytes at or after those found are others."""

    def write(path: Path) -> None:
        if path.suffix == ".npy":
            np.save(path, numbers("float32", 30, 8))
        else:
            (np.savez_compressed if compressed else np.savez)(path, v=numbers("float32", 30, 8))
        content = bytearray(path.read_bytes())
        place = content.index(find) + at
        content[place : place + len(replacement)] = replacement
        path.write_bytes(content)

    return write


AT_ONCE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no bytes": ("v.npy", lambda path: path.write_bytes(b""), "is empty; it must have a vector"),
    "no rows": ("v.npy", array(FLOATS[:0]), "is empty; it must have a vector"),
    "no lines": ("v.jsonl", text("\n \n"), "is empty; it must have a vector"),
    "unknown ending": ("v.txt", text("1 2"), r"ends in '\.txt'; it must end in \.npy, .* or name its format"),
    "objects": (
        "v.npy",
        array(np.array([[1, None]], dtype=object)),
        r"holds Python objects \(an object array, .*pickle",
    ),
    "a pickle": ("v.npy", lambda path: path.write_bytes(pickle.dumps(FLOATS)), "is not an .npy file, or a damaged one"),
    "npz whose member begins otherwise": (
        "v.npz",
        altered_array(b"PK\x03\x04", b"PKKK"),
        "array 'v' cannot be unpacked: Bad",
    ),
    "npz whose member has another name": (
        "v.npz",
        altered_array(b"v.npy", b"w"),
        "array 'v' cannot be unpacked: File name",
    ),
    "npz whose header is another": (
        "v.npz",
        altered_array(b"{'descr'", b"{(((((((("),
        "array 'v' cannot be unpacked: ",
    ),
    "npy whose header does not end": (
        "v.npy",
        altered_array(b"{'descr'", b"{(((((((("),
        "is not an .npy file, or a damaged",
    ),
    "npz that is no deflate stream": (
        "v.npz",
        altered_array(b"v.npy", b"\xff" * 30, 5, compressed=True),
        "array 'v' cannot be unpacked: ",
    ),
    "objects in npz": (
        "v.npz",
        lambda path: np.savez(path, v=np.array([[{}]], dtype=object)),
        r"none of the arrays can hold vectors: 'v' \(Python objects \(an object array",
    ),
    "integers": ("v.npy", array(np.ones((3, 2), np.int64)), "holds int64; it must hold float32, .*int8 or uint8"),
    "truths": ("v.npy", array(np.ones((3, 2), bool)), "holds bool; it must hold float32"),
    "complex": ("v.npy", array(np.ones((3, 2), np.complex64)), "holds complex64; it must hold float32"),
    "words": ("v.npy", array(np.array([["a"]])), "holds str32; it must hold float32"),
    "raw": ("v.npy", array(np.zeros((3, 2), "V2")), r"holds void16 \(NumPy has no bfloat16: save it as .safetensors\)"),
    "one dimension": ("v.npy", array(np.ones(3)), r"has shape \(3,\); it must be \(n, d\), one vector a row"),
    "three dimensions": ("v.npy", array(np.ones((3, 1, 2))), r"has shape \(3, 1, 2\); it must be \(n, d\)"),
    "no width": ("v.npy", array(np.ones((3, 0))), r"has shape \(3, 0\); it must be \(n, d\)"),
    "cut npy": ("v.npy", saved_cut(np.save, 20), r"is cut short in row 7: it has 252 bytes, and must have 272"),
    "long npy": (
        "v.npy",
        lambda path: path.write_bytes(b"".join((np.save(path, FLOATS), path.read_bytes(), b"more")[1:])),
        "has 4 bytes after its 9 rows; it must end there",
    ),
    "cut header": ("v.npy", saved_cut(np.save, 200), "is not an .npy file, or a damaged one"),
    "cut npz": (
        "v.npz",
        saved_cut(lambda path, rows: np.savez(path, v=rows), 20),
        "is not an .npz file, or one that is cut",
    ),
    "compressed Fortran": (
        "v.npz",
        lambda path: np.savez_compressed(path, v=np.asfortranarray(FLOATS)),
        "array 'v' is compressed and in Fortran order; it must be in C order",
    ),
    "several arrays": (
        "v.npz",
        lambda path: np.savez(path, a=FLOATS, b=FLOATS),
        r"2 of the arrays can hold vectors: 'a' \(float32 of shape \(9, 4\)\), 'b' .*; name one as the field",
    ),
    "cut safetensors": (
        "v.safetensors",
        saved_cut(write_safetensors, 20),
        "is not a .safetensors file, or one that is",
    ),
    "float8": (
        "v.safetensors",
        lambda path: save_file({"v": torch.ones(3, 2).to(torch.float8_e4m3fn)}, path),
        r"none of the tensors can hold vectors: 'v' \(F8_E4M3 of shape \(3, 2\)\)",
    ),
    "cut fvecs": (
        "v.fvecs",
        saved_cut(write_vecs, 7),
        r"is cut short in row 8, or a row before it is not as wide as row 0",
    ),
    "short fvecs": ("v.fvecs", lambda path: path.write_bytes(b"\1\0"), "has 2 bytes; it must begin with the width of"),
    "negative width": (
        "v.bvecs",
        lambda path: path.write_bytes(struct.pack("<i4x", -3)),
        "row 0 has width -3; it must be",
    ),
    "cut fbin": (
        "v.fbin",
        saved_cut(write_bin, 20),
        "is cut short in row 7: it has 132 bytes, and 9 rows of 16 bytes end",
    ),
    "long fbin": (
        "v.fbin",
        lambda path: path.write_bytes(struct.pack("<II", 2, 3) + bytes(30)),
        r"has 38 bytes; its header says 2 rows of width 3: 32",
    ),
    "cut word2vec": ("v.bin", saved_cut(write_word2vec, 9), r"is cut short in word 8 of 9: it has 202 bytes"),
    "word2vec cut to less than its words take": (
        "v.bin",
        saved_cut(write_word2vec, 60),
        r"is cut short, or its first line is wrong: it has 151 bytes, which is too few for 9 words of 4 float32",
    ),
    "word2vec of more words than there can be": (
        "v.bin",
        lambda path: path.write_bytes(b"999999999999999999 300\nw " + bytes(1200)),
        r"too few for 999,999,999,999,999,999 words of 300 float32",
    ),
    "word2vec of no width": (
        "v.bin",
        lambda path: path.write_bytes(b"3 0\nw w w "),
        "its first line has 3 words of wi",
    ),
    "word2vec of no words": ("v.bin", lambda path: path.write_bytes(b"0 3\n"), "its first line has 0 words of width 3"),
    "word2vec of NaN words": (
        "v.bin",
        lambda path: path.write_bytes(b"nan 3\nw " + bytes(12)),
        r"begins with b'nan 3'; a binary file of word2vec begins with a line of two whole .*; name the format where it",
    ),
    "word2vec of a negative width": (
        "v.bin",
        lambda path: path.write_bytes(b"3 -3\nw "),
        "begins with b'3 -3'; a binary",
    ),
    "word2vec without a line": ("v.bin", lambda path: path.write_bytes(b"3 4"), "begins with b'3 4'; a binary file of"),
    "word2vec with an empty word": (
        "v.bin",
        lambda path: path.write_bytes(b"2 1\nw 1234\n  123456"),
        "word 1 is empty; it must have a letter",
    ),
    "word2vec with a word that does not end": (
        "v.bin",
        lambda path: path.write_bytes(b"1 1\n" + b"w" * 5000),
        "no space follows word 0 within 4,096 bytes",
    ),
    "word2vec with more after it": (
        "v.bin",
        lambda path: path.write_bytes(b"1 1\nw 1234\nw 1234"),
        "has 7 bytes after the last of its 1 words",
    ),
    "weights of torch": (
        "v.bin",
        lambda path: torch.save({"w": torch.ones(2, 2)}, path),
        r"begins with b'PK.*; a binary file of word2vec begins with a line of two whole numbers",
    ),
    "fastText": (
        "v.bin",
        lambda path: path.write_bytes(struct.pack("<ii", 793712314, 12) + bytes(99)),
        r"is a model of fastText, not a file of vectors; save these as text, in a \.vec file",
    ),
    "no column": ("v.parquet", parquet(["a"]), r"none of the columns can hold vectors: 'v' \(string\); name one"),
    "tokens": ("v.parquet", parquet([[1, 2]]), r"none of the columns can hold vectors: 'v' \(list<.*int64>\)"),
    "nested": ("v.parquet", parquet([[[1.0]]]), "none of the columns can hold vectors"),
    "no parquet": ("v.parquet", text("PAR1 no"), "cannot be read, or is damaged: "),
    "cut arrow": ("v.arrow", text("ARROW1 no"), "cannot be read, or is damaged: "),
    "null first": (
        "v.parquet",
        parquet(pa.array([None, [1.0]])),
        "column 'v': row 0 is None; it must be a list of numbers",
    ),
    "two columns": (
        "v.parquet",
        lambda path: pq.write_table(pa.table({"a": lists(FLOATS), "b": lists(FLOATS)}), path),
        "2 of the columns can hold vectors: 'a' .*, 'b' .*; name one as the field",
    ),
    "no JSON": ("v.jsonl", text("\n{oops\n"), "line 2 is not JSON: "),
    "a number": ("v.jsonl", text("3\n"), "line 1 is 3; it must be an array or an object"),
    "no array": (
        "v.jsonl",
        text('{"a": "b"}\n'),
        r"line 1: none of the fields can hold vectors: 'a' \(str\); name one",
    ),
    "empty array": ("v.jsonl", text("[]\n"), "line 1 is an empty array; it must have a number"),
    "no data set": ("v", lambda path: path.mkdir(), "is a folder that datasets did not save; name the files in it"),
    "splits": (
        "v",
        lambda path: DatasetDict(train=Dataset(table(FLOATS)), test=Dataset(table(FLOATS))).save_to_disk(path),
        "holds several splits; name the folder of one of them: test, train",
    ),
}


def ragged_vecs(path: Path) -> None:
    """Row 5 says that it has another width."""
    write_vecs(path, FLOATS)
    content = bytearray(path.read_bytes())
    content[5 * 20 : 5 * 20 + 4] = struct.pack("<i", 3)
    path.write_bytes(content)


def damaged_npz(path: Path) -> None:
    np.savez_compressed(path, v=numbers("float32", 3000, 8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)


def line(value: Any) -> Callable[[Path], object]:
    """A file of jsonl whose fourth line, after an empty one, is this."""
    return text(f'{{"v": [1, 2]}}\n\n{{"v": [3, 4]}}\n{json.dumps(value)}\n')


ON_THE_WAY: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "ragged fvecs": ("v.fvecs", ragged_vecs, "row 5 has width 3; it must be 4, as row 0"),
    "damaged npz": ("v.npz", damaged_npz, "array 'v' cannot be unpacked after row 0: "),
    "ragged parquet": (
        "v.parquet",
        parquet([[1.0], [2.0], [3.0], [4.0, 5.0]]),
        "column 'v': row 3 has width 2; it must be 1",
    ),
    "null list": (
        "v.parquet",
        parquet([[1.0], [2.0], None]),
        "column 'v': row 2 is null; it must be a list of numbers",
    ),
    "null in fixed lists": (
        "v.parquet",
        parquet(pa.array([[1.0, 2], [3, 4], [5, 6], None], pa.list_(pa.float32(), 2))),
        # The lowest pyarrow does not read such a column at all, and says nothing of the row.
        "column 'v'(: row 3 is null| cannot be read at row 2: Expected all lists to be of size=2)",
    ),
    "null number": (
        "v.parquet",
        parquet([[1.0, 2.0], [2.0, None]]),
        "column 'v': row 1 has null at position 1; it must be a",
    ),
    "damaged parquet": ("v.parquet", damaged_parquet, "column 'vector' cannot be read at row 2000: "),
    "ragged lines": (
        "v.jsonl",
        line({"v": [1, 2, 3]}),
        "line 4: field 'v' has width 3; it must be 2, as the first row",
    ),
    "missing field": ("v.jsonl", line({"w": [1, 2]}), "line 4 has no field 'v'"),
    "null field": ("v.jsonl", line({"v": None}), "line 4: field 'v' is None; it must be an array of numbers"),
    "null in line": (
        "v.jsonl",
        line({"v": [1, None]}),
        "line 4: field 'v' has None at position 1; it must be a number",
    ),
    "string in line": (
        "v.jsonl",
        line({"v": ["1", 2]}),
        "line 4: field 'v' has '1' at position 0; it must be a number",
    ),
    "truth in line": (
        "v.jsonl",
        line({"v": [True, 2]}),
        "line 4: field 'v' has True at position 0; it must be a number",
    ),
    "list in line": (
        "v.jsonl",
        line({"v": [[1], [2]]}),
        r"line 4: field 'v' has \[1\] at position 0; it must be a number",
    ),
    "large integer": ("v.jsonl", line({"v": [1, 10**400]}), "line 4: field 'v' holds a number beyond float64"),
    "array in lines of objects": ("v.jsonl", line([1, 2]), "line 4 has no field 'v'"),
    "no UTF-8": ("v.jsonl", lambda path: path.write_bytes(b"[1, 2]\n[3, \xff]\n"), "line 2 is not JSON: "),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_found_when_a_file_is_opened(tmp_path: Path, case: str) -> None:
    name, write, message = AT_ONCE[case]
    write(tmp_path / name)
    with pytest.raises(
        (VectorFileError, IsADirectoryError), match=f"^{re.escape(str(tmp_path / name))}:? .*{message}"
    ) as found:
        Vectors(tmp_path / name)
    assert "\n" not in str(found.value)[:60]


@pytest.mark.parametrize("case", ON_THE_WAY)
def test_found_when_its_row_is_read(tmp_path: Path, case: str) -> None:
    name, write, message = ON_THE_WAY[case]
    write(tmp_path / name)
    vectors = Vectors(tmp_path / name)
    # Twice, for what has failed once must not look like the end of a file.
    for _ in range(2):
        with pytest.raises(VectorFileError, match=f"^{re.escape(str(tmp_path / name))}: {message}"):
            list(vectors.blocks())


def test_widths_and_dtypes_that_differ(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FLOATS)
    np.save(tmp_path / "b.npy", FLOATS[:, :3])
    np.save(tmp_path / "c.npy", FLOATS.astype(np.float16))
    with pytest.raises(VectorFileError, match=r"b\.npy has the width 3, and .*a\.npy 4; all must have the same"):
        Vectors([tmp_path / "a.npy", tmp_path / "b.npy"])
    with pytest.raises(VectorFileError, match=r"c\.npy has the dtype float16, and .*a\.npy float32; all must have"):
        Vectors([tmp_path / "a.npy", tmp_path / "c.npy"])


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FLOATS)
    vectors = Vectors(tmp_path / "a.npy")
    vectors.read(0, 4)
    cut(tmp_path / "a.npy", 40)
    with pytest.raises(VectorFileError, match=r"a\.npy has changed since it was opened"):
        vectors.read(4, 8)


def test_arguments(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, FLOATS)
    with pytest.raises(ValueError, match="got no file"):
        Vectors([])
    with pytest.raises(ValueError, match=r"a\.npy is named twice"):
        Vectors([path, str(path)])
    with pytest.raises(FileNotFoundError, match=r"there is no file .*b\.npy"):
        Vectors(tmp_path / "b.npy")
    with pytest.raises(ValueError, match="format: got 'csv'; it must be one of npy, npz"):
        Vectors(path, format="csv")  # type: ignore[arg-type]
    with pytest.raises(VectorFileError, match=r"a\.npy is a file; it must be a folder to be read as dataset"):
        Vectors(path, format="dataset")
    with pytest.raises(VectorFileError, match="is a folder; it must be a file to be read as npy"):
        Vectors(tmp_path, format="npy")
    with pytest.raises(ValueError, match=r"field: got 'x' for .* it must be None, as npy files hold one set"):
        Vectors(path, field="x")
    with pytest.raises(ValueError, match=r"scale: got 2\.0 for float32; it must be None"):
        Vectors(path, scale=2.0)
    np.save(path, FLOATS.astype(np.int8))
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"scale: got .*; it must be a positive number"):
            Vectors(path, scale=scale)
    vectors = Vectors(path)
    for start, stop in ((-1, 2), (5, 4), (0, 10), (10, None)):
        with pytest.raises(ValueError, match="of 9 rows; it must be a range of them"):
            list(vectors.blocks(start, stop))
    with pytest.raises(ValueError, match="rows: got 0; it must be at least 1"):
        list(vectors.blocks(rows=0))


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors", "v.parquet", "v.jsonl"])
def test_a_field_that_is_not_there(tmp_path: Path, name: str) -> None:
    if name == "v.npz":
        np.savez(tmp_path / name, v=FLOATS)
    elif name == "v.safetensors":
        save_file({"v": torch.from_numpy(FLOATS)}, tmp_path / name)
    elif name == "v.parquet":
        parquet(lists(FLOATS))(tmp_path / name)
    else:
        line({"v": [1, 2]})(tmp_path / name)
    with pytest.raises(VectorFileError, match=rf"{re.escape(name)}.*: there is no field 'x'; the \w+ are 'v' \("):
        Vectors(tmp_path / name, field="x")


@pytest.mark.parametrize("stop", [9, 20])
def test_more_rows_are_asked_for_than_a_file_of_lines_has(tmp_path: Path, stop: int) -> None:
    (tmp_path / "v.jsonl").write_text("[1, 2]\n" * 5)
    with pytest.raises(VectorFileError, match=rf"v\.jsonl ends before row 5; rows up to {stop} were asked for"):
        list(Vectors(tmp_path / "v.jsonl").blocks(2, stop, 3))
