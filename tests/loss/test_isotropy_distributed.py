from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cone_kernels import isotropy_loss, mean_pairwise_cosine
from tests.support.gloo_ranks import run_ranks
from tests.support.moment_cases import normal

SENTENCES, TOKENS, WIDTH = 11, 5, 16
# How many of the sentences each rank has, by the number of ranks.
PARTS = {"ragged 2": [7, 4], "ragged 3": [2, 8, 1], "one empty": [5, 0, 6], "one alone": [11]}


def tiny_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDTH, 24), nn.Tanh(), nn.Linear(24, WIDTH))


def batch() -> tuple[Tensor, Tensor]:
    lengths = torch.arange(SENTENCES) % TOKENS + 1
    return normal(SENTENCES, TOKENS, WIDTH, seed=1), torch.arange(TOKENS) < lengths[:, None]


def loss_of(model: nn.Module, inputs: Tensor, mask: Tensor, group: object) -> Tensor:
    output = model(inputs)
    return isotropy_loss((inputs + output, output), mask, target=-0.05, layers=[0, 1], group=group)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def train_part(sizes: list[int]) -> tuple[float, list[Tensor]]:
    inputs, mask = (tensor.split(sizes)[dist.get_rank()] for tensor in batch())
    model = DistributedDataParallel(tiny_model())
    loss = loss_of(model, inputs, mask, True)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_loss_and_gradients_under_ddp_are_those_of_one_process(parts: list[int]) -> None:
    model = tiny_model()
    loss = loss_of(model, *batch(), None)
    loss.backward()
    for rank_loss, rank_gradients in run_ranks(train_part, len(parts), parts):
        assert rank_loss == pytest.approx(loss.item(), rel=1e-6)
        for got, wanted in zip(rank_gradients, gradients(model), strict=True):
            assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-6


def one_near_zero(n: int, dtype: torch.dtype) -> Tensor:
    """Vectors (n, WIDTH), the third so short that it is no longer made a unit vector."""
    vectors = normal(n, WIDTH, dtype=dtype)
    vectors[2] *= 1e-14
    return vectors


def vectors_of_part(sizes: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    vectors = one_near_zero(sum(sizes), dtype).split(sizes)[dist.get_rank()].clone().requires_grad_()
    loss = isotropy_loss(vectors, group=dist.group.WORLD)
    loss.backward()
    return loss.detach(), vectors.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_each_rank_s_gradient_is_w_times_its_share(dtype: torch.dtype) -> None:
    vectors = one_near_zero(7, dtype).requires_grad_()
    loss = isotropy_loss(vectors)
    loss.backward()
    answers = run_ranks(vectors_of_part, 2, [3, 4], dtype)
    # Rows of 16 bits are summed in float32 by the dozen, and the dozens are others where ranks share the rows.
    loss_error = 1e-6 if dtype == torch.bfloat16 else 1e-14
    assert all(float(rank_loss) == pytest.approx(loss.item(), rel=loss_error) for rank_loss, _ in answers)
    got = torch.cat([grad for _, grad in answers])
    wanted = 2 * vectors.grad  # doubling changes no digit
    relative = 2**-7 if dtype == torch.bfloat16 else 1e-13
    torch.testing.assert_close(got, wanted, rtol=relative, atol=relative * 1e-3)


def vectors_of_rank(rank: int) -> Tensor:
    return normal(4, WIDTH, dtype=torch.float64, seed=rank)


def odd_cases() -> dict[str, object]:
    rank = dist.get_rank()
    found: dict[str, object] = {}
    # A vector each: a pair in all, though none on any rank.
    single = normal(2, WIDTH, dtype=torch.float64)[rank : rank + 1].requires_grad_()
    loss = isotropy_loss(single, group=True)
    loss.backward()
    found["pair"] = (loss.item(), single.grad)
    # One in all: no pair.
    alone = normal(1 - rank, WIDTH).requires_grad_()
    loss = isotropy_loss(alone, group=True)
    loss.backward()
    found["no pair"] = (loss.item(), alone.grad)
    # Vectors of one rank that need no gradient leave no rank waiting.
    frozen = vectors_of_rank(rank).requires_grad_(rank == 0)
    loss = isotropy_loss(frozen, group=True)
    if rank == 0:
        loss.backward()
    found["frozen"] = (loss.item(), frozen.grad)
    # A group of one rank.
    groups = [dist.new_group([0]), dist.new_group([1])]
    found["own group"] = float(isotropy_loss(vectors_of_rank(rank), group=groups[rank]))
    try:
        isotropy_loss(vectors_of_rank(rank), group=groups[1 - rank])
    except ValueError as error:
        found["other group"] = str(error)
    compiled = torch.compile(functools.partial(isotropy_loss, group=True), backend="aot_eager")
    found["compiled"] = float(compiled(vectors_of_rank(rank)))
    return found


def test_odd_cases() -> None:
    first, second = run_ranks(odd_cases, 2)
    pair = normal(2, WIDTH, dtype=torch.float64).requires_grad_()
    loss = isotropy_loss(pair)
    loss.backward()
    assert first["pair"][0] == second["pair"][0] == pytest.approx(loss.item(), rel=1e-13)
    torch.testing.assert_close(torch.cat([first["pair"][1], second["pair"][1]]), 2 * pair.grad, rtol=1e-12, atol=1e-15)

    assert str(first["no pair"][0]) == str(second["no pair"][0]) == "nan"
    assert bool((first["no pair"][1] == 0).all())
    assert second["no pair"][1].shape == (0, WIDTH)

    both = [vectors_of_rank(rank) for rank in range(2)]
    of_both = float(mean_pairwise_cosine(torch.cat(both)) ** 2)
    for found in (first, second):
        assert found["frozen"][0] == found["compiled"] == pytest.approx(of_both, rel=1e-12)
    assert bool((first["frozen"][1] != 0).all())
    assert second["frozen"][1] is None
    for rank, found in enumerate((first, second)):
        assert found["own group"] == pytest.approx(float(mean_pairwise_cosine(both[rank]) ** 2), rel=1e-12)
        assert found["other group"] == "group: got a process group that this rank is not in; it must be its own"
