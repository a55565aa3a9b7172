"""Every op under torch.compile and torch.library.opcheck, with and without gradients; which ops refuse a backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from cone_kernels import (
    ConeState,
    Moments,
    masked_mean_pool,
    mean_pairwise_cosine,
    pool_moments,
    row_moments,
    second_moment,
    top_eigenvectors,
)
from cone_kernels.sums import ROW_FIELDS, TOKEN_FIELDS, zero_sums
from tests.support.moment_cases import normal

BACKENDS = ["cpu", "reference"]
OPS = torch.ops.cone_kernels
MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]]).bool()
STARTS = torch.tensor([0, 3, 4, 7])


def rows(grad: bool = False) -> Tensor:
    return normal(2, 7, 5).requires_grad_(grad)


def hidden(grad: bool = False) -> Tensor:
    return normal(2, 3, 4, 5).requires_grad_(grad)


def sums_of_nothing(fields: tuple[str, ...]) -> list[Tensor]:
    return list(zero_sums(fields, 2, 5).values())


# Arguments of each op for a backend, by the op's name; those with a gradient take it on their first tensor.
CASES: dict[str, tuple[str, Callable[[str, bool], tuple[object, ...]]]] = {
    "cosine": ("mean_pairwise_cosine", lambda backend, grad: (rows(grad), backend, 0.0)),
    "cosine near zero": ("mean_pairwise_cosine", lambda backend, grad: (rows(grad), backend, 2.0)),
    "pool": ("masked_mean_pool", lambda backend, grad: (hidden(grad), MASK, None, backend)),
    "pool packed": ("masked_mean_pool", lambda backend, grad: (rows(grad), None, STARTS, backend)),
    "cosine backward": (
        "mean_pairwise_cosine_backward",
        lambda backend, grad: (rows(), normal(2, 5).double(), torch.tensor([7, 1]), torch.ones(2).double(), backend),
    ),
    "pool backward": (
        "masked_mean_pool_backward",
        lambda backend, grad: (normal(2, 3, 5), MASK, None, 4, torch.bfloat16, backend),
    ),
    "pool backward packed": (
        "masked_mean_pool_backward",
        lambda backend, grad: (normal(2, 3, 5), None, STARTS, 7, torch.float32, backend),
    ),
    "row moments": ("row_moments_", lambda backend, grad: (rows(), None, sums_of_nothing(ROW_FIELDS), backend)),
    "pool moments": (
        "pool_moments_",
        lambda backend, grad: (
            list(hidden().unbind()), MASK, None, torch.arange(3), sums_of_nothing(TOKEN_FIELDS), backend
        ),
    ),
    "second moment": ("second_moment", lambda backend, grad: (rows(), True, None, None, backend)),
    "second moment in place": (
        "second_moment_",
        lambda backend, grad: (torch.zeros(2, 5, 5).double(), rows(), None, None, None, False, backend),
    ),
    "top eigenvectors": ("top_eigenvectors", lambda backend, grad: (rows(), False, True, 2, 1e-6, 500, backend)),
    "refused gradients": ("refused_gradients", lambda backend, grad: (rows(), rows(), "row_moments")),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str, backend: str) -> None:
    op, arguments = CASES[case]
    torch.library.opcheck(getattr(OPS, op).default, arguments(backend, False))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["cosine", "cosine near zero", "pool", "pool packed"])
def test_opcheck_with_gradients(case: str, backend: str) -> None:
    op, arguments = CASES[case]
    torch.library.opcheck(getattr(OPS, op).default, arguments(backend, True))


def test_every_op_is_checked() -> None:
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("cone_kernels::")}
    assert names == {op for op, _ in CASES.values()}


@pytest.mark.parametrize("inputs", ["mask", "cu_seqlens"])
def test_gradients_compile_whole_and_once_for_all_shapes(inputs: str) -> None:
    def loss(x: Tensor, chosen: Tensor) -> Tensor:
        pooled = masked_mean_pool(x, **{inputs: chosen})
        return mean_pairwise_cosine(pooled) + mean_pairwise_cosine(pooled, strict=True)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch, tokens in ((3, 4), (5, 6), (9, 7)):
        if inputs == "mask":
            x, chosen = normal(batch, tokens, 10), torch.ones(batch, tokens, dtype=torch.int64).triu()
            chosen[:, -1] = 1
        else:
            x, chosen = normal(batch * tokens, 10), torch.arange(batch + 1) * tokens
        got, wanted = (function(x.requires_grad_(), chosen) for function in (compiled, loss))
        assert torch.equal(got, wanted)
        gradients = [torch.autograd.grad(result, x)[0] for result in (got, wanted)]
        assert torch.equal(*gradients)
        assert bool((gradients[0] != 0).any())
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_asked_for_by_name_compiles_whole(backend: str) -> None:
    compiled = torch.compile(
        lambda x: mean_pairwise_cosine(x * 2, backend=backend), fullgraph=True, backend="aot_eager"
    )
    x = normal(6, 5).requires_grad_()
    assert torch.equal(compiled(x), mean_pairwise_cosine(x * 2, backend=backend))


def test_inductor_keeps_the_gradients() -> None:
    def loss(x: Tensor) -> Tensor:
        return (mean_pairwise_cosine(masked_mean_pool(x * 2, MASK.long())) - 0.1).square()

    x = hidden()[0].requires_grad_()
    got, wanted = (function(x) for function in (torch.compile(loss, fullgraph=True), loss))
    assert (got - wanted).abs().item() < 1e-15
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(wanted, x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (masked_mean_pool, (hidden(), MASK * 2), "mask: it must have 1 for each token"),
        (lambda x, starts: masked_mean_pool(x, cu_seqlens=starts), (rows(), STARTS + 1), "cu_seqlens: it must rise"),
        (lambda x: mean_pairwise_cosine(x, strict=True), (rows() * 0,), "x: it must have no row that is zero"),
        (
            lambda x, ids: row_moments(x, sentence_ids=ids),
            (rows(), -torch.arange(7)),
            "sentence_ids: it must be 0 or more",
        ),
    ],
)
def test_values_are_checked_in_compiled_code_too(
    function: Callable[..., Tensor], arguments: tuple[Tensor, ...], words: str
) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=words):
        compiled(*arguments)


def test_a_state_s_rows_are_added_in_compiled_code_whole() -> None:
    ids = torch.arange(7) * 3
    compiled, plain = (Moments.empty("sentence", (0, 1), 5) for _ in range(2))
    update = torch.compile(lambda x: compiled.update(x * 2, sentence_ids=ids), fullgraph=True, backend="aot_eager")
    for turn in range(3):
        x = rows() + turn
        assert torch.equal(update(x), plain.update(x * 2, sentence_ids=ids))
    assert all(torch.equal(compiled.sums[name], plain.sums[name]) for name in plain.fields)


def test_a_whole_state_is_updated_from_compiled_code() -> None:
    compiled, plain = (ConeState.empty((0, 1), 5) for _ in range(2))
    update = torch.compile(lambda layers: compiled.update([layer * 2 for layer in layers], MASK), backend="aot_eager")
    for _ in range(2):  # its choices need values on the host, so the graph has breaks
        assert torch.equal(update(hidden()), plain.update([layer * 2 for layer in hidden()], MASK))
    for one, other in ((compiled.token, plain.token), (compiled.sentence, plain.sentence)):
        assert all(torch.equal(one.sums[name], other.sums[name]) for name in other.fields)


REFUSALS: dict[str, Callable[[Tensor], Tensor]] = {
    "row_moments": lambda x: row_moments(x.flatten(0, 2))["unit_sum"],
    "pool_moments": lambda x: pool_moments(x, MASK).sums["norm_sum"],
    "pool_moments of a list": lambda x: pool_moments([x[0].detach(), x[1]], MASK).sums["sentence_sq_sum"],
    "pool_moments pooled": lambda x: pool_moments(x, MASK).pooled[:, :1],
    "second_moment": lambda x: second_moment(x.flatten(0, 2)),
    "second_moment row_scale": lambda x: second_moment(x.detach().flatten(0, 2), row_scale=x.flatten(0, 2)[:, 0]),
    "second_moment pilot": lambda x: second_moment(x.detach().flatten(0, 2), pilot=x.flatten(0, 2)[0], center=True),
    "top_eigenvectors": lambda x: top_eigenvectors(x.flatten(0, 2)).values,
    "top_eigenvectors vectors": lambda x: top_eigenvectors(x.flatten(0, 2)).vectors,
}


@pytest.mark.parametrize("case", REFUSALS)
def test_ops_without_a_gradient_say_so_and_drop_none(case: str) -> None:
    x = hidden(True)
    result = REFUSALS[case](x)
    with pytest.raises(RuntimeError, match=f"{case.split()[0]}: has no gradient; detach its input"):
        (result.sum() + x.sum()).backward()
    with torch.no_grad():
        assert torch.equal(REFUSALS[case](x), result)
    assert not REFUSALS[case](x.detach()).requires_grad
