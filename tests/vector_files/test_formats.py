"""Every format against the NumPy array that was written: dtypes, shapes, and blocks cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cone_kernels.names import VECTOR_FORMATS
from cone_kernels.vector_files import Vectors
from tests.support.vector_writers import FLOATS, WRITERS, Array, lists, numbers, write_jsonl

CASES = [(case, kind) for case, (_, kinds, _) in WRITERS.items() for kind in kinds]


def written(folder: Path, case: str, array: Array, name: str | None = None) -> Path:
    path = folder / (name or WRITERS[case][0])
    WRITERS[case][2](path, array)
    return path


def field_of(case: str) -> str | None:
    """The field to name where a file has two sets of numbers."""
    return "vector" if case == "safetensors" else None


def opened(folder: Path, case: str, array: Array) -> Vectors:
    return Vectors(written(folder, case, array), field=field_of(case))


def test_every_format_is_written_here_or_in_a_test_of_its_own() -> None:
    endings = {Path(name).suffix for name, _, _ in WRITERS.values()}
    for name, about in VECTOR_FORMATS.items():
        assert name in ("faiss", "dataset") or endings & set(about.endings)


@pytest.mark.parametrize(("case", "kind"), CASES)
def test_the_rows_are_those_that_were_written(tmp_path: Path, case: str, kind: str) -> None:
    array = numbers(kind, 23, 5)
    vectors = opened(tmp_path, case, array)
    wanted = torch.from_numpy(array if kind in FLOATS else array.astype(np.float32))
    assert (vectors.dim, vectors.kind, vectors.dtype) == (5, kind, wanted.dtype)
    assert vectors.rows == (None if case == "jsonl" else 23)
    assert [first for first, _ in vectors.blocks(rows=10)] == [0, 10, 20]
    torch.testing.assert_close(vectors.read(0, 23), wanted, rtol=0, atol=0)
    # Once more and backwards, where reading has passed the rows already.
    torch.testing.assert_close(vectors.read(11, 13), wanted[11:13], rtol=0, atol=0)
    torch.testing.assert_close(vectors.read(3, 4), wanted[3:4], rtol=0, atol=0)
    assert list(vectors.blocks()) is not None
    assert vectors.rows == 23


@pytest.mark.parametrize("case", WRITERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (15, 1), (9000, 3)])
def test_odd_shapes(tmp_path: Path, case: str, shape: tuple[int, int]) -> None:
    array = numbers(WRITERS[case][1][0], *shape)
    blocks = list(opened(tmp_path, case, array).blocks())
    assert [len(block) for _, block in blocks] == ([8192, 808] if shape[0] == 9000 else [shape[0]])
    found = torch.cat([block for _, block in blocks]).numpy()
    np.testing.assert_array_equal(found, array)


@pytest.fixture(scope="module")
def in_each_format(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vectors]:
    """The same 60 rows, in one file of each format, and cut over files of several formats."""
    array = numbers("float32", 60, 3)
    found = {}
    for case, (_, kinds, _) in WRITERS.items():
        if "float32" in kinds:
            found[case] = opened(tmp_path_factory.mktemp("one"), case, array)
    folder = tmp_path_factory.mktemp("several")
    cuts = {"a.npy": ("npy", 0, 13), "b.parquet": ("parquet", 13, 14), "c.fvecs": ("fvecs", 14, 41)}
    cuts |= {"d.npz": ("compressed npz", 41, 55), "e.arrow": ("arrow stream", 55, 60)}
    found["files"] = Vectors([written(folder, case, array[a:b], name) for name, (case, a, b) in cuts.items()])
    jsons = [folder / f"{part}.jsonl" for part in range(3)]
    for path, (a, b) in zip(jsons, [(0, 20), (20, 21), (21, 60)], strict=True):
        write_jsonl(path, array[a:b])
    found["jsonl files"] = Vectors(jsons)
    found["batches"] = Vectors.from_rows([array[:31], torch.from_numpy(array[31:32]), *array[32:]])
    found["array"] = Vectors.from_rows(array)
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_blocks_cut_anywhere_have_the_same_rows(in_each_format: dict[str, Vectors], data: st.DataObject) -> None:
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 60), st.integers(0, 60))))
    rows = data.draw(st.integers(1, 70))
    wanted = torch.from_numpy(numbers("float32", 60, 3))
    for case, vectors in in_each_format.items():
        at = start
        for first, block in vectors.blocks(start, stop, rows):
            assert (first, len(block)) == (at, min(rows, stop - at)), case
            assert torch.equal(block.to(torch.float32), wanted[first : first + len(block)]), case
            at += len(block)
        assert at == stop, case


def test_bfloat16_of_safetensors(tmp_path: Path) -> None:
    rows = torch.randn(11, 4).to(torch.bfloat16)
    save_file({"v": rows}, tmp_path / "v.safetensors")
    vectors = Vectors(tmp_path / "v.safetensors")
    assert (vectors.kind, vectors.dtype) == ("bfloat16", torch.bfloat16)
    assert torch.equal(vectors.read(2, 9), rows[2:9])


@pytest.mark.parametrize(
    ("case", "kind"), [("npy", "int8"), ("u8bin", "uint8"), ("bvecs", "uint8"), ("parquet", "int8")]
)
def test_bytes_are_multiplied_by_their_scale(tmp_path: Path, case: str, kind: str) -> None:
    array = numbers(kind, 9, 4)
    vectors = Vectors(written(tmp_path, case, array), scale=0.25)
    np.testing.assert_array_equal(vectors.read(0, 9).numpy(), array.astype(np.float32) * np.float32(0.25))


def test_rows_that_are_zero_or_not_finite_are_given_out(tmp_path: Path) -> None:
    array = np.array([[0, 0], [np.nan, 1], [np.inf, -np.inf], [1, 2]])
    for case in ("npy", "parquet", "jsonl"):
        np.testing.assert_array_equal(opened(tmp_path, case, array).read(0, 4).numpy(), array)


def test_the_format_can_be_named(tmp_path: Path) -> None:
    array = numbers("float32", 4, 3)
    path = written(tmp_path, "fbin", array, "vectors.dat")
    np.testing.assert_array_equal(Vectors(path, format="fbin").read(0, 4).numpy(), array)


def test_the_field_is_named_where_there_are_several(tmp_path: Path) -> None:
    one, other = numbers("float32", 4, 3), numbers("float32", 4, 2)
    np.savez(tmp_path / "v.npz", one=one, other=other)
    pq.write_table(pa.table({"one": lists(one), "other": lists(other)}), tmp_path / "v.parquet")
    (tmp_path / "v.jsonl").write_text('{"one": [1, 2, 3], "other": [4, 5]}\n')
    for name in ("v.npz", "v.parquet"):
        np.testing.assert_array_equal(Vectors(tmp_path / name, field="other").read(0, 4).numpy(), other)
    assert Vectors(tmp_path / "v.jsonl", field="other").read(0, 1).tolist() == [[4, 5]]


def test_tensors_of_fixed_shape(tmp_path: Path) -> None:
    array = numbers("float32", 6, 4)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    with (
        pa.OSFile(str(tmp_path / "v.arrow"), "wb") as file,
        pa.ipc.new_file(file, pa.schema([("v", column.type)])) as out,
    ):
        out.write_table(pa.table({"v": column}))
    np.testing.assert_array_equal(Vectors(tmp_path / "v.arrow").read(1, 5).numpy(), array[1:5])


def test_lines_may_be_bare_arrays_and_empty_ones_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text("\n[1, 2.5]\n\n[3, -4e2]\r\n \n")
    vectors = Vectors(tmp_path / "v.jsonl")
    assert vectors.read(0, 2).tolist() == [[1, 2.5], [3, -400]]
    assert [len(block) for _, block in vectors.blocks()] == [2]
    assert vectors.rows == 2


def test_files_without_rows_add_none(tmp_path: Path) -> None:
    array = numbers("float32", 3, 2)
    paths = [tmp_path / name for name in ("a.npy", "b.npy", "c.fbin", "d.parquet")]
    for path, rows in zip(paths, (array[:0], array, array[:0], array[:0]), strict=True):
        written(tmp_path, path.suffix[1:], rows, path.name)
    np.testing.assert_array_equal(Vectors(paths).read(0, 3).numpy(), array)
