"""How far Triton's row ops are from float64, op by dtype: `python -m tests.kernels.triton.test_triton_errors`."""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from torch import Tensor

from cone_kernels import masked_mean_pool, pool_moments, row_moments
from cone_kernels.ops.masked_mean_pool import pool_gradient
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient
from tests.ops.test_gradients import HALF_ULP, sums_of
from tests.ops.test_pool_moments import POOLED, ragged_mask
from tests.support.moment_cases import RELATIVE, normal
from tests.support.triton_interpreter import faithful_interpreter

OPS = [
    "row_moments",
    "pool_moments",
    "masked_mean_pool",
    "mean_pairwise_cosine_backward",
    "masked_mean_pool_backward",
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def largest_error(op: str, dtype: torch.dtype) -> float:
    """The largest error of an op's results, each relative to the largest entry of its float64 value."""
    results = {backend: results_of(op, dtype, backend) for backend in ("triton", "reference")}
    assert results["triton"].keys() == results["reference"].keys()
    errors = []
    for name, wanted in results["reference"].items():
        difference = (results["triton"][name].double() - wanted.double()).abs().max()
        # Counts that are all zero must be met exactly.
        errors.append(difference / wanted.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny))
    return float(torch.stack(errors).max())  # NaN if any is


def results_of(op: str, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """An op's results on rows of `dtype`; the reference's are of the same values in float64, and not rounded."""
    exact = backend == "reference"
    x, hidden = normal(40, 200, dtype=dtype), normal(2, 4, 12, 200, dtype=dtype)
    mask, grad = ragged_mask(4, 12), normal(2, 4, 200)
    sums = sums_of(torch.cat([x, normal(9, 200)]))
    if exact:
        x, hidden = x.double(), hidden.double()
    if op == "row_moments":
        return row_moments(x, backend=backend)
    if op == "pool_moments":
        pooled, moments, _ = pool_moments(hidden, mask, backend=backend)
        return moments | {"pooled": pooled}
    if op == "masked_mean_pool":
        return {"pooled": masked_mean_pool(hidden, mask, backend=backend)}
    if op == "mean_pairwise_cosine_backward":
        return {"gradient": cosine_gradient(x, *sums, torch.ones(()), backend)}
    return {"gradient": pool_gradient(grad, mask, None, 12, torch.float64 if exact else dtype, backend)}


def bound(op: str, dtype: torch.dtype) -> float:
    if op == "masked_mean_pool":
        return POOLED[dtype]
    return HALF_ULP[dtype] * (1 + 2**-12) if op.endswith("_backward") else RELATIVE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_error_against_float64(op: str, dtype: torch.dtype) -> None:
    with faithful_interpreter():
        assert largest_error(op, dtype) <= bound(op, dtype)


if __name__ == "__main__":
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    print("| op |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    with faithful_interpreter():
        for op in OPS:
            print(f"| {op} |", " | ".join(f"{largest_error(op, dtype):.1e}" for dtype in DTYPES), "|")
