"""Short names of models."""

from __future__ import annotations

import pytest

from cone_kernels.models.names import short_name


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("/home/a/bge/", "bge"),
        ("runs/7/checkpoint-500", "7/checkpoint-500"),
        (r"C:\models\bge\model", "bge/model"),
        ("model", "model"),
        ("/", "/"),
    ],
)
def test_short_name(name: str, short: str) -> None:
    assert short_name(name) == short
