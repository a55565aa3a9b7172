"""One level's sums: which rows add to which layers, and copies of them."""

from __future__ import annotations

import re

import pytest
import torch

from cone_kernels import ConeState, Moments
from tests.support.moment_cases import assert_sums_close, normal

LAYERS, DIM = 4, 6


@pytest.mark.parametrize("second_moment", [False, True])
def test_any_run_of_layers_adds_to_its_own_sums(second_moment: bool) -> None:
    x, groups = normal(LAYERS, 9, DIM), torch.arange(9)
    together = Moments.empty("sentence", range(LAYERS), DIM, second_moment=second_moment)
    apart = [Moments.empty("sentence", [layer], DIM, second_moment=second_moment) for layer in range(LAYERS)]
    runs = [slice(None), slice(0, 2), slice(1, 4), slice(0, 4), slice(2, 4), slice(2, 3), slice(1, None), slice(None)]
    for at in runs:
        together.add_rows(at, x[at], groups, "auto")
        for layer in range(LAYERS)[at]:
            apart[layer].add_rows(slice(None), x[layer : layer + 1], groups, "auto")
    for layer, wanted in enumerate(apart):
        assert_sums_close(together.select(layer).sums, wanted.sums, 4e-7)


@pytest.mark.parametrize("shape", [(2, 5, DIM, 3), (5, DIM), (1, 5, DIM), (3, 5, DIM), (2, 5, 7), (DIM,)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"x: got shape {shape}; it must be (L, n, d)")):
        Moments.empty("sentence", [0, 1], DIM).update(torch.ones(shape))


def test_a_settled_copy_is_where_it_is_asked_for_and_has_its_own_memory() -> None:
    state = ConeState.empty(range(2), DIM, second_moment=True, poolings=["cls"])
    hidden, mask = list(normal(2, 5, 3, DIM)), torch.ones(5, 3)
    mask[4] = 0
    state.update(hidden, mask)
    state.add_output(hidden[0][:, 0], torch.arange(5))
    for asked, device in ((None, "cpu"), ("cpu", "cpu"), ("meta", "meta")):
        copied = state.settled(asked)
        assert list(copied.all_moments) == list(state.all_moments)
        places = {value.device.type for moments in copied.all_moments.values() for value in moments.sums.values()}
        assert places | {copied.first_left_out.device.type} == {device}
    copied, before = state.settled(), state.fingerprint()
    assert copied.fingerprint() == before
    state.update(hidden, mask)
    state.add_output(hidden[0][:, 0], torch.arange(5))
    assert copied.fingerprint() == before != state.fingerprint()


def test_on_a_cpu_a_state_is_itself() -> None:
    state = ConeState.empty(range(2), DIM)
    assert state.on_cpu() is state
    assert state.token.on_cpu() is state.token
