"""IsoScore*, uniformity and alignment over the vectors of all ranks: those of one process with the whole batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cone_kernels import alignment_loss, isoscore_loss, isotropy_loss, uniformity_loss
from tests.loss.test_isotropy_distributed import PARTS, SENTENCES, WIDTH, batch, gradients, tiny_model
from tests.support.gloo_ranks import run_ranks
from tests.support.moment_cases import normal

NAMES = ("isoscore", "isoscore of tokens", "isoscore with a reference", "uniformity", "uniformity, t=40", "alignment")


def pairs_of(first: int, end: int) -> Tensor:
    """Pairs of neighbours among the sentences from `first` on, by their indices there; of some none."""
    every = torch.stack([torch.arange(first, end - 1), torch.arange(first + 1, end)], 1) if end - first > 1 else None
    return torch.zeros(0, 2, dtype=torch.int64) if every is None else every


def losses(pairs: Tensor, **options: Any) -> dict[str, Callable[..., Tensor]]:
    """By name; each takes hidden states and a mask."""
    both = torch.stack([torch.eye(WIDTH), torch.diag(torch.linspace(0.5, 2, WIDTH))])
    found: dict[str, Callable[..., Tensor]] = {
        "isoscore": isoscore_loss,
        "isoscore of tokens": functools.partial(isoscore_loss, level="token", target=0.3),
        "isoscore with a reference": functools.partial(isoscore_loss, reference=both, shrinkage=0.4),
        "uniformity": uniformity_loss,
        "uniformity, t=40": functools.partial(uniformity_loss, t=40.0),
        "alignment": functools.partial(alignment_loss, pairs=pairs, alpha=1.5),
    }
    return {name: functools.partial(loss, layers=[0, 1], **options) for name, loss in found.items()}


def answers_of(model: nn.Module, inputs: Tensor, mask: Tensor, found: dict[str, Any]) -> dict[str, Any]:
    answers = {}
    for name, loss_of in found.items():
        model.zero_grad()
        output = model(inputs)
        loss = loss_of((inputs + output, output), mask)
        loss.backward()
        answers[name] = (loss.item(), [gradient.clone() for gradient in gradients(model)])
    return answers


def train_part(sizes: list[int]) -> dict[str, Any]:
    rank = dist.get_rank()
    inputs, mask = (tensor.split(sizes)[rank] for tensor in batch())
    found = losses(pairs_of(0, sizes[rank]), group=True)
    return answers_of(DistributedDataParallel(tiny_model()), inputs, mask, found)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_losses_and_gradients_under_ddp_are_those_of_one_process(parts: list[int]) -> None:
    ends = torch.tensor(parts).cumsum(0).tolist()
    pairs = torch.cat([pairs_of(end - n, end) for n, end in zip(parts, ends, strict=True)])
    assert ends[-1] == SENTENCES
    wanted = answers_of(tiny_model(), *batch(), losses(pairs))
    for answers in run_ranks(train_part, len(parts), parts):
        assert set(answers) == set(NAMES)
        for name, (loss, own) in answers.items():
            of_one, whole = wanted[name]
            assert loss == pytest.approx(of_one, rel=1e-6), name
            for got, right in zip(own, whole, strict=True):
                # DDP adds the ranks' float32 gradients; those of a layer's last bias are zero but for rounding.
                assert float((got - right).abs().max()) < 2e-6 * max(float(one.abs().max()) for one in whole), name


def vectors(n: int, seed: int = 0) -> Tensor:
    """Vectors (n, WIDTH) whose third is zero, whose fourth is not finite and whose fifth is nearly zero."""
    rows = normal(n, WIDTH, dtype=torch.float64, seed=seed)
    rows[2], rows[3, 1] = 0, math.inf
    rows[4] *= 1e-14
    return rows


ON_VECTORS: dict[str, Callable[..., Tensor]] = {
    "isoscore": isoscore_loss,
    "reference": functools.partial(isoscore_loss, reference=torch.eye(WIDTH), shrinkage=0.4, target=0.1),
    "uniformity": uniformity_loss,
    "far": functools.partial(uniformity_loss, t=1000.0),
    "alignment": functools.partial(alignment_loss, pairs=torch.tensor([[0, 1]])),
}

COMPILED = ("reference", "uniformity")


def shares(sizes: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, loss_of in ON_VECTORS.items():
        own = vectors(sum(sizes)).split(sizes)[dist.get_rank()].clone().requires_grad_()
        loss = loss_of(own, group=dist.group.WORLD)
        loss.backward()
        found[name] = (loss.detach(), own.grad)
    return found


def test_each_rank_s_gradient_is_w_times_its_share() -> None:
    answers = run_ranks(shares, 2, [4, 9])
    for name, loss_of in ON_VECTORS.items():
        whole = vectors(13).requires_grad_()
        pairs_of_both = {"pairs": torch.tensor([[0, 1], [4, 5]])} if name == "alignment" else {}
        loss = loss_of(whole, **pairs_of_both)
        loss.backward()
        assert bool(whole.grad[[0, 1, 5]].any(1).all()), name
        assert not bool(whole.grad[[2, 3]].any()), name
        assert answers[0][name][0] == answers[1][name][0]
        assert float(answers[0][name][0]) == pytest.approx(loss.item(), rel=1e-13), name
        got = torch.cat([answer[name][1] for answer in answers])
        torch.testing.assert_close(got, 2 * whole.grad, rtol=1e-11, atol=1e-14 * float(whole.grad.abs().max()))


def far_away(n: int) -> Tensor:
    """Vectors whose variance is 1e-12 of their length squared: sums of squares would lose it."""
    return 1e6 + normal(n, WIDTH, dtype=torch.float64, seed=5)


def odd_cases() -> dict[str, Any]:
    rank = dist.get_rank()
    found: dict[str, Any] = {}
    # A vector each: a pair in all, though none on any rank.
    single = normal(2, WIDTH, dtype=torch.float64)[rank : rank + 1].requires_grad_()
    loss = uniformity_loss(single, group=True)
    loss.backward()
    found["pair"] = (loss.item(), single.grad)
    # One in all; none in all; vectors that are alike on both ranks; pairs of none.
    nobody = torch.zeros(0, 2, dtype=torch.int64)
    undefined = {
        "one, isoscore": (isoscore_loss, normal(1 - rank, WIDTH)),
        "one, uniformity": (uniformity_loss, normal(1 - rank, WIDTH)),
        "none, isoscore": (isoscore_loss, torch.ones(0, WIDTH)),
        "none, uniformity": (uniformity_loss, torch.ones(0, WIDTH)),
        "alike": (isoscore_loss, torch.full((3, WIDTH), 0.1)),
        # The mean of seven numbers of all digits is not exactly that number.
        "alike to the last digit": (isoscore_loss, torch.full((3 + rank, WIDTH), 0.3, dtype=torch.float64)),
        "no pairs": (functools.partial(alignment_loss, pairs=nobody), normal(3, WIDTH)),
    }
    for name, (loss_of, rows) in undefined.items():
        weight = torch.eye(WIDTH, dtype=rows.dtype).requires_grad_()
        loss = loss_of(rows @ weight, group=True)
        loss.backward()
        found[name] = (loss.item(), bool(weight.grad.nan_to_num(1.0).any()))
    # Each rank's vectors are alike, and the ranks' are not: they vary.
    found["alike on each"] = isoscore_loss(torch.eye(2, WIDTH)[rank].expand(3, WIDTH), group=True).item()
    found["far away"] = isoscore_loss(far_away(6).split(3)[rank], group=True).item()
    # Vectors of one rank that need no gradient leave no rank waiting.
    for name, loss_of in ON_VECTORS.items():
        frozen = vectors(6, seed=rank).requires_grad_(rank == 0)
        loss = loss_of(frozen, group=True)
        if rank == 0:
            loss.backward()
        found[f"frozen, {name}"] = (loss.item(), frozen.grad is not None and bool(frozen.grad.any()))
        if name in COMPILED:
            together = functools.partial(loss_of, group=True)
            compiled = torch.compile(together, backend="aot_eager") if rank == 0 else together
            found[f"compiled, {name}"] = compiled(frozen).item()
    # A group of one rank.
    groups = [dist.new_group([0]), dist.new_group([1])]
    for name, loss_of in ON_VECTORS.items():
        rows = normal(3, WIDTH, dtype=torch.float64, seed=rank).requires_grad_()
        alone = functools.partial(loss_of, group=groups[rank])
        found[f"own group, {name}"] = (alone(rows).item(), loss_of(rows).item())
        found[f"gradcheck, {name}"] = name == "far" or torch.autograd.gradcheck(alone, rows)
        (slope,) = torch.autograd.grad(alone(rows), rows, create_graph=True)
        try:
            slope.sum().backward()
        except RuntimeError as error:
            found[f"twice, {name}"] = str(error)
        try:
            loss_of(rows, group=groups[1 - rank])
        except ValueError as error:
            found[f"other group, {name}"] = str(error)
    return found


def test_odd_cases() -> None:
    first, second = run_ranks(odd_cases, 2)
    pair = normal(2, WIDTH, dtype=torch.float64).requires_grad_()
    loss = uniformity_loss(pair)
    loss.backward()
    assert first["pair"][0] == second["pair"][0] == pytest.approx(loss.item(), rel=1e-13)
    torch.testing.assert_close(torch.cat([first["pair"][1], second["pair"][1]]), 2 * pair.grad, rtol=1e-12, atol=1e-15)

    of_each = torch.eye(2, WIDTH, dtype=torch.float64)[[0, 0, 0, 1, 1, 1]]
    for rank, found in enumerate((first, second)):
        names = ("one, isoscore", "one, uniformity", "none, isoscore", "none, uniformity", "alike", "no pairs")
        for name in (*names, "alike to the last digit"):
            loss, spoilt = found[name]
            assert math.isnan(loss), name
            assert not spoilt, name
        assert found["alike on each"] == pytest.approx(isoscore_loss(of_each).item(), rel=1e-12)
        assert found["far away"] == pytest.approx(isoscore_loss(far_away(6)).item(), rel=1e-6)
        for name, loss_of in ON_VECTORS.items():
            whole = torch.cat([vectors(6, seed=0), vectors(6, seed=1)])
            pairs = {"pairs": torch.tensor([[0, 1], [6, 7]])} if name == "alignment" else {}
            loss, moved = found[f"frozen, {name}"]
            assert loss == pytest.approx(loss_of(whole, **pairs).item(), rel=1e-12), name
            assert moved == (rank == 0)
            assert name not in COMPILED or found[f"compiled, {name}"] == loss
            own, plain = found[f"own group, {name}"]
            assert own == pytest.approx(plain, rel=1e-13), name
            assert found[f"gradcheck, {name}"]
            assert "once_differentiable" in found[f"twice, {name}"]
            assert (
                found[f"other group, {name}"]
                == "group: got a process group that this rank is not in; it must be its own"
            )


@pytest.mark.parametrize("loss_of", ON_VECTORS.values(), ids=ON_VECTORS.keys())
@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        ("world", TypeError, "group: got str 'world'"),
        (False, TypeError, "group: got bool False"),
        (True, ValueError, "torch.distributed is not initialized"),
    ],
)
def test_a_wrong_group_is_refused(
    loss_of: Callable[..., Tensor], group: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        loss_of(vectors(6), group=group)


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """This process alone as the default process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


