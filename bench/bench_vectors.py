"""A pass over a file of vectors that the page cache holds, against the quickest way there is to read that file."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.timing import medians
from cone_kernels import ConeState, metrics
from cone_kernels.runs.options import RunOptions
from cone_kernels.runs.vectors_pass import pass_over
from cone_kernels.vector_files import Vectors

N, D = 200_000, 384
BUFFER_BYTES = 2**22  # stays in the second-level cache


def test_a_file_in_the_page_cache(benchmark: Any, report: Callable[..., None], tmp_path: Path) -> None:
    rows = torch.empty(N, D).normal_(0.3, 1, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "vectors.npy"
    np.save(file, rows.numpy())
    buffer = bytearray(BUFFER_BYTES)

    def read() -> None:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    def mapped_sum() -> torch.Tensor:
        with file.open("rb") as opened:
            memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(memory, dtype=torch.float32, offset=128).sum()

    def passed() -> ConeState:
        return pass_over(Vectors(file), None, RunOptions())[1]

    def in_memory() -> ConeState:
        state = ConeState.of_vectors(D)
        state.add_output(rows, torch.arange(N))
        return state

    wanted = ConeState.of_vectors(D, backend="reference")
    wanted.add_output(rows, torch.arange(N))
    assert metrics.anisotropy(passed().output).item() == pytest.approx(
        metrics.anisotropy(wanted.output).item(), rel=1e-6
    )
    seconds = medians({"read": read, "mapped sum": mapped_sum, "pass": passed, "in memory": in_memory}, rounds=15)
    benchmark.pedantic(passed, rounds=3)
    size = N * D * 4
    report(
        bytes=size,
        seconds=seconds["pass"],
        target_seconds=0.3,
        gigabytes_per_second=size / seconds["pass"] / 1e9,
        share_of_read=seconds["read"] / seconds["pass"],
        share_of_mapped_sum=seconds["mapped sum"] / seconds["pass"],
        target_share=0.8,
        share_of_rows_in_memory=seconds["in memory"] / seconds["pass"],
    )
