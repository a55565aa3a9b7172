"""Blocks of mapped files are views of the file, whoever writes into one; memory stays flat."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cone_kernels.vector_files import Vectors
from tests.support.vector_writers import WRITERS, numbers, two_sparse_gigabytes

FLAT = """
import resource, sys
from cone_kernels.vector_files import Vectors

vectors = Vectors(sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = 0
for _, block in vectors.blocks():
    assert not block[:, ::1024].any()
    read += block.nbytes
print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def maps_of(path: Path) -> int:
    """How many maps of a file this process has."""
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.parametrize("case", ["npy", "safetensors", "fvecs", "fbin", "u8bin"])
def test_a_block_is_a_map_of_the_file_while_it_lives(tmp_path: Path, case: str) -> None:
    name, kinds, write = WRITERS[case]
    kind = "float32" if "float32" in kinds else kinds[0]
    array = numbers(kind, 3000, 8)
    write(tmp_path / name, array)
    path = tmp_path / name
    before = path.read_bytes()
    vectors = Vectors(path, field="vector" if case == "safetensors" else None)
    blocks = vectors.blocks(rows=1000)
    _, block = next(blocks)
    # Bytes become floats, so of them no map is left.
    assert maps_of(path) == (kind == "float32")
    block.zero_()
    _, later = next(blocks)
    np.testing.assert_array_equal(later.numpy(), array[1000:2000])
    np.testing.assert_array_equal(vectors.read(0, 10).numpy(), array[:10])
    del block, later, blocks
    gc.collect()
    assert maps_of(path) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("cached", [True, False])
def test_a_disk_is_asked_ahead_for_what_is_not_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Of the block and of as much after it; every megabyte of both is looked for."""
    array, size = numbers("float32", 2000, 1024), 1000 * 4096
    np.save(tmp_path / "vectors.npy", array)
    looked: list[int] = []
    asked: list[tuple[int, int]] = []

    def look(file: int, buffers: list[bytearray], place: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        looked.append(place)
        if not cached and place in (128, 128 + size + 2 * 2**20):  # in the block, and in what follows it
            raise BlockingIOError
        return 1

    monkeypatch.setattr(os, "preadv", look)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, first, length, advice: asked.append((first, length)))
    rows = Vectors(tmp_path / "vectors.npy").read(0, 1000)
    np.testing.assert_array_equal(rows.numpy(), array[:1000])
    assert asked == ([] if cached else [(128, size), (128 + size, size)])
    if cached:
        assert looked == [128 + begin + step * 2**20 for begin in (0, size) for step in range(4)]


def test_memory_is_flat_over_two_gigabytes(tmp_path: Path) -> None:
    paths = map(str, two_sparse_gigabytes(tmp_path))
    result = subprocess.run([sys.executable, "-c", FLAT, *paths], capture_output=True, text=True, check=True)
    read, more_kilobytes = map(int, result.stdout.split())
    assert read == 2 << 30
    # Two blocks of 16 MiB, the old one and the new one, and what the interpreter takes.
    assert more_kilobytes < 64 << 10


def test_numbers_that_a_file_does_not_align_are_aligned_in_memory(tmp_path: Path) -> None:
    """Where a stored array begins in a zip file depends on its name; a kernel's loads need its numbers aligned."""
    array, places = numbers("float32", 7, 5), set()
    for name in ("v", "ve", "vec", "vect"):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{name: array})
        places.add(path.read_bytes().index(array.tobytes()) % 4)
        block = Vectors(path).read(0, 7)
        assert block.data_ptr() % 4 == 0
        np.testing.assert_array_equal(block.numpy(), array)
    assert places - {0}, "every array was aligned already"
