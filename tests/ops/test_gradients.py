from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cone_kernels import _cpu, backends, masked_mean_pool, mean_pairwise_cosine, row_moments
from cone_kernels.ops.masked_mean_pool import pool_gradient
from cone_kernels.ops.mean_pairwise_cosine import cosine_gradient
from tests.support.moment_cases import DTYPES, RELATIVE, normal, views

BACKENDS = ["cpu", "reference"]
WIDTHS = [*range(1, 35), 47, 63, 64, 65, 96, 127, 128, 129, 130]

# One rounding to the dtype: half a unit in the last place, or half the distance of subnormal numbers.
HALF_ULP = {torch.float32: 2**-24, torch.float64: 1e-14, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SUBNORMAL = {torch.float32: 2**-150, torch.float64: 0.0, torch.bfloat16: 2**-134, torch.float16: 2**-25}


@pytest.fixture(params=["reference", "baseline", "avx2", "avx512"])
def code(request: pytest.FixtureRequest, one_thread: None) -> Iterator[str]:
    """The backend that runs: the reference, or the C++ kernels with each instruction set in turn."""
    if request.param == "reference":
        yield "reference"
        return
    if request.param not in _cpu.supported_isas():
        pytest.skip(f"{request.param} is not built in or not known to this processor")
    before = _cpu.isa()
    _cpu.force_isa(request.param)
    yield "cpu"
    _cpu.force_isa(before)


def used_rows(x: Tensor) -> Tensor:
    norm_sq = x.double().square().sum(-1)
    return (norm_sq > 0) & norm_sq.isfinite()


def plain_cosine(x: Tensor) -> Tensor:
    """The definition in torch, in float64, on the rows that are used: x (n, d)."""
    rows = x[used_rows(x)].double()
    u = rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    cosines = u @ u.mT
    return (cosines.sum() - cosines.trace()) / (len(rows) * (len(rows) - 1))


def plain_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The formula of every model card, in float64, on (..., B, T, D); NaN where there is no token."""
    kept = torch.where(mask[..., None], hidden.double(), 0)
    return kept.sum(-2) / mask.sum(-1)[:, None]


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The gradient of Σ weights · function(x)."""
    leaf = x.detach().requires_grad_()
    result = function(leaf)
    (grad,) = torch.autograd.grad(result, leaf, torch.ones_like(result) if weights is None else weights.to(result))
    assert grad.shape == x.shape
    assert grad.dtype == x.dtype
    return grad


def assert_rounded_once(got: Tensor, wanted: Tensor, absolute: float = 0.0) -> None:
    """`got` within one rounding of the float64 `wanted`, and within `absolute`, an error of what it is made of."""
    relative = HALF_ULP[got.dtype] * (1 + 2**-12)
    error = (got.double() - wanted).abs()
    assert bool((error <= relative * wanted.abs() + SUBNORMAL[got.dtype] + absolute).all()), float(error.max())


def sums_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """s (..., d) and n (...) of x (..., n, d), in float64."""
    sums = row_moments(x, backend="reference")
    return sums["unit_sum"].sum(-2), sums["count"].sum(-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_equals_autograd_of_the_definition(code: str, dtype: torch.dtype) -> None:
    for d in WIDTHS:
        x = normal(9, d, dtype=dtype, seed=d, shift=0.8)
        got = gradient(lambda x: mean_pairwise_cosine(x, backend=code), x)
        wanted = gradient(plain_cosine, x.double())
        # Rounding of the unit sum, as the forward has it, times 2/(n(n−1)‖x‖); |s| ≤ n.
        scale = 2 / 8 / torch.linalg.vector_norm(x.double(), dim=-1).min()
        assert_rounded_once(got, wanted, absolute=float(RELATIVE[dtype] * scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_kernel_is_one_rounding_from_the_reference(isa: str, dtype: torch.dtype) -> None:
    weights = torch.tensor([0.7, -3e3], dtype=torch.float64)
    for d, n in itertools.product([1, 2, 7, 8, 9, 31, 64, 130, 1000], [1, 2, 33]):
        x = normal(2, n, d, dtype=dtype, seed=d)
        sums = sums_of(torch.cat([x, normal(2, 5, d)], dim=1))
        wanted = cosine_gradient(x.double(), *sums, weights, "reference")
        largest = 2 * 3e3 / (n + 4) / float(torch.linalg.vector_norm(x.double(), dim=-1).min())
        assert_rounded_once(cosine_gradient(x, *sums, weights, "cpu"), wanted, absolute=1e-14 * largest)


def test_every_float16_is_read_and_every_rounding_is_torch_s(isa: str) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16)
    x = torch.where(x.isfinite(), x, 1).reshape(-1, 16)
    sums = sums_of(x)
    got, wanted = (cosine_gradient(x, *sums, torch.tensor(1e4), backend) for backend in BACKENDS)
    assert_rounded_once(got, cosine_gradient(x.double(), *sums, torch.tensor(1e4), "reference"), absolute=1e-13)
    torch.testing.assert_close(got, wanted, rtol=2**-10, atol=2**-24)

    # One token a sentence: the gradient is the float32 gradient rounded.
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (2**16,), generator=generator).to(torch.int32)
    near_half = torch.arange(2**16, dtype=torch.int32) * 2**12 + 0x33000000  # where float16 ends, rounds and overflows
    ties = torch.arange(2**16, dtype=torch.int32) * 2**16 + 2**15
    values = torch.cat([patterns, near_half, near_half + 1, near_half - 1, ties]).view(torch.float32)
    for width in (8, 5):
        grad = values[: len(values) // width * width].reshape(-1, width)
        mask = torch.ones(len(grad), 1, dtype=torch.bool)
        for dtype in (torch.float16, torch.bfloat16):
            rounded = pool_gradient(grad, mask, None, 1, dtype, "cpu")[:, 0]
            torch.testing.assert_close(rounded, grad.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_nearly_equal_rows_keep_their_digits(isa: str) -> None:
    x = 1 + 1e-3 * normal(50, 64, dtype=torch.float64)
    got = gradient(mean_pairwise_cosine, x)
    wanted = gradient(plain_cosine, x)
    # What is left of s − (s·u)u is 1e-3 of s, so three digits are lost and no more.
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-11


@pytest.mark.parametrize(
    ("dtype", "exponent"), [(torch.float32, 60), (torch.float32, -60), (torch.float64, 500), (torch.float64, -500)]
)
def test_long_and_short_rows(isa: str, dtype: torch.dtype, exponent: int) -> None:
    x = normal(9, 40, dtype=dtype)
    got, wanted = gradient(mean_pairwise_cosine, x * 2.0**exponent), gradient(mean_pairwise_cosine, x)
    error = (got.double() * 2.0**exponent - wanted.double()).abs().max()
    assert float(error / wanted.abs().max()) < (1e-6 if dtype == torch.float32 else 1e-14)


def test_cosine_of_any_strides(code: str) -> None:
    x = normal(3, 130, 37)
    weights = torch.tensor([1.0, -2.0, 0.5])
    wanted = gradient(mean_pairwise_cosine, x, weights)
    for layout, view in views(x).items():
        got = gradient(lambda x: mean_pairwise_cosine(x, backend=code), view, weights)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-9, msg=layout)
    same = gradient(lambda x: mean_pairwise_cosine(x, backend=code), x[0, :1].expand(4, 37))
    assert float(same.abs().max()) < 1e-7  # rows that agree cannot agree more


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_left_out_get_no_gradient(code: str, dtype: torch.dtype) -> None:
    x = normal(40, 19, dtype=dtype)
    x[3], x[8, 2], x[11, 5], x[39] = 0, torch.nan, torch.inf, -torch.inf
    used = used_rows(x)
    got = gradient(lambda x: mean_pairwise_cosine(x, backend=code), x)
    assert bool((got[~used] == 0).all())
    wanted = gradient(plain_cosine, x[used].double())
    assert_rounded_once(got[used], wanted, absolute=RELATIVE[dtype] * float(wanted.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_without_a_pair_the_gradient_is_zero_though_the_cosine_is_nan(backend: str, n: int) -> None:
    x = normal(2, n, 5)
    x[:, 1:] = 0
    cosine = mean_pairwise_cosine(x.requires_grad_(), backend=backend)
    assert bool(cosine.isnan().all())
    (cosine - 0.3).square().sum().backward()  # what arrives is NaN
    assert bool((x.grad == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    x = normal(2, 5, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mean_pairwise_cosine(x, backend=backend), x)
    hidden = normal(2, 3, 4, 2, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: masked_mean_pool(x, mask, backend=backend), hidden)
    packed, starts = normal(2, 7, 3, dtype=torch.float64).requires_grad_(), torch.tensor([0, 3, 4, 7])
    assert torch.autograd.gradcheck(lambda x: masked_mean_pool(x, cu_seqlens=starts, backend=backend), packed)


def scattered_mask(sentences: int, tokens: int) -> Tensor:
    mask = torch.rand(sentences, tokens, generator=torch.Generator().manual_seed(tokens)) < 0.5
    mask[:, 0] = True
    return mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_equals_autograd_of_the_formula(code: str, dtype: torch.dtype) -> None:
    mask = scattered_mask(18, 7)
    for d in WIDTHS:
        hidden = normal(2, 18, 7, d, dtype=dtype, seed=d)
        weights = normal(2, 18, d, dtype=torch.float32 if dtype != torch.float64 else dtype, seed=d + 1)
        got = gradient(lambda x: masked_mean_pool(x, mask, backend=code), hidden, weights)
        assert_rounded_once(got, gradient(lambda x: plain_pool(x, mask), hidden.double(), weights.double()))


def test_packed_gradients_are_those_of_the_tokens_that_count(code: str) -> None:
    mask = scattered_mask(17, 8)
    mask[4] = False
    hidden, weights = normal(3, 17, 8, 50), normal(3, 17, 50)
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), mask.sum(1).cumsum(0).int()])
    padded = gradient(lambda x: masked_mean_pool(x, mask, backend="reference"), hidden, weights)
    packed = gradient(lambda x: masked_mean_pool(x, cu_seqlens=starts, backend=code), hidden[:, mask], weights)
    assert torch.equal(packed, padded[:, mask])
    assert bool((padded[:, ~mask] == 0).all())


def test_pooling_gives_tokens_that_do_not_count_nothing(code: str) -> None:
    hidden, mask = normal(3, 4, 21), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    hidden[0, 2], hidden[2, 1] = torch.nan, torch.inf
    weights = normal(3, 21)
    weights[1] = torch.nan  # of a mean that is NaN
    got = gradient(lambda x: masked_mean_pool(x, mask, backend=code), hidden, weights)
    assert torch.equal(got[0, :2], (weights[0] / 2).expand(2, 21))
    assert bool((got[0, 2:] == 0).all())
    assert bool((got[1] == 0).all())
    assert torch.equal(got[2], (weights[2] / 4).expand(4, 21))  # the mean is linear in every token that counts


def test_pooling_takes_gradients_of_any_strides(isa: str) -> None:
    hidden, mask = normal(3, 9, 6, 37), scattered_mask(9, 6)
    weights = normal(3, 9, 37)
    layouts = views(weights) | {"expanded": weights[:1, :1, :1].expand(3, 9, 37), "one value": torch.ones(())}
    for layout, view in layouts.items():
        view = view.expand(3, 9, 37)
        got = gradient(lambda x: masked_mean_pool(x, mask, backend="cpu"), hidden, view)
        wanted = gradient(lambda x: masked_mean_pool(x, mask, backend="reference"), hidden, view.contiguous())
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=0, msg=layout)
    for layout, view in views(hidden[0]).items():
        got = gradient(lambda x: masked_mean_pool(x, mask), view, weights[0])
        assert torch.equal(got, gradient(lambda x: masked_mean_pool(x, mask), hidden[0], weights[0])), layout


def test_pooling_keeps_no_hidden_states() -> None:
    kept: list[torch.Size] = []
    hidden, mask = normal(3, 4, 5).requires_grad_(), torch.ones(3, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda _: None):
        masked_mean_pool(hidden, mask)
    assert kept == [mask.shape]


def test_every_entry_is_written(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real_empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        tensor = real_empty(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(torch.nan) if tensor.dtype.is_floating_point else tensor.fill_(99)

    x, mask = normal(2, 40, 45), scattered_mask(40, 6)
    x[0, 3], x[1, 7, 1] = 0, torch.nan
    mask[5] = False
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    for dtype in DTYPES:
        rows, grad = x.to(dtype), normal(2, 40, 45, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        cosines = [cosine_gradient(rows, *sums_of(rows), torch.ones(2), "reference")]
        pools = [pool_gradient(grad, mask, None, 6, dtype, "reference")]
        packed = [pool_gradient(grad, None, starts, int(starts[-1]), dtype, "reference")]
        sums = sums_of(rows)
        monkeypatch.setattr(torch, "empty", poisoned)
        cosines.append(cosine_gradient(rows, *sums, torch.ones(2), "cpu"))
        pools.append(pool_gradient(grad, mask, None, 6, dtype, "cpu"))
        packed.append(pool_gradient(grad, None, starts, int(starts[-1]), dtype, "cpu"))
        monkeypatch.undo()
        for wanted, got in (cosines, pools, packed):
            torch.testing.assert_close(got, wanted, rtol=2 * HALF_ULP[dtype], atol=1e-9)


def test_bitwise_the_same_with_any_number_of_threads(isa: str, threads: None) -> None:
    x, mask = normal(3, 2000, 96, dtype=torch.bfloat16), scattered_mask(300, 20)
    hidden = normal(2, 300, 20, 96, dtype=torch.float16)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append((gradient(mean_pairwise_cosine, x), gradient(lambda h: masked_mean_pool(h, mask), hidden)))
    for one, other in itertools.pairwise(results):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backend_asked_for_runs_backwards_too(backend: str) -> None:
    with backends.record() as runs:
        gradient(lambda x: mean_pairwise_cosine(x, backend=backend), normal(6, 5))
        gradient(lambda x: masked_mean_pool(x, torch.ones(3, 4), backend=backend), normal(3, 4, 5))
    chosen = backends.Backend(backend)
    names = ("mean_pairwise_cosine", "mean_pairwise_cosine_backward", "masked_mean_pool", "masked_mean_pool_backward")
    assert runs == [(name, chosen) for name in names]


@pytest.mark.parametrize("op", ["mean_pairwise_cosine", "masked_mean_pool"])
def test_double_backward_is_refused(op: str) -> None:
    hidden = normal(3, 4, 5).requires_grad_()
    result = (
        mean_pairwise_cosine(hidden) if op == "mean_pairwise_cosine" else masked_mean_pool(hidden, torch.ones(3, 4))
    )
    (grad,) = torch.autograd.grad(result.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}: double backward is refused"):
        grad.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    hidden, mask = normal(6, 4, 33, dtype=dtype), scattered_mask(6, 4)

    def loss(hidden: Tensor) -> Tensor:
        pooled = masked_mean_pool(hidden, mask)
        assert pooled.dtype == torch.float32
        return mean_pairwise_cosine(pooled)

    wanted, wanted_grad = loss(hidden), gradient(loss, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(hidden), wanted)
        assert torch.equal(gradient(loss, hidden), wanted_grad)


@pytest.mark.parametrize(("backend", "device"), [("cuda", "cpu"), ("cpu", "meta")])
def test_a_backend_that_cannot_run_a_gradient_here_is_refused(backend: str, device: str) -> None:
    x, of_layers = torch.zeros(3, 4, device=device), torch.zeros(4, dtype=torch.float64, device=device)
    count, grad = torch.tensor(3.0, device=device), torch.tensor(1.0, device=device)
    said = f"backend={backend} cannot run "
    with pytest.raises(backends.BackendUnavailable, match=said + "mean_pairwise_cosine_backward"):
        cosine_gradient(x, of_layers, count, grad, backend)
    with pytest.raises(backends.BackendUnavailable, match=said + "masked_mean_pool_backward"):
        pool_gradient(x, torch.ones(3, 2, device=device), None, 2, torch.float32, backend)
