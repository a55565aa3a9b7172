"""Triton's ops beyond what 32 bits and a grid's y and z hold, in Triton's interpreter, and on which GPU they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels import backends, masked_mean_pool, pool_moments, row_moments
from cone_kernels.ops.masked_mean_pool import pool_gradient
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient
from cone_kernels.sums import COSINE_FIELDS, TOKEN_FIELDS, zero_sums
from tests.ops.test_gradients import sums_of
from tests.ops.test_pool_moments import ragged_mask
from tests.support.moment_cases import assert_sums_close, normal
from tests.support.triton_interpreter import assert_launchable, faithful_interpreter

MANY = 70_000  # more than y and z of a grid hold


@pytest.fixture(autouse=True, scope="module")
def interpreter() -> Iterator[None]:
    with faithful_interpreter():
        yield


def far_columns(x: Tensor) -> Tensor:
    """The values of x (L, n, d), d = 2^k + 1, with the last column 2^31 elements after the first."""
    layers, n, d = x.shape
    # Nearly all of these 4 GiB are never touched, and take no memory.
    memory = torch.empty(2**31 + layers * n, dtype=torch.float16)
    return memory.as_strided(x.shape, (n, 1, 2**31 // (d - 1))).copy_(x)


@pytest.mark.parametrize("d", [3, 2049])  # in the registers, and wider
def test_columns_far_apart(d: int) -> None:
    x = normal(2, 5, d, dtype=torch.float16)
    far, mask = far_columns(x), ragged_mask(2, 5)
    assert_sums_close(row_moments(far, backend="triton"), row_moments(x, backend="triton"), 0.0)
    for got, wanted in zip(*(pool_moments(rows, mask, backend="triton") for rows in (far, x)), strict=True):
        if isinstance(got, Tensor):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    pooled = masked_mean_pool(far, mask, backend="triton")
    assert torch.equal(pooled, masked_mean_pool(x, mask, backend="triton"))
    sums = sums_of(x)
    gradient = cosine_gradient(far, *sums, torch.ones(2), "triton")
    assert torch.equal(gradient, cosine_gradient(x, *sums, torch.ones(2), "triton"))
    gradient = pool_gradient(far, torch.ones(5, 2).bool(), None, 2, torch.float32, "triton")
    assert torch.equal(gradient, pool_gradient(x, torch.ones(5, 2).bool(), None, 2, torch.float32, "triton"))


@contextmanager
def grids_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The grids of what is launched inside; nothing of it runs."""
    from triton.runtime import interpreter

    grids: list[tuple[int, ...]] = []

    def noted(self: Any, *args: object, **kwargs: object) -> None:
        assert_launchable(self.grid)
        grids.append(self.grid)

    with monkeypatch.context() as patched:
        patched.setattr(interpreter.GridExecutor, "__call__", noted)
        yield grids


def row_ops(layers: int, rows: int) -> dict[str, Callable[[], object]]:
    """Calls of the ops on rows, and on so many sentences, of one column, or of a width that is read twice."""
    x, wide = torch.zeros(layers, rows, 1), torch.zeros(1, 1, 4096).expand(layers, rows, 4096)
    hidden, mask, starts = [torch.zeros(rows, 1, 1)] * layers, torch.ones(rows, 1).bool(), torch.arange(rows + 1)
    sums, unit_sum, one = zero_sums(COSINE_FIELDS, layers, 1, groups=1), torch.zeros(layers, 1).double(), torch.ones(())
    wide_sums = {name: zero_sums((name,), 1, 4096, groups=1)[name].expand(layers, -1, -1) for name in ("unit_sum",)}
    token_sums, groups = zero_sums(TOKEN_FIELDS, layers, 1, groups=1), torch.zeros(rows, dtype=torch.int64)

    def kernel(op: str) -> Callable[..., Any]:
        return backends.kernel(op, "triton")

    return {
        "row_moments": lambda: kernel("row_moments")(x, None, sums),
        "row_moments, wide": lambda: kernel("row_moments")(wide, None, sums | wide_sums),
        "pool_moments": lambda: kernel("pool_moments")(hidden, mask, None, groups, token_sums),
        "masked_mean_pool": lambda: kernel("masked_mean_pool")(hidden, mask, None),
        "mean_pairwise_cosine_backward": lambda: kernel("mean_pairwise_cosine_backward")(
            x, unit_sum, one.double().expand(layers)
        ),
        "masked_mean_pool_backward": lambda: kernel("masked_mean_pool_backward")(x, mask, None, 1, torch.float32),
        "masked_mean_pool_backward, packed": lambda: kernel("masked_mean_pool_backward")(
            x, None, starts, rows, torch.float32
        ),
    }


@pytest.mark.parametrize(("layers", "rows"), [(MANY, 1), (1, MANY)])
def test_grids_of_many_layers_and_of_many_rows(layers: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for op, call in row_ops(layers, rows).items():
        with grids_alone(monkeypatch) as grids:
            call()
        assert grids, op


def test_grids_of_second_moments_of_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, pilot = torch.zeros(MANY, 1, 1).double(), torch.zeros(MANY, 1).double()
    for x, about in ((torch.zeros(MANY, 1, 1).bfloat16(), None), (torch.zeros(MANY, 1, 1), pilot)):
        with grids_alone(monkeypatch) as grids:
            backends.kernel("second_moment", "triton")(moment, x, None, None, about, False)
        assert sum(grid[2] for grid in grids) >= MANY


@pytest.mark.parametrize("covariance", [False, True])
def test_grids_of_top_eigenvectors_have_the_layers_in_x(covariance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory for 70,000 of them is too much for a test."""
    few, more = [], []
    for layers, found in ((1, few), (7, more)):
        with grids_alone(monkeypatch) as grids:
            x = torch.zeros(layers, 40, 40)
            backends.kernel("top_eigenvectors", "triton")(x, covariance, False, 2, 1e-6, 1)
        found += grids
    assert [(7 * x, *others) for x, *others in few] == more
