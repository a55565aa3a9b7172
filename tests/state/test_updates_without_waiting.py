"""An update of a state on a GPU must not wait for it: the same code on the CPU, told that every look costs a wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cone_kernels import ConeState
from cone_kernels.state import cone_state as moments
from cone_kernels.state import sentence_batch
from cone_kernels.state.sentence_batch import SentenceBatch
from tests.support.moment_cases import normal

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
    "equal",
    "is_nonzero",
}


class NoWaiting(TorchDispatchMode):
    """Raises where an op's result has to be known on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
        )
        if name in WAITING or by_mask:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def batch(seed: int) -> tuple[SentenceBatch, list[Tensor]]:
    hidden = normal(2, 30, 6, 16, seed=seed)
    hidden[0, 3, 0], hidden[1, 4, 0, 2], hidden[1, 5] = 0, torch.nan, 0
    mask = torch.rand(30, 6, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[7], mask[3:6, 0] = False, True
    ids = torch.arange(30) * 3 + 90 * seed
    return SentenceBatch.of(hidden[0], mask, None, ids), list(hidden.unbind(0))


def fingerprint_of(batches: list[tuple[SentenceBatch, list[Tensor]]], mode: Any) -> tuple[str, list[list[int]]]:
    state = ConeState.empty(range(2), 16, second_moment=True, unit_second_moment=True)
    with mode:
        for one, hidden in batches:
            state.add(one, hidden, state.layers)
    return state.fingerprint(), state.first_left_out.tolist()


@pytest.fixture
def looks_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (moments, sentence_batch):
        monkeypatch.setattr(module, "read_is_free", lambda tensor: False)


def test_no_op_waits_and_the_state_is_the_same(looks_cost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch(seed) for seed in range(40)]  # 1200 rows: two products of 512 and a rest
    without = fingerprint_of(batches, NoWaiting())
    monkeypatch.undo()
    assert fingerprint_of([batch(seed) for seed in range(40)], torch.no_grad()) == without
    assert without[1][0][:3] == [9, 21, 99]


def test_the_check_finds_what_waits() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        bool(torch.ones(1).any())
    rows = torch.ones(3)
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        rows[rows > 0]
    with pytest.raises(AssertionError, match="waits for the device"):
        fingerprint_of([batch(0)], NoWaiting())
