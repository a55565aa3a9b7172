"""Every op of both GPU backends on a real GPU, against the float64 reference on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels import (
    backends,
    masked_mean_pool,
    mean_pairwise_cosine,
    pool_moments,
    row_moments,
    second_moment,
    top_eigenvectors,
)
from tests.support.gpu_memory import apart
from tests.support.moment_cases import RELATIVE, assert_sums_close, normal, views

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Each width is compiled apart. Aligned and unaligned rows, one tile, several slabs: what the dtype changes is that.
WIDTHS = {torch.float32: [1, 7, 8, 65, 100, 384, 1000, 1024, 4096, 9000]}
WIDTHS |= {dtype: [7, 64, 65, 384, 1024, 9000] for dtype in (torch.bfloat16, torch.float16)}
EACH_WIDTH = pytest.mark.parametrize(("dtype", "d"), [(dtype, d) for dtype in DTYPES for d in WIDTHS[dtype]], ids=str)
OUTPUT_ROUNDING = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def ragged(sentences: int, tokens: int) -> Tensor:
    lengths = torch.randint(1, tokens + 1, (sentences,), generator=torch.Generator().manual_seed(sentences))
    return torch.arange(tokens) < lengths[:, None]


def on_cpu(result: Any) -> Any:
    if result is None:
        return None
    if isinstance(result, Tensor):
        return result.cpu()
    if isinstance(result, dict):
        return {name: on_cpu(value) for name, value in result.items()}
    if dataclasses.is_dataclass(result):
        return type(result)(**on_cpu(vars(result)))
    return type(result)(*(on_cpu(value) for value in result))


def assert_pooled_moments(got: Any, wanted: Any, dtype: torch.dtype) -> None:
    got = on_cpu(got)
    assert_sums_close(got.sums, wanted.sums, RELATIVE[dtype])
    assert torch.equal(got.status, wanted.status)
    torch.testing.assert_close(got.pooled, wanted.pooled, rtol=3e-7, atol=3e-7, equal_nan=True)


@EACH_WIDTH
def test_pool_moments_of_every_width(backend: str, dtype: torch.dtype, d: int) -> None:
    mask = ragged(37, 9)
    mask[4] = False
    hidden = normal(3, 37, 9, d, dtype=dtype, seed=d)
    hidden[:, ~mask] = torch.nan
    with backends.record() as runs:
        got = pool_moments(hidden.to(GPU), mask.to(GPU), backend=backend)
    assert runs == [("pool_moments", backends.Backend(backend))]
    wanted = pool_moments(hidden, mask, backend="reference")
    assert_pooled_moments(got, wanted, dtype)
    separate = pool_moments(apart(hidden.to(GPU)), mask.to(GPU), backend=backend)
    assert_pooled_moments(separate, wanted, dtype)
    pooled = masked_mean_pool(hidden.to(GPU), mask.to(GPU), backend=backend)
    torch.testing.assert_close(pooled.cpu(), wanted.pooled, rtol=3e-7, atol=3e-7, equal_nan=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    packed = pool_moments(hidden[:, mask].to(GPU), cu_seqlens=starts.to(GPU), backend=backend)
    assert_pooled_moments(packed, wanted, dtype)


@EACH_WIDTH
def test_row_moments_of_every_width(backend: str, dtype: torch.dtype, d: int) -> None:
    x = normal(2, 301, d, dtype=dtype, seed=d)
    x[0, 3], x[1, 5, 0], x[1, 6, -1] = 0, torch.nan, torch.inf
    got = row_moments(x.to(GPU), backend=backend)
    assert_sums_close(on_cpu(got), row_moments(x, backend="reference"), RELATIVE[dtype])
    ids = torch.arange(301) * 7
    got = row_moments(x.to(GPU), sentence_ids=ids.to(GPU), backend=backend)
    assert_sums_close(on_cpu(got), row_moments(x, sentence_ids=ids, backend="reference"), RELATIVE[dtype])


@pytest.mark.parametrize("rows", [0, 1, 2, 4096, 100_000])
def test_numbers_of_rows(backend: str, rows: int) -> None:
    x = normal(rows, 96, shift=0.3)
    got = mean_pairwise_cosine(x.to(GPU), backend=backend)
    wanted = mean_pairwise_cosine(x.double())
    torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-30, 1e17, 3e37])
def test_extremes(backend: str, scale: float) -> None:
    hidden, mask = normal(6, 5, 33) * scale, ragged(6, 5)
    got = on_cpu(pool_moments(hidden.to(GPU), mask.to(GPU), backend=backend))
    wanted = pool_moments(hidden, mask, backend="reference")
    assert_sums_close(got.sums, wanted.sums, 4e-7)
    torch.testing.assert_close(got.pooled, wanted.pooled, rtol=3e-7, atol=3e-7 * scale)


def test_strides_are_honoured(backend: str) -> None:
    mask, hidden = ragged(9, 14), normal(9, 14, 40)
    wanted = pool_moments(hidden, mask, backend="reference")
    for layout, view in views(hidden).items():
        memory = torch.empty(0).set_(view.untyped_storage()).to(GPU)
        moved = memory.as_strided(view.size(), view.stride(), view.storage_offset())
        assert torch.equal(moved.cpu(), view), layout
        assert_pooled_moments(pool_moments(moved, mask.to(GPU), backend=backend), wanted, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 65, 384, 1024])
@pytest.mark.parametrize("n", [1, 130, 5000])
def test_second_moment(backend: str, dtype: torch.dtype, d: int, n: int) -> None:
    x = normal(2, n, d, dtype=dtype, seed=d, shift=3.0)
    for center in [False] if n == 1 else [False, True]:
        got = second_moment(x.to(GPU), center=center, backend=backend).cpu()
        wanted = second_moment(x.double(), center=center)
        assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 40, 384, 1024])
def test_top_eigenvectors(backend: str, dtype: torch.dtype, d: int) -> None:
    falling = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    x = (normal(2, 3000, d, dtype=torch.float64, shift=0.0) * falling + 0.5).to(dtype)
    k = min(3, d)
    found = on_cpu(top_eigenvectors(x.to(GPU), k, backend=backend))
    exact = torch.linalg.eigvalsh(second_moment(x.double(), center=True)).flip(-1)
    assert bool(found.converged.all())
    assert float(((found.values - exact[..., :k]).abs() / exact[..., :1]).max()) <= 1e-6
    covariance = second_moment(x.double(), center=True).float()
    found = on_cpu(top_eigenvectors(covariance=covariance.to(GPU), k=k, backend=backend))
    product = found.vectors @ covariance.double()
    residual = torch.linalg.vector_norm(product - found.values[..., None] * found.vectors, dim=-1)
    assert float((residual / found.values[..., :1]).max()) <= 1e-8 + 1e-13


def test_many_eigenvectors(backend: str) -> None:
    """Blocks of 72 vectors, no power of two, of which the basis holds all that there are."""
    x = normal(2, 3000, 128, shift=0.0) * torch.arange(1, 129) ** -0.5
    found = on_cpu(top_eigenvectors(x.to(GPU), 64, backend=backend))
    exact = torch.linalg.eigvalsh(second_moment(x.double(), center=True)).flip(-1)
    assert bool(found.converged.all())
    assert float(((found.values - exact[..., :64]).abs() / exact[..., :1]).max()) <= 1e-6
    identity = torch.eye(64, dtype=torch.float64)
    assert float((found.vectors @ found.vectors.mT - identity).abs().max()) <= 1e-12


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf).nansum(), leaf)
    return grad


@EACH_WIDTH
def test_gradients(backend: str, dtype: torch.dtype, d: int) -> None:
    # Of float16's subnormal numbers, as these gradients are from some 4096 columns, no more than half a step.
    rounding, least = OUTPUT_ROUNDING[dtype], torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
    x = normal(40, d, dtype=dtype, seed=d)
    got = gradient(lambda x: mean_pairwise_cosine(x, backend=backend), x.to(GPU)).cpu().double()
    wanted = gradient(lambda x: mean_pairwise_cosine(x, backend="reference"), x.double())
    bound = (rounding + 4e-7) * max(float(wanted.abs().max()), 1e-30) + 1e-9 + least
    assert float((got - wanted).abs().max()) <= bound
    mask, hidden = ragged(12, 7), normal(12, 7, d, dtype=dtype, seed=d)
    got = gradient(lambda x: masked_mean_pool(x, mask.to(x.device), backend=backend), hidden.to(GPU)).cpu().double()
    wanted = gradient(lambda x: masked_mean_pool(x, mask, backend="reference"), hidden.double())
    assert float((got - wanted).abs().max()) <= rounding * float(wanted.abs().max())


def test_more_elements_than_32_bits_count(backend: str) -> None:
    n, d = 2_200_000, 1024  # 2.25e9 elements, 4.5 GB
    x = torch.empty(n, d, dtype=torch.bfloat16, device=GPU).normal_(0.3, 1)
    sums = row_moments(x, backend=backend)
    parts = [row_moments(part, backend=backend) for part in (x[: n // 2], x[n // 2 :])]
    assert int(sums["count"].sum()) == n
    for name in ("sum", "sq_sum", "unit_sq_sum", "norm_sum"):
        torch.testing.assert_close(sums[name], parts[0][name] + parts[1][name], rtol=1e-6, atol=1e-6 * n)
    lengths = torch.full((n // 20,), 20, device=GPU)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    pooled = masked_mean_pool(x, cu_seqlens=starts, backend=backend)
    torch.testing.assert_close(pooled[-1], x[-20:].double().mean(0).float(), rtol=1e-6, atol=1e-6)


def test_bitwise_the_same_run_to_run(backend: str) -> None:
    hidden, mask = normal(5, 300, 20, 256, dtype=torch.bfloat16).to(GPU), ragged(300, 20).to(GPU)
    first = pool_moments(hidden, mask, backend=backend)
    x = normal(3, 5000, 200).to(GPU)
    moment, axes = second_moment(x, backend=backend), top_eigenvectors(x, 3, backend=backend)
    for _ in range(20):
        again = pool_moments(hidden, mask, backend=backend)
        assert torch.equal(again.pooled, first.pooled)
        assert all(torch.equal(again.sums[name], value) for name, value in first.sums.items())
        assert torch.equal(second_moment(x, backend=backend), moment)
        assert torch.equal(top_eigenvectors(x, 3, backend=backend).vectors, axes.vectors)


# Vectors asked for, width, steps: blocks of 8, 8, 72, 128 and 256 vectors. Their scratch is global memory, where
# compute-sanitizer looks for no races: a race shows here, as layers that differ though they are given the same.
@pytest.mark.parametrize(
    ("k", "d", "steps"), [(1, 64, 40), (5, 1024, 20), (64, 128, 4), (64, 300, 3), (120, 300, 2), (250, 300, 2)]
)
@pytest.mark.parametrize("of", ["data", "covariance"])
def test_eigenvectors_are_bitwise_the_same(backend: str, k: int, d: int, steps: int, of: str) -> None:
    x = normal(1, 2000, d, shift=0.1).to(GPU)
    one = x if of == "data" else second_moment(x, center=True, backend=backend).float()
    matrices = one.expand(16, -1, -1).contiguous()
    given = {"x": matrices} if of == "data" else {"covariance": matrices}
    options: dict[str, Any] = {"k": k, "tolerance": 1e-14, "max_iterations": steps, "backend": backend}
    first = top_eigenvectors(**given, **options)
    assert bool(first.vectors.isfinite().all())
    for _ in range(5 if k < 64 else 2):
        again = top_eigenvectors(**given, **options)
        for name in ("values", "vectors", "residuals", "iterations"):
            wanted = getattr(first, name)[:1].expand_as(getattr(first, name))
            assert torch.equal(getattr(again, name), wanted), name


def test_side_streams_at_once(backend: str) -> None:
    mask = ragged(200, 16).to(GPU)
    batches = [normal(4, 200, 16, 384, dtype=torch.bfloat16, seed=seed).to(GPU) for seed in range(4)]
    wanted = [pool_moments(hidden, mask, backend=backend) for hidden in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    got = []
    for stream, hidden in zip(streams, batches, strict=True):
        with torch.cuda.stream(stream):
            got.append(pool_moments(hidden, mask, backend=backend))
    torch.cuda.synchronize()
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one.pooled, other.pooled)
        assert all(torch.equal(one.sums[name], value) for name, value in other.sums.items())


def test_widths_of_unlike_shared_memory_at_once(backend: str) -> None:
    """Two threads launch one kernel with little and with much shared memory."""
    mask = ragged(30, 9).to(GPU)
    batches = [normal(2, 30, 9, d, dtype=torch.bfloat16, seed=d).to(GPU) for d in (2048, 4096)]
    wanted = [pool_moments(hidden, mask, backend=backend) for hidden in batches]
    torch.cuda.synchronize()

    def repeated(hidden: Tensor) -> list[Any]:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = [pool_moments(hidden, mask, backend=backend) for _ in range(50)]
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(2) as pool:
        for found, one in zip(pool.map(repeated, batches), wanted, strict=True):
            for got in found:
                assert torch.equal(got.pooled, one.pooled)
                assert all(torch.equal(got.sums[name], value) for name, value in one.sums.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_every_op_on_the_second_gpu(backend: str) -> None:
    hidden, mask = normal(2, 12, 7, 64), ragged(12, 7)

    def results(device: torch.device) -> list[Any]:
        x, kept = hidden.to(device), mask.to(device)
        leaf = x.clone().requires_grad_()
        pooled = masked_mean_pool(leaf, kept, backend=backend)
        mean_pairwise_cosine(pooled, backend=backend).sum().backward()
        rows = x.flatten(1, 2)
        given = {"backend": backend}
        found = [pool_moments(x, kept, **given), row_moments(rows, **given), second_moment(rows, **given)]
        found += [vars(top_eigenvectors(rows, 2, **given)), pooled.detach(), leaf.grad]
        return [on_cpu(result) for result in found]

    first = results(torch.device("cuda:0"))
    second = results(torch.device("cuda:1"))
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-6)


def test_another_device_s_pointers_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="mask: got device cpu"):
        pool_moments(torch.zeros(2, 3, 4, device=GPU), torch.ones(2, 3), backend=backend)
    with pytest.raises(TypeError, match="got dtype float64 on device cuda"):
        row_moments(torch.zeros(2, 3, dtype=torch.float64, device=GPU), backend=backend)


def test_compiled_with_torch(backend: str) -> None:
    def pooled_cosine(hidden: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = mean_pairwise_cosine(masked_mean_pool(hidden, mask, backend=backend), backend=backend)
        return result

    hidden, mask = normal(50, 12, 384).to(GPU), ragged(50, 12).to(GPU)
    compiled = torch.compile(pooled_cosine, fullgraph=True)
    assert torch.equal(compiled(hidden, mask), pooled_cosine(hidden, mask))


def test_opcheck(backend: str) -> None:
    from cone_kernels.ops.masked_mean_pool import _masked_mean_pool
    from cone_kernels.ops.mean_pairwise_cosine import _mean_pairwise_cosine

    hidden, mask = normal(6, 5, 24).to(GPU).requires_grad_(), ragged(6, 5).to(GPU)
    torch.library.opcheck(_masked_mean_pool, (hidden, mask, None, backend))
    torch.library.opcheck(_mean_pairwise_cosine, (normal(9, 24).to(GPU).requires_grad_(), backend))
