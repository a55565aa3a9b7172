"""What the fingerprint of vectors tells apart, and what it does not."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.vector_files import Vectors, fingerprint_of
from cone_kernels.vector_files.fingerprint import BLOCK_BYTES, BLOCKS, sampled
from tests.support.vector_writers import WRITERS, numbers


@given(length=st.integers(0, 10**6), block=st.integers(1, 5000))
def test_samples_are_spread_from_the_first_to_the_last(length: int, block: int) -> None:
    spans = list(sampled(length, block))
    assert len(spans) <= BLOCKS
    assert all(0 <= start < stop <= min(start + block, length) for start, stop in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    if length:
        assert (spans[0][0], spans[-1][1]) == (0, length)
    if length <= BLOCKS * block:
        assert sum(stop - start for start, stop in spans) == length


@pytest.mark.parametrize("case", [case for case in WRITERS if "Fortran" not in case])
def test_names_play_no_part_and_numbers_do(tmp_path: Path, case: str) -> None:
    name, kinds, write = WRITERS[case]
    array = numbers(kinds[0], 23, 3)
    found = []
    for folder, change in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        array[11, 1] += change
        write(tmp_path / folder / name, array)
        found.append(Vectors(tmp_path / folder / name, field="vector" if case == "safetensors" else None).fingerprint)
    assert found[0] == found[1] != found[2]


def test_scale_field_order_and_size_play_a_part(tmp_path: Path) -> None:
    one, other = numbers("int8", 5, 2), numbers("int8", 6, 2)
    np.savez(tmp_path / "v.npz", one=one, other=other)
    np.save(tmp_path / "a.npy", one)
    np.save(tmp_path / "b.npy", other)
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    made = [
        Vectors(a),
        Vectors(a, scale=2.0),
        Vectors(a, scale=3.0),
        Vectors([a, b]),
        Vectors([b, a]),
        Vectors(tmp_path / "v.npz", field="one"),
        Vectors(tmp_path / "v.npz", field="other"),
        Vectors.from_rows(one),
        Vectors.from_rows(other),
    ]
    assert len({vectors.fingerprint for vectors in made}) == len(made)
    assert Vectors.from_rows(one).fingerprint == Vectors.from_rows(one.copy()).fingerprint


def test_of_a_large_file_both_ends_and_what_is_between(tmp_path: Path) -> None:
    path = tmp_path / "large"
    size = 3 * BLOCKS * BLOCK_BYTES
    with path.open("wb") as file:
        file.truncate(size)
    before = fingerprint_of([path])
    seen = set()
    for place in (0, size - 1, size // 2, BLOCK_BYTES + 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        after = fingerprint_of([path])
        seen.add((place, after != before))
        before = after
    # As the docstring says: what lies between the samples is not seen.
    assert seen == {(0, True), (size - 1, True), (size // 2, False), (BLOCK_BYTES + 1, False)}