NO_ROWS, ONE_ROW, ALIKE = torch.ones(0, 3), torch.ones(1, 3), torch.full((4, 3), 0.1)


@pytest.mark.usefixtures("group_of_one")
def test_the_loss_of_a_group_of_one_is_that_of_its_process() -> None:
    of_vectors: dict[str, Callable[..., Tensor]] = {
        **ON_VECTORS,
        "isotropy": functools.partial(isotropy_loss, target=0.3),
        "two layers": lambda rows, **options: isoscore_loss((rows, rows + 1), layers=[0, 1], **options),
        "two layers, uniformity": lambda rows, **options: uniformity_loss((rows, rows + 1), layers=[0, 1], **options),
    }
    for name, loss_of in of_vectors.items():
        both = []
        for options in ({"group": True}, {}):
            rows = vectors(9)[[3, 2, 0, 1, 4, 5, 6, 7, 8]].requires_grad_()  # the first two are not used
            of_pairs = {"pairs": torch.tensor([[2, 3], [0, 4]])} if name == "alignment" else {}
            loss = loss_of(rows, **options, **of_pairs)
            loss.backward()
            both.append((loss.item(), rows.grad))
        (loss_of_group, slope_of_group), (alone, slope) = both
        assert loss_of_group == pytest.approx(alone, rel=1e-12), name
        torch.testing.assert_close(slope_of_group, slope, rtol=1e-10, atol=1e-14 * float(slope.abs().max()))
    undefined: list[tuple[Callable[..., Tensor], Tensor]] = [
        *(
            (loss_of, rows)
            for loss_of in (isotropy_loss, isoscore_loss, uniformity_loss)
            for rows in (NO_ROWS, ONE_ROW)
        ),
        (isoscore_loss, ALIKE),
        (isoscore_loss, torch.full((9, 3), 0.3, dtype=torch.float64)),  # whose mean is not exactly that number
        (functools.partial(alignment_loss, pairs=torch.zeros(0, 2, dtype=torch.int64)), ALIKE),
    ]
    for loss_of, rows in undefined:
        weight = torch.eye(3, dtype=rows.dtype).requires_grad_()
        loss = loss_of(rows @ weight, group=True)
        loss.backward()
        assert math.isnan(loss.item())
        assert not bool(weight.grad.nan_to_num(1.0).any())
    assert uniformity_loss(ALIKE, group=True).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.usefixtures("group_of_one")
def test_layers_of_two_widths_have_no_sums_in_common() -> None:
    with pytest.raises(ValueError, match="hidden: got layers of width 4 and 3; it must be one width"):
        isotropy_loss((torch.eye(4), torch.eye(4)[:, :3]), layers=[0, 1], group=True)
