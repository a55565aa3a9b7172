"""Indexes of faiss: read where they give their vectors back, refused with the reason where they do not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cone_kernels.vector_files import VectorFileError, Vectors
from tests.support.vector_writers import numbers

FLOATS = numbers("float32", 3000, 16)


def test_without_faiss_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else found(name))
    (tmp_path / "v.faiss").write_bytes(b"IxF2")
    with pytest.raises(
        ModuleNotFoundError, match=r"faiss is not installed; .*v\.faiss needs it: pip install faiss-cpu"
    ):
        Vectors(tmp_path / "v.faiss")


def written(path: Path, kind: str, ids: Any = None) -> Path:
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(16, kind)
    index.train(FLOATS)
    if ids is None:
        index.add(FLOATS)
    else:
        index.add_with_ids(FLOATS, ids)
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "IVF8,Flat", "SQfp16", "IDMap,Flat", "IDMap2,Flat"])
def test_indexes_that_give_their_vectors_back(tmp_path: Path, kind: str) -> None:
    ids = np.arange(3000) * 3 + 5 if "IDMap" in kind else None
    vectors = Vectors(written(tmp_path / "v.faiss", kind, ids), ids=None if ids is None else "id")
    assert (vectors.rows, vectors.dim) == (3000, 16)
    blocks = [block.numpy() for _, block in vectors.blocks(100, 2900, 1500)]
    np.testing.assert_allclose(np.concatenate(blocks), FLOATS[100:2900], atol=2e-3 if kind == "SQfp16" else 0)
    if ids is not None:
        assert vectors.ids_of([2999, 0]) == ["9002", "5"]


@pytest.mark.parametrize(
    ("kind", "ids", "message"),
    [
        ("PCA8,IVF8,Flat", None, "an IndexPreTransform like this cannot give its vectors back: .*direct map"),
        ("IVF8,Flat", np.arange(3000) * 3, "an IndexIVFFlat like this cannot give its vectors back: "),
        ("PCA8,IDMap,Flat", np.arange(3000), "an IndexPreTransform like this cannot give .*: .*not implemented"),
    ],
)
def test_indexes_that_do_not(tmp_path: Path, kind: str, ids: Any, message: str) -> None:
    path = written(tmp_path / "v.index", kind, ids)
    with pytest.raises(VectorFileError, match=rf"v\.index: {message}"):
        Vectors(path)


def test_no_index(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    (tmp_path / "v.faiss").write_bytes(b"no index of faiss")
    with pytest.raises(VectorFileError, match=r"v\.faiss is not a faiss index of floats, or a damaged one"):
        Vectors(tmp_path / "v.faiss")
