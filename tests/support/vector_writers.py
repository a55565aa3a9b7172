"""Writes vectors in every format that `cone_kernels.vector_files` reads."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from safetensors.torch import save_file

Array = np.ndarray[Any, Any]
# Rows of a row group or a record batch: no block of a test ends where they do.
PART = 7


def lists(array: Array, *, fixed: bool = True) -> pa.Array:
    """The rows as a column of lists."""
    values, (n, d) = pa.array(array.reshape(-1)), array.shape
    if fixed:
        return pa.FixedSizeListArray.from_arrays(values, d)
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * d), values)


def table(array: Array, *, fixed: bool = True) -> pa.Table:
    """Vectors beside ids, texts and lists of other integers."""
    n = len(array)
    return pa.table(
        {
            "id": pa.array(range(n), pa.int64()),
            "vector": lists(array, fixed=fixed),
            "text": [f"text {row}" for row in range(n)],
            "tokens": [[1, 2]] * n,
        }
    )


def write_stream(path: Path, array: Array) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table(array).schema) as stream:
        stream.write_table(table(array), max_chunksize=PART)


def write_jsonl(path: Path, array: Array) -> None:
    records = ({"id": row, "vector": values, "text": f"text {row}"} for row, values in enumerate(array.tolist()))
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_vecs(path: Path, array: Array) -> None:
    n, d = array.shape
    widths = np.full((n, 1), d, "<i4").view(np.uint8)
    path.write_bytes(np.hstack([widths, np.ascontiguousarray(array).view(np.uint8)]).tobytes())


def write_bin(path: Path, array: Array) -> None:
    path.write_bytes(struct.pack("<II", *array.shape) + array.tobytes())


def write_word2vec(path: Path, array: Array, *, words: Sequence[str] | None = None, ends: bytes = b"\n") -> None:
    """As the C tool of word2vec does; gensim writes no line feed after a vector."""
    words = [f"word{row}" for row in range(len(array))] if words is None else words
    rows = zip(words, array.astype("<f4"), strict=True)
    content = b"".join(word.encode() + b" " + row.tobytes() + ends for word, row in rows)
    path.write_bytes(b"%d %d\n" % array.shape + content)


def write_npy_version_2(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=(2, 0))


def write_safetensors(path: Path, array: Array) -> None:
    # Names are laid out in order, so the vectors begin where no float is aligned.
    save_file({"a": torch.ones(3, dtype=torch.uint8), "vector": torch.from_numpy(np.array(array, order="C"))}, path)


def write_safetensors_unaligned(path: Path, array: Array) -> None:
    kind = {"float32": "F32", "float64": "F64", "float16": "F16", "int8": "I8", "uint8": "U8"}[array.dtype.name]
    content = array.tobytes()
    header = json.dumps({"v": {"dtype": kind, "shape": array.shape, "data_offsets": [0, len(content)]}}).encode()
    header += b" " * (7 - len(header) % 8)  # 8 bytes of length and an odd number of the header
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


def write_npz(path: Path, array: Array, *, compressed: bool = False) -> None:
    (np.savez_compressed if compressed else np.savez)(path, other=np.ones(3), vector=array)


def write_dataset(path: Path, array: Array) -> None:
    Dataset(table(array)).save_to_disk(path)


FLOATS = ("float16", "float32", "float64")
BYTES = ("int8", "uint8")
# Name of a case -> (name of the file, dtypes, writer).
WRITERS: dict[str, tuple[str, tuple[str, ...], Callable[[Path, Array], None]]] = {
    "npy": ("v.npy", FLOATS + BYTES, np.save),
    "npy of version 2": ("v.npy", ("float32",), write_npy_version_2),
    "npy in Fortran order": ("v.npy", FLOATS + BYTES, lambda path, array: np.save(path, np.asfortranarray(array))),
    "npy of the other byte order": (
        "v.npy",
        ("float16", "float32"),
        lambda path, array: np.save(path, array.astype(array.dtype.newbyteorder(">"))),
    ),
    "npy in Fortran order of the other byte order": (
        "v.npy",
        ("float32",),
        lambda path, array: np.save(path, np.asfortranarray(array.astype(">f4"))),
    ),
    "npz": ("v.npz", FLOATS + BYTES, write_npz),
    "compressed npz": ("v.npz", FLOATS + BYTES, lambda path, array: write_npz(path, array, compressed=True)),
    "safetensors": ("v.safetensors", FLOATS + BYTES, write_safetensors),
    "safetensors that are not aligned": ("v.safetensors", FLOATS, write_safetensors_unaligned),
    "parquet": (
        "v.parquet",
        FLOATS + BYTES,
        lambda path, array: pq.write_table(table(array), path, row_group_size=PART),
    ),
    "parquet of lists": (
        "v.parquet",
        ("float32",),
        lambda path, array: pq.write_table(table(array, fixed=False), path, row_group_size=PART),
    ),
    "arrow": (
        "v.arrow",
        FLOATS + BYTES,
        lambda path, array: pyarrow.feather.write_feather(table(array), path, "uncompressed", chunksize=PART),
    ),
    "compressed feather": (
        "v.feather",
        ("float32",),
        lambda path, array: pyarrow.feather.write_feather(table(array, fixed=False), path, "lz4", chunksize=PART),
    ),
    "arrow stream": ("v.arrow", FLOATS, write_stream),
    "jsonl": ("v.jsonl", ("float64",), write_jsonl),
    "fvecs": ("v.fvecs", ("float32",), write_vecs),
    "bvecs": ("v.bvecs", ("uint8",), write_vecs),
    "fbin": ("v.fbin", ("float32",), write_bin),
    "u8bin": ("v.u8bin", ("uint8",), write_bin),
    "i8bin": ("v.i8bin", ("int8",), write_bin),
    "word2vec": ("v.bin", ("float32",), write_word2vec),
    "word2vec as gensim writes it": ("v.bin", ("float32",), lambda path, array: write_word2vec(path, array, ends=b"")),
    "dataset": ("v", ("float32", "float64"), write_dataset),
}


def two_sparse_gigabytes(folder: Path) -> list[Path]:
    """A sparse file of 256 MiB, (131072, 1024) float16, under eight names: each is mapped anew, and the page cache
    holds it once."""
    first, *others = (folder / f"{part}.npy" for part in range(8))
    np.lib.format.open_memmap(first, "w+", np.float16, (1 << 17, 1024)).flush()
    for other in others:
        other.hardlink_to(first)
    return [first, *others]


def numbers(kind: str, n: int, d: int, seed: int = 0) -> Array:
    """Numbers of a dtype, of both signs where it has them."""
    rng = np.random.default_rng(seed)
    if kind in BYTES:
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, (n, d), dtype=kind, endpoint=True)
    return rng.standard_normal((n, d)).astype(kind)
