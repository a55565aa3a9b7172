"""What is written block by block is read back as it was, and a file is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cone_kernels.vector_files import VectorFileError, Vectors
from cone_kernels.vector_files.writing import written

CASES = [("v.npy", "float16"), ("v.npy", "float32"), ("v.npy", "float64"), ("v.parquet", "float16")]
CASES += [("v.parquet", "float64"), ("v.safetensors", "float32"), ("v.safetensors", "bfloat16")]
CASES += [("v.safetensors", "float16"), ("v.fvecs", "float32"), ("v.fbin", "float32")]


@pytest.mark.parametrize("sizes", [[23], [8, 15], [0, 1, 22, 0]])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_rows_come_back_as_they_were(tmp_path: Path, name: str, kind: str, sizes: list[int]) -> None:
    rows = torch.randn(23, 5, generator=torch.Generator().manual_seed(0)).to(getattr(torch, kind))
    rows[3] = torch.nan
    with written(tmp_path / name, 23, 5, rows.dtype) as take:
        for block in rows.double().split(sizes):
            take(block)
    found = Vectors(tmp_path / name)
    assert (found.rows, found.dim, found.kind) == (23, 5, kind)
    torch.testing.assert_close(found.read(0, 23), rows, rtol=0, atol=0, equal_nan=True)
    assert os.listdir(tmp_path) == [name]


def test_a_field_names_the_tensor_or_the_column(tmp_path: Path) -> None:
    for name in ("v.safetensors", "v.parquet"):
        with written(tmp_path / name, 2, 3, torch.float32, "embedding") as take:
            take(torch.ones(2, 3))
        assert Vectors(tmp_path / name, field="embedding").rows == 2


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("v.jsonl", torch.float32, "files of the format jsonl are not written; it must be npy, safetensors, parquet"),
        ("v.txt", torch.float32, "ends in '.txt'; it must end in"),
        ("v.npy", torch.bfloat16, "a file of the format npy holds no bfloat16; name a .safetensors"),
        ("v.fbin", torch.float64, "a file of the format fbin holds no float64"),
        ("v.parquet", torch.bfloat16, "a file of the format parquet holds no bfloat16"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, dtype: torch.dtype, words: str) -> None:
    with pytest.raises(VectorFileError, match=words), written(tmp_path / name, 1, 1, dtype):
        pass
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, 2)))
    before = (tmp_path / "v.npy").read_bytes()

    def write(blocks: Iterator[torch.Tensor]) -> None:
        with written(tmp_path / "v.npy", 4, 2, torch.float32) as take:
            for block in blocks:
                take(block)

    def failing() -> Iterator[torch.Tensor]:
        yield torch.zeros(2, 2)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write(failing())
    with pytest.raises(VectorFileError, match="got 2 rows to write; it must be 4"):
        write(iter([torch.zeros(2, 2)]))
    assert os.listdir(tmp_path) == ["v.npy"]
    assert (tmp_path / "v.npy").read_bytes() == before
