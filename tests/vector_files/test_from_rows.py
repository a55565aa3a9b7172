"""Vectors that are given in Python: arrays, tensors, iterables of batches and of rows."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cone_kernels.vector_files import VectorFileError, Vectors
from tests.support.vector_writers import numbers

FLOATS = numbers("float32", 9, 4)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8", "uint8", ">f4"])
def test_an_array(kind: str) -> None:
    array = FLOATS.astype(kind) if "f" in kind else numbers(kind, 9, 4)
    vectors = Vectors.from_rows(array)
    assert (vectors.rows, vectors.dim, vectors.in_files, vectors.read_once) == (9, 4, False, False)
    np.testing.assert_array_equal(vectors.read(2, 9).numpy(), array[2:])


def test_blocks_are_views_of_what_was_given() -> None:
    tensor = torch.randn(9, 4, dtype=torch.bfloat16, requires_grad=True)
    for given in (FLOATS, tensor):
        vectors = Vectors.from_rows(given)
        block = vectors.read(2, 9)
        start = given.ctypes.data if isinstance(given, np.ndarray) else given.data_ptr()
        assert block.data_ptr() == start + 2 * 4 * block.itemsize
        assert not block.requires_grad


def test_a_memory_map_is_copied_block_by_block(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", FLOATS)
    given = np.load(tmp_path / "v.npy", mmap_mode="r")
    np.testing.assert_array_equal(Vectors.from_rows(given).read(3, 7).numpy(), FLOATS[3:7])


@pytest.mark.parametrize(
    "given",
    [
        FLOATS.astype(np.float64).tolist(),
        [tuple(row) for row in FLOATS.astype(np.float64).tolist()],
        [FLOATS[:4], FLOATS[4:]],
        [torch.from_numpy(FLOATS[:1]), FLOATS[1], FLOATS[2:]],
        [[FLOATS[0], torch.from_numpy(FLOATS[1])], list(FLOATS[2:])],
        [FLOATS[:0], FLOATS],
    ],
    ids=["lists", "tuples", "batches", "mixed", "batches of rows", "an empty batch"],
)
def test_iterables(given: Any) -> None:
    again, once = Vectors.from_rows(given), Vectors.from_rows(iter(given))
    assert (again.rows, again.read_once, once.read_once, once.fingerprint) == (None, False, True, None)
    for vectors in (again, once):
        blocks = list(vectors.blocks(rows=4))
        assert [(first, len(block)) for first, block in blocks] == [(0, 4), (4, 4), (8, 1)]
        np.testing.assert_array_equal(torch.cat([block for _, block in blocks]).numpy(), FLOATS)
        assert vectors.rows == 9
    np.testing.assert_array_equal(again.read(1, 3).numpy(), FLOATS[1:3])
    with pytest.raises(
        VectorFileError, match="<vectors>: got an iterator that has been read; rows must be asked for in"
    ):
        once.read(1, 3)


def test_an_iterator_is_read_no_further_than_asked() -> None:
    taken = 0

    def rows() -> Any:
        nonlocal taken
        for row in FLOATS:
            taken += 1
            yield row

    vectors = Vectors.from_rows(rows())
    assert taken == 1
    blocks = vectors.blocks(rows=3)
    assert (len(next(blocks)[1]), taken) == (3, 3)
    assert (len(next(blocks)[1]), taken) == (3, 6)
    assert (len(vectors.read(7, 9)), taken) == (2, 9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "<vectors> is empty"),
        (np.ones((0, 3)), "<vectors> is empty"),
        (np.ones(3), r"<vectors> has shape \(3,\)"),
        (np.ones((3, 2), np.int64), "<vectors> holds int64"),
        (np.array([[None]]), "<vectors> holds Python objects"),
        (torch.ones(3, 2).bool(), "<vectors> holds bool"),
        (["[1, 2]"], r"<vectors>: row 0 is the string '\[1, 2\]'; it must be numbers \(with pgvector after"),
        ([[1, None]], "<vectors>: row 0 has None at position 1; it must be a number"),
        ([[]], "<vectors>: row 0 is an empty array"),
        ([3.0], r"<vectors>: row 0 has shape \(\)"),
    ],
)
def test_what_cannot_be_vectors(given: Any, message: str) -> None:
    with pytest.raises(VectorFileError, match=message):
        Vectors.from_rows(given)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.ones(3, np.float32), "row 9 has width 3; it must be 4, as row 0"),
        (np.ones(4), "row 9 holds float64; it must hold float32, as row 0"),
        ([1.0, 2.0, 3.0], "row 9 has width 3; it must be 4, as the first row"),
        (None, "row 9 holds Python objects"),
        ([FLOATS[0], FLOATS[0, :2]], "row 10 has width 2; it must be 4, as row 0"),
    ],
)
def test_a_row_that_is_not_like_the_first(row: Any, message: str) -> None:
    vectors = Vectors.from_rows([FLOATS, row], name="db")
    with pytest.raises(VectorFileError, match=f"db: {message}"):
        list(vectors.blocks())


@pytest.mark.parametrize("given", ["a.npy", b"ab", {"a": 1}, 3, None])
def test_what_is_no_iterable_of_rows(given: Any) -> None:
    with pytest.raises(TypeError, match=r"rows: got .*; it must be an array, a tensor or an iterable of them"):
        Vectors.from_rows(given)


def test_only_vectors_in_files_can_be_pickled(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", FLOATS.astype(np.int8))
    (tmp_path / "ids.txt").write_text("a\n" * 9)
    vectors = Vectors(tmp_path / "v.npy", scale=0.5, ids=tmp_path / "ids.txt")
    assert vectors.in_files
    again = pickle.loads(pickle.dumps(vectors))
    assert torch.equal(again.read(0, 9), vectors.read(0, 9))
    assert (again.fingerprint, again.ids_of([3])) == (vectors.fingerprint, ["a"])
    with pytest.raises(TypeError, match="got vectors that are not in files"):
        pickle.dumps(Vectors.from_rows(FLOATS))
