"""What states show of themselves: a few lines, exactly these, whatever is in them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch

from cone_kernels import ConeState, Moments
from tests.support.html_tree import read_html
from tests.support.moment_cases import normal


def state_with_losses() -> ConeState:
    info = {"model": {"name": "sentence-transformers/all-MiniLM-L6-v2"}}
    state = ConeState.empty(range(2), 6, second_moment=True, poolings=["last", "cls"], info=info)
    hidden = [normal(1200, 2, 6, seed=layer) for layer in range(2)]
    hidden[0][7] = 0
    hidden[1][3, 0, 2] = torch.nan
    mask = torch.ones(1200, 2)
    mask[50:53] = 0
    state.update(hidden, mask)
    return state


def test_a_notebook_shows_the_same_as_a_table() -> None:
    info = {"model": {"name": "<b>mine</b>"}}
    for state in (state_with_losses(), state_with_losses().sentence, ConeState.empty([0], 2, info=info)):
        table = read_html(state._repr_html_())
        head, *lines = repr(state).splitlines()
        assert table.all("caption")[0].text == head
        assert [f"  {': '.join(cell.text for cell in row.all('th', 'td'))}" for row in table.all("tr")] == lines


def test_a_state_says_what_it_holds() -> None:
    assert repr(state_with_losses()) == (
        "ConeState(sentence-transformers/all-MiniLM-L6-v2)\n"
        "  layers: 0 to 1; 6 wide, on cpu\n"
        "  sentences: 1,196 counted; left out: 0 to 1 zero, 0 to 1 not finite, 3 without a token\n"
        "  tokens: 2,392 to 2,393 counted; left out: 0 to 2 zero, 0 to 1 not finite\n"
        "  second moments: second_moment\n"
        "  poolings: mean, cls, last"
    )


def test_a_level_says_what_it_holds() -> None:
    moments = Moments.empty("token", [0, 6, 12], 4)
    moments.update(normal(3, 5, 4))
    assert repr(moments) == (
        "Moments(token level)\n"
        "  layers: 0, 6, 12; 4 wide, on cpu\n"
        "  tokens: 5 counted; none left out\n"
        "  second moments: not kept"
    )
    both = Moments.empty("sentence", range(0, 40, 2), 1024, second_moment=True, unit_second_moment=True)
    assert repr(both) == (
        "Moments(sentence level)\n"
        "  layers: 0, 2, 4, 6, 8, 10, 12, 14 and 12 more; 1,024 wide, on cpu\n"
        "  sentences: 0 counted; none left out\n"
        "  second moments: second_moment and unit_second_moment"
    )


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([7], "7"),
        ([7, 8], "7 to 8"),
        ([8, 7], "8, 7"),
        (range(0, 16, 2), "0, 2, 4, 6, 8, 10, 12, 14"),
        (range(0, 18, 2), "0, 2, 4, 6, 8, 10, 12, 14 and 1 more"),
        ([-1, 0, 1], "-1 to 1"),
    ],
)
def test_layers_in_words(layers: Sequence[int], words: str) -> None:
    assert repr(Moments.empty("token", layers, 4)).splitlines()[1] == f"  layers: {words}; 4 wide, on cpu"


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ({}, "model not named"),
        ({"model": None}, "model not named"),
        ({"model": {}}, "model not named"),
        ({"model": "BertModel"}, "BertModel"),
        ({"model": {"name": 7}}, "7"),
        ({"model": ["?"]}, "['?']"),
    ],
)
def test_an_empty_state_says_so_whatever_its_info_is(info: dict[str, object], name: str) -> None:
    assert repr(ConeState.empty([3], 2, info=info)) == (
        f"ConeState({name})\n"
        "  layers: 3; 2 wide, on cpu\n"
        "  sentences: 0 counted; none left out\n"
        "  tokens: 0 counted; none left out\n"
        "  second moments: not kept\n"
        "  poolings: mean"
    )


def test_a_state_without_memory_has_no_counts_to_show() -> None:
    assert repr(Moments.empty("sentence", [0], 2, device="meta")) == (
        "Moments(sentence level)\n"
        "  layers: 0; 2 wide, on meta\n"
        "  sentences: cannot be read now\n"
        "  second moments: not kept"
    )


def test_showing_a_state_changes_nothing_and_reads_no_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_with_losses()
    before = state.fingerprint()

    def multiplied(*_: object) -> None:
        raise AssertionError("the waiting rows were multiplied")

    with monkeypatch.context() as patch:
        patch.setattr(Moments, "_add_products", multiplied)
        repr(state)
        assert int(state.sentence.count.sum()) == 2 * 1196
    assert state.fingerprint() == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_copies_and_pickles_are_states_of_their_own(copied: Callable[[ConeState], ConeState]) -> None:
    state = state_with_losses()
    before = state.fingerprint()
    twin = copied(state)
    assert twin.fingerprint() == before
    more = [normal(3, 2, 6, seed=9) for _ in range(2)]
    twin.update(more, torch.ones(3, 2))
    assert state.fingerprint() == before
    state.update(more, torch.ones(3, 2))
    assert twin.fingerprint() == state.fingerprint() != before


def test_a_sum_is_not_assigned_by_name() -> None:
    with pytest.raises(AttributeError):
        state_with_losses().sentence.count = torch.zeros(2, 64)  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Moments of level 'token' has no field 'n_empty'"):
        _ = state_with_losses().token.n_empty
