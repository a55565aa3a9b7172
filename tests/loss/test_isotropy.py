from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from cone_kernels import isotropy_loss, masked_mean_pool, mean_pairwise_cosine
from tests.support.moment_cases import DTYPES, normal

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]])


def plain_loss(layers: list[Tensor], target: float) -> Tensor:
    """The formula in torch, in float64: layers (B, T, D), means of MASK's tokens, all pairs."""
    losses = []
    for hidden in layers:
        vectors = (hidden.double() * MASK[:, :, None]).sum(1) / MASK.sum(1)[:, None]
        u = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        cosines = u @ u.mT
        losses.append((((cosines.sum() - cosines.trace()) / (5 * 4)) - target) ** 2)
    return torch.stack(losses).mean()


def hidden_states(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(normal(5, 4, 9, dtype=dtype, seed=seed).requires_grad_() for seed in range(3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_formula_and_its_gradient(dtype: torch.dtype) -> None:
    layers = hidden_states(dtype)
    loss = isotropy_loss(layers, MASK, target=0.2, layers=[0, -1])
    loss.backward()
    exact = [layer.detach().double().requires_grad_() for layer in (layers[0], layers[2])]
    wanted = plain_loss(exact, 0.2)
    wanted.backward()
    assert loss.dtype == torch.float64
    assert loss.shape == ()
    narrow = {torch.float64: 1e-12, torch.float32: 1e-6}
    assert loss.item() == pytest.approx(wanted.item(), rel=narrow.get(dtype, 2e-6))
    # A gradient of 16 bits is rounded once; sums are not of 16 bits.
    rounding = narrow.get(dtype, 2**-8 if dtype == torch.bfloat16 else 2**-11)
    for layer, one in zip((layers[0], layers[2]), exact, strict=True):
        assert layer.grad.dtype == dtype
        assert float((layer.grad.double() - one.grad).abs().max() / one.grad.abs().max()) < 2 * rounding
    assert layers[1].grad is None


def test_the_last_layer_by_default() -> None:
    layers = hidden_states()
    assert isotropy_loss(layers, MASK) == isotropy_loss(layers[-1], MASK) == isotropy_loss(list(layers), MASK, layers=2)


def test_vectors_need_no_mask() -> None:
    hidden = hidden_states()[0]
    vectors = masked_mean_pool(hidden, MASK)
    loss = isotropy_loss(vectors, target=-0.1)
    assert loss == isotropy_loss(hidden, MASK, target=-0.1) == (mean_pairwise_cosine(vectors) + 0.1).square()


@pytest.mark.parametrize("target", [-1, 1])
def test_the_ends_can_be_aimed_at(target: int) -> None:
    vectors = normal(5, 4, dtype=torch.float64)
    wanted = (mean_pairwise_cosine(vectors) - target).square()
    assert isotropy_loss(vectors, target=target).item() == pytest.approx(wanted.item())


def test_of_a_batch_without_values_it_has_none() -> None:
    with FakeTensorMode():
        hidden = torch.empty(5, 4, 9, requires_grad=True)
        loss = isotropy_loss(hidden, torch.ones(5, 4, dtype=torch.bool))
        loss.backward()
    assert (type(loss), type(hidden.grad)) == (FakeTensor, FakeTensor)
    assert (loss.shape, hidden.grad.shape) == ((), (5, 4, 9))


def test_gradcheck() -> None:
    hidden = hidden_states()[0].detach()[:, :, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: isotropy_loss((x, x * x), MASK, layers=(0, 1)), hidden)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_sentences_have_the_loss_of_padded_ones(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONE_KERNELS_BACKEND", backend)
    starts = torch.tensor([0, 3, 7, 8, 10], dtype=torch.int32)
    packed = [normal(10, 9, dtype=dtype, seed=seed).requires_grad_() for seed in (3, 4)]
    mask = torch.arange(4) < starts.diff()[:, None]
    padded = []
    for tokens in packed:
        rows = torch.zeros(4, 4, 9, dtype=dtype)
        rows[mask] = tokens.detach()
        padded.append(rows.requires_grad_())
    wanted = isotropy_loss(padded, mask, target=0.1, layers=[0, 1])
    # A batch of one row, as a model gives it, is the same.
    for given in (packed, [tokens[None] for tokens in packed]):
        for tokens in packed:
            tokens.grad = None
        loss = isotropy_loss(given, cu_seqlens=starts, target=0.1, layers=[0, 1])
        assert loss == wanted
        loss.backward()
        if padded[0].grad is None:
            wanted.backward()
        for tokens, rows in zip(packed, padded, strict=True):
            assert torch.equal(tokens.grad, rows.grad[mask])


def loss_of_normalized(x: Tensor, target: float) -> Tensor:
    u = torch.nn.functional.normalize(x, dim=-1)
    cosines = u @ u.mT
    return ((cosines.sum() - cosines.trace()) / (len(x) * (len(x) - 1)) - target) ** 2


@pytest.mark.parametrize("how", ["cpu", "reference", "compiled"])
def test_vectors_near_zero_are_as_normalize_has_them(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter than 1e-12 a vector is divided by that, in the loss and in its gradient."""
    monkeypatch.setenv("CONE_KERNELS_BACKEND", "reference" if how == "reference" else "cpu")
    loss_of = torch.compile(isotropy_loss, backend="aot_eager") if how == "compiled" else isotropy_loss
    lengths = [1.0, 2e-12, 0.999e-12, 1e-13, 1e-20, 1e-150]
    x = normal(6, 9, seed=1) + 0.5
    x = x / x.norm(dim=1, keepdim=True) * torch.tensor(lengths, dtype=torch.float64)[:, None]
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss, wanted = loss_of(ours, target=0.3), loss_of_normalized(plain, 0.3)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    (3 * loss).backward()
    (3 * wanted).backward()
    for got, one in zip(ours.grad, plain.grad, strict=True):
        assert float((got - one).norm()) <= 1e-9 * float(one.norm())
    # Means of tokens likewise; of float32 also where squares are below its range.
    tokens = (torch.tensor([1e-25, 1.0, 2.0])[:, None, None] * normal(3, 2, 4, dtype=torch.float32)).requires_grad_()
    exact = tokens.detach().double().requires_grad_()
    loss_of(tokens, torch.ones(3, 2, dtype=torch.bool)).backward()
    loss_of_normalized(exact.mean(1), 0.0).backward()
    for got, one in zip(tokens.grad, exact.grad, strict=True):
        assert float((got - one).norm()) <= 1e-5 * float(one.norm())


def test_training_reaches_the_target() -> None:
    vectors = normal(40, 8, shift=2.0).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.1)
    assert mean_pairwise_cosine(vectors).item() > 0.7
    for _ in range(200):
        optimizer.zero_grad()
        isotropy_loss(vectors, target=0.25).backward()
        optimizer.step()
    assert mean_pairwise_cosine(vectors).item() == pytest.approx(0.25, abs=1e-3)


def test_sentences_left_out_get_no_gradient() -> None:
    hidden = hidden_states(torch.float32)[0].detach().clone()
    hidden[1, 2, 3] = torch.inf  # a token that counts
    hidden[3] = 0
    mask = MASK.clone()
    mask[0] = 0
    hidden.requires_grad_()
    isotropy_loss(hidden, mask).backward()
    assert bool((hidden.grad[[0, 1, 3]] == 0).all())
    kept = hidden.detach()[[2, 4]].requires_grad_()
    isotropy_loss(kept, mask[[2, 4]]).backward()
    torch.testing.assert_close(hidden.grad[[2, 4]], kept.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [0, 1])
def test_a_batch_without_a_pair_is_nan_and_spoils_no_weight(n: int) -> None:
    weight = torch.eye(6).requires_grad_()
    loss = isotropy_loss(normal(n, 6) @ weight)
    loss.backward()
    assert bool(loss.isnan())
    assert bool((weight.grad == 0).all())


def test_autocast() -> None:
    linear = torch.nn.Linear(9, 9)
    with torch.no_grad():
        linear.weight.copy_(normal(9, 9))
    hidden = hidden_states(torch.float32)[0].detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = linear(hidden)
        assert projected.dtype == torch.bfloat16
        loss = isotropy_loss(projected, MASK)
    loss.backward()
    assert loss.item() == pytest.approx(float(plain_loss([projected.detach()], 0.0)), rel=2e-6)
    assert linear.weight.grad.dtype == torch.float32
    assert bool((linear.weight.grad != 0).any())


@pytest.mark.parametrize("mask", [MASK, MASK.bool()], ids=["int64", "bool"])
def test_compiles_whole(mask: Tensor) -> None:
    def loss(hidden: Tensor, mask: Tensor) -> Tensor:
        return isotropy_loss((hidden, hidden * 2 + 1), mask, target=0.1, layers=[0, 1])

    hidden = hidden_states(torch.float32)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (5, 4, 3):
        part = hidden.detach()[:size].requires_grad_()
        wanted = part.detach().requires_grad_()
        compiled(part, mask[:size]).backward()
        loss(wanted, mask[:size]).backward()
        assert torch.equal(part.grad, wanted.grad)


def test_double_backward_is_refused() -> None:
    hidden = hidden_states()[0]
    (grad,) = torch.autograd.grad(isotropy_loss(hidden, MASK), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is refused"):
        grad.sum().backward()


HIDDEN = torch.zeros(5, 4, 9)


@pytest.mark.parametrize(
    ("hidden", "options", "error", "words"),
    [
        (None, {}, TypeError, "hidden: got NoneType; .* output_hidden_states=True"),
        (HIDDEN.numpy(), {"mask": MASK}, TypeError, "hidden: got ndarray"),
        ((HIDDEN.numpy(),), {"mask": MASK}, TypeError, r"hidden\[0\]: got ndarray"),
        (
            HIDDEN,
            {},
            ValueError,
            r"mask: got None; it must be the attention mask",
        ),
        (HIDDEN[0], {"mask": MASK}, ValueError, "mask: got one; it must be None"),
        (HIDDEN[None], {"mask": MASK}, ValueError, r"hidden: got shape \(1, 5, 4, 9\)"),
        (HIDDEN[0, 0], {}, ValueError, r"hidden: got shape \(9,\)"),
        (HIDDEN.int(), {"mask": MASK}, TypeError, "hidden: got dtype int32"),
        (HIDDEN, {"mask": MASK, "layers": 0}, ValueError, "layers: got 0; .* hidden is one tensor"),
        ((HIDDEN,) * 3, {"mask": MASK, "layers": [3]}, ValueError, "layers: got 3; it must be from -3 to 2"),
        ((HIDDEN,) * 3, {"mask": MASK, "layers": [-4]}, ValueError, "layers: got -4"),
        ((HIDDEN,) * 3, {"mask": MASK, "layers": [1.0]}, ValueError, "layers: got 1.0; it must be from -3 to 2"),
        ((HIDDEN,) * 3, {"mask": MASK, "layers": [0, -3]}, ValueError, "must pick each layer once"),
        ((HIDDEN,) * 3, {"mask": MASK, "layers": []}, ValueError, "layers: got none"),
        ((), {"mask": MASK}, ValueError, "layers: got -1; it must be from 0 to -1"),
        (HIDDEN, {"mask": MASK, "cu_seqlens": MASK[0]}, ValueError, "mask, cu_seqlens: got both"),
        (
            HIDDEN,
            {"cu_seqlens": torch.tensor([0, 4])},
            ValueError,
            r"hidden: got shape \(5, 4, 9\); it must be \(N, D\)",
        ),
        (HIDDEN[0], {"cu_seqlens": torch.tensor([0, 3])}, ValueError, "it must rise from 0 to the number of rows"),
        (HIDDEN, {"mask": MASK * 2}, ValueError, "mask: got values other than 0 and 1"),
        (HIDDEN, {"mask": MASK, "target": 1.5}, ValueError, "target: got 1.5"),
        (HIDDEN, {"mask": MASK, "target": -1.5}, ValueError, "target: got -1.5"),
        (HIDDEN, {"mask": MASK, "target": float("nan")}, ValueError, "target: got nan"),
        (HIDDEN, {"mask": MASK, "target": "1"}, ValueError, "target: got '1'"),
        (HIDDEN, {"mask": MASK, "group": "world"}, TypeError, "group: got str 'world'"),
        (HIDDEN, {"mask": MASK, "group": False}, TypeError, "group: got bool False"),
        (HIDDEN, {"mask": MASK, "group": True}, ValueError, "torch.distributed is not initialized"),
    ],
)
def test_errors_name_the_argument(
    hidden: object, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        isotropy_loss(hidden, **options)  # type: ignore[arg-type]
