"""Vectors are read in blocks that few tests fill: results are the same in blocks of 37 rows, some of them left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels.experiments.axis import axis
from cone_kernels.experiments.centering import center, center_of, level_after
from cone_kernels.experiments.rotation import rotation_of
from cone_kernels.experiments.vectors import vectors
from cone_kernels.runs.sentence_vectors import SentenceVectors
from cone_kernels.statistics import extremes
from tests.experiments.test_rotation import SENTENCES, of_rows
from tests.support.moment_cases import GROUP_OF, normal
from tests.support.recording_probe import plain_anisotropy
from tests.support.tiny_checkpoints import save_checkpoint

N, DIM = 300, 8
LEFT_OUT = [1, 40, 75, 111, 200, 201, 202]


def rows_of(seed: int) -> Tensor:
    rows = normal(N, DIM, dtype=torch.float64, seed=seed) * torch.linspace(2, 0.5, DIM, dtype=torch.float64)
    rows[LEFT_OUT] = 0
    return rows


CASES: dict[str, Callable[[], Any]] = {
    "center_of": lambda: center_of(of_rows(rows_of(0), "a"), method="whitening"),
    "center": lambda: center(vectors=rows_of(0), method="whitening"),
    "rotation_of": lambda: rotation_of([of_rows(rows_of(0), "a"), of_rows(rows_of(1) + 1, "b")], k=2),
    "over corpora": lambda: rotation_of(
        [of_rows(rows_of(seed), "m", str(seed)) for seed in (0, 1)], k=2, over_corpora=True
    ),
    "vectors": lambda: vectors(rows_of(0)),
}


def in_blocks(monkeypatch: pytest.MonkeyPatch, size: int, dim: int) -> None:
    whole = SentenceVectors.blocks
    monkeypatch.setattr(SentenceVectors, "blocks", lambda self, rows=size: whole(self, min(rows, size)))
    monkeypatch.setattr(extremes, "_BLOCK_NUMBERS", size * dim)


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    """Equal but for the last bits of numbers."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted.keys() - {"manifest"}:
            assert_same(found[name], wanted[name], f"{where}/{name}")
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for at, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{where}/{at}")
    else:
        assert found == (pytest.approx(wanted, rel=1e-7, abs=1e-12) if isinstance(wanted, float) else wanted), where


@pytest.mark.parametrize("name", CASES)
def test_a_result_is_that_of_one_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CASES[name]().to_dict()
    in_blocks(monkeypatch, 37, DIM)
    assert_same(CASES[name]().to_dict(), whole)


def test_the_axis_of_a_model_is_that_of_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path)
    whole = axis(tmp_path, SENTENCES, k=2, top=3).to_dict()
    in_blocks(monkeypatch, 7, 32)
    assert_same(axis(tmp_path, SENTENCES, k=2, top=3).to_dict(), whole)


def test_rows_that_are_left_out_leave_the_groups_of_the_others_as_they_are() -> None:
    rows = rows_of(0)
    used = torch.ones(N, dtype=torch.bool).index_fill(0, torch.tensor(LEFT_OUT), False)
    groups = torch.tensor(GROUP_OF[:N])[used]
    centred = rows[used] - rows[used].mean(0)
    for found, of in (
        (level_after(SentenceVectors.from_rows(rows)), rows[used]),
        (center_of(of_rows(rows, "a")).after, centred),
        (center(vectors=rows).after, centred),
    ):
        left = torch.tensor([plain_anisotropy(of[groups != one]) for one in groups.unique()], dtype=torch.float64)
        assert found is not None
        assert found.anisotropy == pytest.approx(plain_anisotropy(of), abs=1e-12)
        assert found.stderr == pytest.approx(math.sqrt((len(left) - 1) * float(left.var(unbiased=False))), rel=1e-9)
        assert found.count == N - len(LEFT_OUT)
