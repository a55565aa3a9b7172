"""The CUDA kernels of the gradients against autograd of the definitions and the reference, run on the CPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cone_kernels import backends, masked_mean_pool, mean_pairwise_cosine
from cone_kernels.ops.masked_mean_pool import pool_gradient
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient
from tests.ops.test_gradients import (
    HALF_ULP,
    assert_rounded_once,
    gradient,
    plain_cosine,
    plain_pool,
    scattered_mask,
    sums_of,
    used_rows,
)
from tests.support.moment_cases import RELATIVE, normal, views
from tests.support.simt_cuda import order_of_threads, simt_cuda  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("simt_cuda")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 2, 3, 7, 8, 9, 16, 31, 33, 64, 65, 127, 128, 130, 264, 384, 1000]


def cosine(x: Tensor) -> Tensor:
    result: Tensor = mean_pairwise_cosine(x, backend="cuda")
    return result


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    result: Tensor = masked_mean_pool(hidden, mask, backend="cuda")
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_equals_autograd_of_the_definition(dtype: torch.dtype) -> None:
    for d in WIDTHS:
        x = normal(9, d, dtype=dtype, seed=d, shift=0.8)
        wanted = gradient(plain_cosine, x.double())
        # Rounding of the unit sum, as the forward has it, times 2/(n(n−1)‖x‖); |s| ≤ n.
        scale = 2 / 8 / torch.linalg.vector_norm(x.double(), dim=-1).min()
        assert_rounded_once(gradient(cosine, x), wanted, absolute=float(RELATIVE[dtype] * scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_kernel_is_one_rounding_from_the_reference(dtype: torch.dtype) -> None:
    weights = torch.tensor([0.7, -3e3], dtype=torch.float64)
    # Aligned rows of 1 to 4 octets a lane are a warp's; the last two are wider than a block, aligned and not.
    shapes = [*itertools.product([1, 7, 8, 64, 130, 1000], [1, 2, 33]), (256, 17), (264, 9), (520, 9), (1024, 9)]
    shapes += [(600, 530), (1032, 5), (4104, 5), (4099, 5)]
    for d, n in shapes:
        x = normal(2, n, d, dtype=dtype, seed=d)
        sums = sums_of(torch.cat([x, normal(2, 5, d)], dim=1))
        wanted = cosine_gradient(x.double(), *sums, weights, "reference")
        largest = 2 * 3e3 / (n + 4) / float(torch.linalg.vector_norm(x.double(), dim=-1).min())
        assert_rounded_once(cosine_gradient(x, *sums, weights, "cuda"), wanted, absolute=1e-14 * largest)


def test_every_float16_is_read_and_every_rounding_is_torch_s() -> None:
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = torch.where(x.isfinite(), x, 1).reshape(-1, 64)
    sums = sums_of(x)
    got = cosine_gradient(x, *sums, torch.tensor(1e4), "cuda")
    assert_rounded_once(got, cosine_gradient(x.double(), *sums, torch.tensor(1e4), "reference"), absolute=1e-13)

    # One token a sentence: the gradient is the float32 gradient rounded.
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (2**12,), generator=generator).to(torch.int32)
    near_half = torch.arange(2**12, dtype=torch.int32) * 2**16 + 0x33000000  # where float16 ends, rounds and overflows
    ties = torch.arange(2**13, dtype=torch.int32) * 2**19 + 2**15
    values = torch.cat([patterns, near_half, near_half + 2**12, near_half + 2**12 - 1, ties]).view(torch.float32)
    for width in (1024, 635):
        grad = values[: len(values) // width * width].reshape(-1, width)
        mask = torch.ones(len(grad), 1, dtype=torch.bool)
        for dtype in (torch.float16, torch.bfloat16):
            rounded = pool_gradient(grad, mask, None, 1, dtype, "cuda")[:, 0]
            torch.testing.assert_close(rounded, grad.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_elements_of_usual_rows(dtype: torch.dtype) -> None:
    x = normal(2, 9, 72, dtype=dtype)
    x[:, :, 1::3] *= 2.0**-22 if dtype == torch.float16 else 2.0**-140  # below the least normal number
    x[:, :, ::3] = 0
    sums = sums_of(x)
    got = cosine_gradient(x, *sums, torch.tensor([0.7, -3.0]), "cuda")
    wanted = cosine_gradient(x.double(), *sums, torch.tensor([0.7, -3.0]), "reference")
    assert_rounded_once(got, wanted, absolute=1e-40)
    assert bool((got[:, :, ::3] == 0).all())


def test_rows_at_the_ends_of_the_quicker_way() -> None:
    x = normal(1, 12, 40)
    x *= (2.0 ** torch.tensor([-59.5, -60.5, 59.5, 60.5]) / torch.linalg.vector_norm(x[:, :4], dim=-1)).repeat(1, 3)[
        ..., None
    ]
    sums = sums_of(x)
    got = cosine_gradient(x, *sums, torch.ones(1), "cuda").double()
    wanted = cosine_gradient(x.double(), *sums, torch.ones(1), "reference")
    assert float(((got - wanted) / wanted).abs().max()) < 2.0**-23


@pytest.mark.parametrize("exponent", [60, -60])
def test_long_and_short_rows(exponent: int) -> None:
    x = normal(9, 40)
    got, wanted = gradient(cosine, x * 2.0**exponent), gradient(cosine, x)
    error = (got.double() * 2.0**exponent - wanted.double()).abs().max()
    assert float(error / wanted.abs().max()) < 1e-6


def test_cosine_of_any_strides() -> None:
    x, weights = normal(3, 60, 40), torch.tensor([1.0, -2.0, 0.5])
    wanted = gradient(cosine, x, weights)
    for layout, view in views(x).items():
        torch.testing.assert_close(gradient(cosine, view, weights), wanted, rtol=1e-5, atol=1e-9, msg=layout)
    same = gradient(cosine, x[0, :1].expand(4, 40))
    assert float(same.abs().max()) < 1e-7  # rows that agree cannot agree more


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_left_out_get_no_gradient(dtype: torch.dtype) -> None:
    for d in (19, 264):
        x = normal(40, d, dtype=dtype)
        x[3], x[8, 2], x[11, 5], x[39] = 0, torch.nan, torch.inf, -torch.inf
        used = used_rows(x)
        got = gradient(cosine, x)
        assert bool((got[~used] == 0).all())
        wanted = gradient(plain_cosine, x[used].double())
        assert_rounded_once(got[used], wanted, absolute=RELATIVE[dtype] * float(wanted.abs().max()))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_without_a_pair_the_gradient_is_zero_though_the_cosine_is_nan(n: int) -> None:
    x = normal(2, n, 5)
    x[:, 1:] = 0
    result = cosine(x.requires_grad_())
    assert bool(result.isnan().all())
    (result - 0.3).square().sum().backward()  # what arrives is NaN
    assert bool((x.grad == 0).all())


@pytest.mark.parametrize("shape", [(0, 5, 8), (0, 5, 7), (2, 0, 8), (2, 5, 0), (0, 0, 0)])
def test_of_nothing_there_is_no_gradient(shape: tuple[int, int, int]) -> None:
    layers, n, d = shape
    unit_sum, count = torch.zeros(layers, d, dtype=torch.float64), torch.full((layers,), n)
    assert cosine_gradient(torch.zeros(shape), unit_sum, count, torch.ones(layers), "cuda").shape == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_equals_autograd_of_the_formula(dtype: torch.dtype) -> None:
    mask = scattered_mask(6, 7)
    for d in (*WIDTHS, 2056, 2057):
        hidden, weights = normal(2, 6, 7, d, dtype=dtype, seed=d), normal(2, 6, d, seed=d + 1)
        got = gradient(lambda hidden: pool(hidden, mask), hidden, weights)
        assert_rounded_once(got, gradient(lambda hidden: plain_pool(hidden, mask), hidden.double(), weights.double()))


def test_long_sentences_are_shared_by_blocks() -> None:
    mask, grad = scattered_mask(2, 150), normal(2, 2, 40)
    starts = torch.tensor([0, 150, 300])
    for selection, tokens in ((mask, 150), (None, 300)):
        arguments = (grad, selection, starts if selection is None else None, tokens, torch.float32)
        assert torch.equal(pool_gradient(*arguments, "cuda"), pool_gradient(*arguments, "reference"))


def test_packed_gradients_are_those_of_the_tokens_that_count() -> None:
    mask = scattered_mask(17, 8)
    mask[4] = False
    hidden, weights = normal(3, 17, 8, 50), normal(3, 17, 50)
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), mask.sum(1).cumsum(0).int()])
    padded = gradient(lambda x: masked_mean_pool(x, mask, backend="reference"), hidden, weights)
    packed = gradient(lambda x: masked_mean_pool(x, cu_seqlens=starts, backend="cuda"), hidden[:, mask], weights)
    assert torch.equal(packed, padded[:, mask])


def test_pooling_gives_tokens_that_do_not_count_nothing() -> None:
    for d in (21, 24):
        hidden, mask = normal(3, 4, d), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
        hidden[0, 2], hidden[2, 1] = torch.nan, torch.inf
        weights = normal(3, d)
        weights[1] = torch.nan  # of a mean that is NaN
        got = gradient(lambda hidden, mask=mask: pool(hidden, mask), hidden, weights)
        assert torch.equal(got[0, :2], (weights[0] / 2).expand(2, d))
        assert bool((got[0, 2:] == 0).all())
        assert bool((got[1] == 0).all())
        assert torch.equal(got[2], (weights[2] / 4).expand(4, d))  # the mean is linear in every token that counts


def test_pooling_takes_gradients_of_any_strides() -> None:
    hidden, mask, weights = normal(3, 9, 6, 40), scattered_mask(9, 6), normal(3, 9, 40)
    layouts = views(weights) | {"expanded": weights[:1, :1, :1].expand(3, 9, 40), "one value": torch.ones(())}
    for layout, view in layouts.items():
        view = view.expand(3, 9, 40)
        got = gradient(lambda hidden: pool(hidden, mask), hidden, view)
        wanted = gradient(lambda x: masked_mean_pool(x, mask, backend="reference"), hidden, view.contiguous())
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=0, msg=layout)


def test_every_entry_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real_empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        tensor = real_empty(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(torch.nan) if tensor.dtype.is_floating_point else tensor.fill_(99)

    mask = scattered_mask(40, 6)
    mask[5] = False
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    for dtype, d in itertools.product(DTYPES, (40, 45)):
        x, grad = normal(2, 40, d, dtype=dtype), normal(2, 40, d)
        x[0, 3], x[1, 7, 1] = 0, torch.nan
        sums = sums_of(x)
        wanted = [
            cosine_gradient(x, *sums, torch.ones(2), "reference"),
            pool_gradient(grad, mask, None, 6, dtype, "reference"),
            pool_gradient(grad, None, starts, int(starts[-1]), dtype, "reference"),
        ]
        with monkeypatch.context() as patched:
            patched.setattr(torch, "empty", poisoned)
            got = [
                cosine_gradient(x, *sums, torch.ones(2), "cuda"),
                pool_gradient(grad, mask, None, 6, dtype, "cuda"),
                pool_gradient(grad, None, starts, int(starts[-1]), dtype, "cuda"),
            ]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=2 * HALF_ULP[dtype], atol=1e-9)


def test_bitwise_the_same_in_any_order_of_blocks_and_threads() -> None:
    x, mask, hidden = normal(2, 50, 264, dtype=torch.bfloat16), scattered_mask(9, 20), normal(2, 9, 20, 264)
    results = []
    for order in (0, 1, 7):
        order_of_threads(order)
        results.append((gradient(cosine, x), gradient(lambda hidden: pool(hidden, mask), hidden)))
    for one, other in itertools.pairwise(results):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_the_backend_asked_for_runs_backwards_too() -> None:
    with backends.record() as runs:
        gradient(cosine, normal(6, 5))
        gradient(lambda hidden: pool(hidden, torch.ones(3, 4)), normal(3, 4, 5))
    names = ("mean_pairwise_cosine", "mean_pairwise_cosine_backward", "masked_mean_pool", "masked_mean_pool_backward")
    assert runs == [(name, backends.Backend.CUDA) for name in names]


def test_float64_is_refused() -> None:
    sums = sums_of(normal(1, 5, 4))
    with pytest.raises(TypeError, match="x: got dtype float64"):
        cosine_gradient(normal(1, 5, 4, dtype=torch.float64), *sums, torch.ones(1), "cuda")
    for grad, dtype in ((normal(3, 4, dtype=torch.float64), torch.float32), (normal(3, 4), torch.float64)):
        with pytest.raises(
            TypeError, match="got dtype float64; it must be one of float32, bfloat16, float16 for backend cuda"
        ):
            pool_gradient(grad, torch.ones(3, 2).bool(), None, 2, dtype, "cuda")
