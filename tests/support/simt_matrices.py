"""backend="cuda" of the matrix ops on CPU tensors, with memory that starts as NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cone_kernels.kernels.cuda import matrices as cuda_matrices
from tests.support.simt_cuda import simt_cuda  # noqa: F401 - a fixture

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def simt_matrices(simt_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """For one test, second_moment and top_eigenvectors run in the shim."""
    cuda_matrices._start.cache_clear()
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        made = empty(*shape, **options)
        return made.fill_(torch.nan) if made.dtype.is_floating_point else made.fill_(1)

    monkeypatch.setattr(torch, "empty", poisoned)
