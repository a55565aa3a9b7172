"""The cosine of aligned rows: warps add up unit vectors, and a second launch makes the cosine of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cone_kernels.kernels.cuda import moments as cuda_moments
from cone_kernels.kernels.pointers import rows_of as rows_of_layers
from tests.support.simt_cuda import launches, most_shared_memory, order_of_threads, simt_cuda  # noqa: F401 - one is a fixture

pytestmark = pytest.mark.usefixtures("simt_cuda")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)

ERROR = 1e-7
"""Of A, absolute; and of Σ u, of its largest element. Tensor cores cut off what their squares have beyond 24 bits."""


def exact(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, rows left out, Σ u and n in float64, by the definition."""
    rows = x.double()
    norms = torch.linalg.vector_norm(rows, dim=-1)
    used = norms.isfinite() & (norms > 0)
    units = torch.where(used[..., None], rows / norms[..., None], 0)
    n, total = used.sum(-1), units.sum(-2)
    pairs = torch.where(n > 1, n * (n - 1.0), torch.nan)
    return (total.square().sum(-1) - units.square().sum((-1, -2))) / pairs, (~used).sum(-1), total, n


def taken_by_warps(x: Tensor) -> bool:
    flat = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    size: int = cuda_moments._cuda.mean_pairwise_cosine_workspace(**rows_of_layers(flat), device=0)
    return size > 0


def assert_right(x: Tensor) -> None:
    before = launches()
    made = cuda_moments.mean_pairwise_cosine(x, False)
    assert taken_by_warps(x)
    assert launches() - before == 2 * math.ceil(math.prod(x.shape[:-2]) / 128)  # of as many layers as go with one
    cosine, left_out, unit_sum, count = exact(x)
    torch.testing.assert_close(made[0], cosine, rtol=0, atol=ERROR, equal_nan=True)
    assert torch.equal(made[1], left_out)  # type: ignore[arg-type]
    torch.testing.assert_close(made[2], unit_sum, rtol=0, atol=ERROR * (1 + float(unit_sum.abs().max())))
    assert torch.equal(made[3], count)  # type: ignore[arg-type]


def rows_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3).to(dtype)


@DTYPES
@pytest.mark.parametrize(
    "shape",
    [
        (1, 8),
        (2, 16),
        (5, 24),
        (49, 264),
        (100, 384),
        (70, 1000),
        (1500, 1024),
        (0, 8),
        (3, 40, 24),
        (70, 300, 8),
        (130, 6, 8),
    ],
)
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_right(rows_of(*shape, dtype=dtype))


def test_sums_of_float32_do_not_grow_long() -> None:
    assert_right(rows_of(30_000, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_are_left_out_and_rows_whose_squares_do_not_fit_float32(dtype: torch.dtype) -> None:
    x = rows_of(200, 520, dtype=dtype)
    x[3] = 0
    x[17, 5], x[50, 519], x[199, 3] = torch.nan, torch.inf, -torch.inf
    x[90] *= 1e30
    x[91] *= 1e-30
    assert_right(x)
    assert cuda_moments.mean_pairwise_cosine(x, False)[1] == 4


def test_one_row_that_is_not_left_out_has_no_pair() -> None:
    x = torch.zeros(5, 8)
    assert_right(x)
    x[2] = 1
    assert_right(x)
    assert cuda_moments.mean_pairwise_cosine(x, False)[0].isnan()


def test_strides() -> None:
    assert_right(rows_of(40, 2048)[:, :512])
    assert_right(rows_of(1, 64).expand(100, 64))
    assert_right(rows_of(64, 48, 16)[::2].transpose(0, 1).contiguous())


@pytest.mark.parametrize("seed", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_order_of_blocks_and_threads_does_not_matter(dtype: torch.dtype, seed: int) -> None:
    x = rows_of(300, 264, dtype=dtype)
    in_order = cuda_moments.mean_pairwise_cosine(x, False)
    order_of_threads(seed)
    shuffled = cuda_moments.mean_pairwise_cosine(x, False)
    for one, other in zip(in_order, shuffled, strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("x", [rows_of(20, 1032), rows_of(20, 30), rows_of(20, 17)[:, 1:]])
def test_other_rows_go_another_way(x: Tensor) -> None:
    assert not taken_by_warps(x)
    made = cuda_moments.mean_pairwise_cosine(x, False)
    torch.testing.assert_close(made[0], exact(x)[0], rtol=0, atol=ERROR, equal_nan=True)


def test_a_device_with_little_shared_memory_goes_another_way() -> None:
    most_shared_memory(163 << 10)  # of compute capability 8.0
    assert_right(rows_of(60, 768))
    x = rows_of(60, 1024)
    assert not taken_by_warps(x)
    made = cuda_moments.mean_pairwise_cosine(x, False)
    torch.testing.assert_close(made[0], exact(x)[0], rtol=0, atol=ERROR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_that_are_all_alike(dtype: torch.dtype) -> None:
    """Their errors are all alike, too."""
    x = rows_of(1, 64, dtype=dtype).expand(2000, 64)
    torch.testing.assert_close(cuda_moments.mean_pairwise_cosine(x, False)[0], exact(x)[0], rtol=0, atol=1e-6)
