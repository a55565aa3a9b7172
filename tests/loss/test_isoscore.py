"""IsoScore* as a loss: against its authors' package and a plain decomposition, and its gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels import isoscore_loss, masked_mean_pool, metrics
from tests.loss.batches import MASK, STARTS, packed_and_padded
from tests.support.moment_cases import DTYPES, normal


def decomposed(rows: Tensor, reference: Tensor | None = None, shrinkage: float = 0.0) -> float:
    """IsoScore* step by step as published, by eigenvalues."""
    covariance = torch.cov(rows.double().mT)
    d = len(covariance)
    if reference is not None:
        covariance = (1 - shrinkage) * covariance + shrinkage * reference.double()
    values = torch.linalg.eigvalsh(covariance)
    normalized = math.sqrt(d) * values / values.norm()
    defect = (normalized - 1).norm() / math.sqrt(2 * (d - math.sqrt(d)))
    used = (d - defect**2 * (d - math.sqrt(d))) ** 2 / d**2
    return float((d * used - 1) / (d - 1))


def spread(n: int, d: int, seed: int = 0) -> Tensor:
    return normal(n, d, dtype=torch.float64, seed=seed) * torch.linspace(0.3, 3, d, dtype=torch.float64)


def reference_of(d: int) -> Tensor:
    return torch.cov(spread(200, d, seed=9).mT)


@pytest.mark.parametrize("n", [2, 4, 40])  # fewer vectors than dimensions, and more
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_equals_the_published_steps(n: int, shrinkage: float) -> None:
    rows = spread(n, 7)
    reference = reference_of(7) if shrinkage else None
    wanted = decomposed(rows, reference, shrinkage)
    loss = isoscore_loss(rows, reference=reference, shrinkage=shrinkage)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(1 - wanted, rel=1e-12)
    aimed = isoscore_loss(rows, reference=reference, shrinkage=shrinkage, target=0.9)
    assert aimed.item() == pytest.approx((wanted - 0.9) ** 2, rel=1e-12)


def test_value_and_gradient_are_those_of_the_authors_package() -> None:
    from IsoScore.IsoScore import istar

    rows, reference = spread(60, 9).requires_grad_(), reference_of(9)
    theirs = istar().IsoScore_star(rows, reference, 0.4, is_eval=False)
    (slope,) = torch.autograd.grad(theirs, rows)
    ours = isoscore_loss(rows, reference=reference, shrinkage=0.4)
    (own,) = torch.autograd.grad(ours, rows)
    # The package takes the root of the width in float32.
    assert 1 - ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert float((own + slope).abs().max()) <= 1e-6 * float(slope.abs().max())


def test_without_shrinkage_it_is_the_metric() -> None:
    rows = spread(40, 7)
    assert 1 - isoscore_loss(rows).item() == pytest.approx(float(metrics.iso_score(torch.cov(rows.mT))), rel=1e-12)


@pytest.mark.parametrize(("n", "level"), [(2, "token"), (3, "sentence"), (5, "sentence")])
def test_gradcheck(n: int, level: str) -> None:
    hidden = normal(n, 4, 4, dtype=torch.float64).requires_grad_()
    mask = MASK[:n]

    def loss(x: Tensor) -> Tensor:
        both = torch.stack([reference_of(4), torch.eye(4)])
        options = {"level": level, "target": 0.2, "layers": (0, 1)}
        return isoscore_loss((x, x * x), mask, reference=both, shrinkage=0.5, **options) + isoscore_loss(x, mask)

    assert torch.autograd.gradcheck(loss, hidden)


def test_both_signs_of_the_regulariser() -> None:
    """Minimised it spreads vectors evenly, maximised it draws them onto fewer directions."""
    found = {}
    for sign in (1, -1):
        rows = spread(60, 6).requires_grad_()
        optimizer = torch.optim.Adam([rows], lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            (sign * isoscore_loss(rows, reference=reference_of(6), shrinkage=0.2)).backward()
            optimizer.step()
        found[sign] = 1 - isoscore_loss(rows).item()
    before = 1 - isoscore_loss(spread(60, 6)).item()
    assert found[-1] < before / 2
    assert found[1] > before * 1.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padded_and_packed_batches(dtype: torch.dtype) -> None:
    packed, padded, mask = packed_and_padded(dtype)
    losses = {
        level: (isoscore_loss(padded, mask, level=level), isoscore_loss(packed[None], cu_seqlens=STARTS, level=level))
        for level in ("sentence", "token")
    }
    for of_padded, of_packed in losses.values():
        assert of_padded.item() == pytest.approx(of_packed.item(), rel=1e-14)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    vectors = masked_mean_pool(padded.detach().double(), mask)
    assert losses["sentence"][0].item() == pytest.approx(1 - decomposed(vectors), rel=tolerance)
    assert losses["token"][0].item() == pytest.approx(1 - decomposed(packed.detach()), rel=tolerance)
    for of_padded, of_packed in losses.values():
        packed.grad = padded.grad = None
        of_padded.backward()
        of_packed.backward()
        assert packed.grad.dtype == dtype
        torch.testing.assert_close(packed.grad, padded.grad[mask])
        assert not bool(padded.grad[~mask].any())


def test_vectors_left_out_get_no_gradient() -> None:
    rows = spread(9, 4)
    rows[2], rows[5, 1] = 0, math.nan
    rows.requires_grad_()
    loss = isoscore_loss(rows)
    loss.backward()
    kept = [0, 1, 3, 4, 6, 7, 8]
    assert loss.item() == pytest.approx(1 - decomposed(rows.detach()[kept]), rel=1e-12)
    assert not bool(rows.grad[[2, 5]].any())
    assert bool(rows.grad[kept].all())


@pytest.mark.parametrize("rows", [torch.ones(0, 4), torch.ones(1, 4), torch.full((7, 4), 0.1), normal(5, 1)])
def test_what_is_not_defined_is_nan_and_spoils_no_weight(rows: Tensor) -> None:
    weight = torch.eye(rows.shape[1]).requires_grad_()
    loss = isoscore_loss(rows @ weight)
    loss.backward()
    assert math.isnan(loss.item())
    assert not bool(weight.grad.nan_to_num(1.0).any())


def test_compiles_whole_and_under_autocast() -> None:
    rows, reference = spread(12, 5).float(), reference_of(5)

    def loss(x: Tensor) -> Tensor:
        return isoscore_loss(x, reference=reference, shrinkage=0.1, target=0.5)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(rows) == compiled(rows) == loss(rows.double())
    compiled = torch.compile(isoscore_loss, backend="aot_eager")
    assert compiled(rows) == isoscore_loss(rows)
    for shrinkage in (0.1, 0.2, 0.3):  # from the second on, a number that is not known
        options = {"reference": reference, "shrinkage": shrinkage}
        assert compiled(rows, **options).item() == pytest.approx(isoscore_loss(rows, **options).item(), rel=1e-14)


ROWS = torch.ones(6, 3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": 1.5}, ValueError, "target: got 1.5"),
        ({"target": -0.1}, ValueError, "target: got -0.1"),
        ({"target": float("nan")}, ValueError, "target: got nan"),
        ({"target": "1"}, ValueError, "target: got '1'"),
        ({"level": "word"}, ValueError, "level: got 'word'"),
        ({"shrinkage": 1.0, "reference": torch.eye(3)}, ValueError, "shrinkage: got 1.0"),
        ({"shrinkage": -0.1}, ValueError, "shrinkage: got -0.1"),
        ({"shrinkage": "0"}, ValueError, "shrinkage: got '0'"),
        ({"shrinkage": 0.1}, ValueError, "reference: got none with shrinkage 0.1"),
        ({"reference": torch.eye(3)}, ValueError, "reference: got one with shrinkage 0.0"),
        ({"shrinkage": 0.1, "reference": torch.eye(4)}, ValueError, r"reference: got shape \(4, 4\)"),
        ({"shrinkage": 0.1, "reference": torch.eye(3).int()}, TypeError, "reference: got Tensor"),
        ({"shrinkage": 0.1, "reference": [[1.0]]}, TypeError, "reference: got list"),
        ({"shrinkage": 0.1, "reference": torch.eye(3) / 0}, ValueError, "reference: got values that are not finite"),
        ({"mask": MASK}, ValueError, "mask: got one; it must be None"),
    ],
)
def test_errors_name_the_argument(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        isoscore_loss(ROWS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["sentence", "token"])
def test_packed_tokens_must_all_be_in_a_sentence(level: Any) -> None:
    with pytest.raises(ValueError, match=r"cu_seqlens: .*must rise from 0 to the number of rows"):
        isoscore_loss(ROWS, cu_seqlens=torch.tensor([0, 3]), level=level)


@pytest.mark.parametrize("target", [0, 1])
def test_the_ends_can_be_aimed_at(target: int) -> None:
    rows = spread(9, 4)
    assert isoscore_loss(rows, target=target).item() == pytest.approx((decomposed(rows) - target) ** 2)


def test_two_vectors_vary_in_one_direction() -> None:
    assert isoscore_loss(torch.eye(3)[:2]).item() == pytest.approx(1, abs=1e-12)


def test_a_reference_is_for_layers_of_its_width() -> None:
    layers = [torch.eye(4)[:, :3], torch.eye(4)]
    words = r"reference: got shape \(3, 3\); it must be \(3, 3\), or \(2, 3, 3\) for 2 layers of one width"
    with pytest.raises(ValueError, match=words):
        isoscore_loss(layers, layers=[0, 1], reference=torch.eye(3), shrinkage=0.5)
