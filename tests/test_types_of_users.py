"""What a user's type checker sees: the package is found, nothing of its inside is reported, ops keep their types."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import numpy as np
import torch
from cone_kernels import Centering, ConeProbe, ConeState, experiments, isotropy_loss, masked_mean_pool, metrics
from cone_kernels import mean_pairwise_cosine, pool_moments, row_moments, second_moment, top_eigenvectors

x, a = torch.randn(10, 4), np.ones((3, 4))
reveal_type(mean_pairwise_cosine(x))  # Tensor
reveal_type(mean_pairwise_cosine(a))  # ndarray
reveal_type(second_moment(torch.nn.Parameter(x)))  # Tensor
reveal_type(masked_mean_pool(a[None]))  # ndarray
reveal_type(row_moments(x)["count"])  # Tensor
reveal_type(pool_moments(x[None]).pooled)  # Tensor
reveal_type(pool_moments([a, a]).sums["count"])  # ndarray
reveal_type(top_eigenvectors(covariance=a).vectors)  # ndarray
reveal_type(Centering.fit(a)(x))  # Tensor
reveal_type(Centering.fit(x).inverse(a))  # ndarray
reveal_type(metrics.anisotropy(ConeState.load("state").sentence))  # Tensor
reveal_type(isotropy_loss(x))  # Tensor
reveal_type(experiments.layers("model", "corpus"))  # LayersResult
reveal_type(ConeProbe(torch.nn.Linear(3, 3)).state)  # ConeState
"""


@pytest.mark.slow
def test_strict_type_checks_of_a_users_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "error" not in told, told
    wanted = re.findall(r"reveal_type\(.*\)  # (\w+)$", PROGRAM, flags=re.MULTILINE)
    found = re.findall(r'Revealed type is "(?:[\w.]+\.)?(\w+)(?:\[.*)?"', told)
    assert found == wanted, told
