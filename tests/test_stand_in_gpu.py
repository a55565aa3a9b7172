"""The stand-in refuses what CUDA refuses, and counts launches and waits as a GPU would have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.stand_in_gpu import Work, stand_in_gpu


@pytest.fixture
def work() -> Iterator[Work]:
    with stand_in_gpu() as found:
        yield found


def test_tensors_say_that_they_are_on_the_gpu(work: Work) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    for moved in (x.to("cuda"), x.cuda(), torch.tensor([[1.0]], device="cuda"), torch.zeros(2, 2, device="cuda:0")):
        assert (moved.device, moved.is_cuda) == (torch.device("cuda:0"), True)
        assert (moved + 1).sum().device == torch.device("cuda:0")
        assert moved.cpu().device == torch.device("cpu")
    moved = x.to("cuda")
    moved += 1
    moved[0] = 7
    assert moved.tolist() == [[7.0, 7.0, 7.0], [4.0, 5.0, 6.0]]
    assert x.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    linear = torch.nn.Linear(3, 2).to("cuda")
    assert linear(moved).device == torch.device("cuda:0")


REFUSED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "sum of both": lambda gpu, cpu: gpu + cpu,
    "in place": lambda gpu, cpu: gpu.add_(cpu),
    "product": lambda gpu, cpu: gpu @ cpu,
    "cat": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "where": lambda gpu, cpu: torch.where(gpu > 0, cpu, gpu),
    "indexed by the gpu": lambda gpu, cpu: cpu[gpu.long()[0] * 0],
    "values of an assignment": lambda gpu, cpu: gpu.index_put_((torch.tensor([0]),), cpu[:1]),
    "integers multiplied": lambda gpu, cpu: gpu.long() @ gpu.long(),
    "numpy": lambda gpu, cpu: gpu.numpy(),
    "array": lambda gpu, cpu: np.asarray(gpu),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses(what: str, work: Work) -> None:
    x = torch.ones(3, 3)
    with pytest.raises((RuntimeError, TypeError), match=r"same device|can't convert|not implemented"):
        REFUSED[what](x.cuda(), x)


def test_what_cuda_takes_from_the_cpu(work: Work) -> None:
    x = torch.ones(3, 3, device="cuda")
    assert (x * torch.tensor(2.0)).tolist()[0] == [2.0, 2.0, 2.0]
    assert x[torch.tensor([0, 1])].shape == (2, 3)
    x.copy_(torch.zeros(3, 3))
    assert not bool(x.any())


def test_waits_and_launches(work: Work) -> None:
    x = torch.ones(3, 3).to("cuda", non_blocking=True)
    y = (x.view(9)[:6] * 2).exp()
    assert (sum(work.waits.values()), work.launches["aten.mul"], work.launches["aten.exp"]) == (0, 1, 1)
    for wait in (lambda: y.cpu(), lambda: float(y[0]), lambda: x[x > 0], lambda: x.nonzero(), lambda: bool(y.any())):
        before = sum(work.waits.values())
        wait()
        assert sum(work.waits.values()) == before + 1
