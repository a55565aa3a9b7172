"""A state without layers holds given vectors alone; it merges, is written and is read as any state."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from cone_kernels import ConeState
from cone_kernels.state.cone_state import Moments
from cone_kernels.state.file import StateFileError
from tests.support.moment_cases import normal


def state_of(rows: torch.Tensor, first: int = 0, **options: bool) -> ConeState:
    state = ConeState.of_vectors(rows.shape[1], info={"vectors": {"dim": rows.shape[1]}}, **options)
    state.add_output(rows, torch.arange(first, first + len(rows)))
    return state


@pytest.mark.parametrize("second_moment", [False, True])
def test_the_output_has_the_sums_of_the_vectors(second_moment: bool) -> None:
    rows = normal(700, 6)
    rows[3] = 0
    state = state_of(rows, second_moment=second_moment)
    wanted = Moments.empty("sentence", [0], 6, second_moment=second_moment)
    wanted.update(rows)
    assert state.output is not None
    assert state.output.fingerprint() == wanted.fingerprint()
    assert state.layers == state.sentence.layers == state.token.layers == ()
    assert state.first_left_out.shape == (0, 8)


def test_it_merges_and_is_copied_as_any_state(tmp_path: Path) -> None:
    rows = normal(40, 5, dtype=torch.float64)
    state, rest = state_of(rows[:30], second_moment=True), state_of(rows[30:], first=30, second_moment=True)
    merged = state.merge(rest)
    whole = state_of(rows, second_moment=True)
    assert merged.output is not None
    assert whole.output is not None
    torch.testing.assert_close(merged.output.sums, whole.output.sums, rtol=1e-12, atol=1e-12)
    assert merged.save(tmp_path / "s") == ConeState.load(tmp_path / "s").fingerprint()
    for again in (state.settled(), state.emptied().merge(state), copy.deepcopy(state)):
        assert again.fingerprint() == state.fingerprint()
        assert again.info == {"vectors": {"dim": 5}}
    assert ConeState.of_vectors(5).info == {}
    with pytest.raises(ValueError, match=r"differ in dim \(5 and 6\)"):
        Moments.merge(state.sentence, state_of(normal(3, 6), second_moment=True).sentence)
    with pytest.raises(ValueError, match=r"differ in output \(True and False\)"):
        state.merge(ConeState.empty([0], 5, second_moment=True, info=state.info))


def test_vectors_of_sentences_without_a_token_are_counted_as_such_and_nowhere_else() -> None:
    state, rows = ConeState.of_vectors(4, second_moment=True), normal(5, 4, dtype=torch.float64)
    empty = torch.tensor([True, False, False, True, False])
    state.add_output(rows, torch.arange(5), empty)
    assert state.output is not None
    assert state.output.n_empty[0, :6].tolist() == [1, 0, 0, 1, 0, 0]
    assert state.output.count[0, :6].tolist() == [0, 1, 1, 0, 1, 0]
    torch.testing.assert_close(state.output.sum[0], rows[~empty].sum(0), rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match="vectors: got width 3; it must be 4 as the state's output"):
        state.add_output(normal(2, 3), torch.arange(2))


def test_it_says_what_it_holds() -> None:
    assert repr(state_of(normal(20, 4))) == (
        "ConeState(vectors)\n  second moments: not kept\n  output: 4 wide; sentences: 20 counted; none left out"
    )


def test_a_file_without_layers_and_without_an_output_is_refused(tmp_path: Path) -> None:
    state = state_of(normal(9, 4))
    state.output = None
    state.save(tmp_path / "none")
    with pytest.raises(StateFileError, match="has no layers; it must have some, or an output as wide as it says"):
        ConeState.load(tmp_path / "none")
    state.output = state_of(normal(9, 3)).output
    state.save(tmp_path / "other")
    with pytest.raises(StateFileError, match="has no layers"):
        ConeState.load(tmp_path / "other")


def test_a_width_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="dim: got 0"):
        ConeState.of_vectors(0)
