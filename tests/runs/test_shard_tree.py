"""The merge tree of shards: one result to the last bit, whoever adds which shard and when."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cone_kernels.runs.options import parsed_shard
from cone_kernels.runs.shard_tree import ShardTree, owner
from cone_kernels.state.cone_state import ConeState

N_SHARDS, LAYERS, DIM = 21, 2, 3


def shard_state(shard: int, **options: Any) -> ConeState:
    """Seven sentences of up to four tokens, at scales that make every addition round."""
    generator = torch.Generator().manual_seed(shard)
    scale = 10.0 ** (shard % 5 - 2)
    hidden = [torch.randn(7, 4, DIM, generator=generator) * scale for _ in range(LAYERS)]
    mask = torch.arange(4) < torch.randint(1, 5, (7, 1), generator=generator)
    state = ConeState.empty(range(LAYERS), DIM, second_moment=True, poolings=["cls"], **options)
    state.update(hidden, mask, sentence_ids=torch.arange(7) + 7 * shard)
    return state


STATES = [shard_state(shard) for shard in range(N_SHARDS)]


def by_definition(first: int, last: int) -> ConeState | None:
    """The sum over the shards from `first` to `last`, a power of two of them, halved down to single ones."""
    if first >= N_SHARDS:
        return None
    if last - first == 1:
        return STATES[first]
    left, right = by_definition(first, (first + last) // 2), by_definition((first + last) // 2, last)
    assert left is not None
    return left if right is None else left.merge(right)


WHOLE = by_definition(0, 32)
assert WHOLE is not None
FINGERPRINT = WHOLE.fingerprint()


def tree_of(shards: list[int]) -> ShardTree:
    tree = ShardTree()
    for shard in shards:
        tree = tree.add(shard, STATES[shard])
    return tree


def test_the_sum_is_that_of_the_definition() -> None:
    assert tree_of(list(range(N_SHARDS))).close(N_SHARDS).fingerprint() == FINGERPRINT


def test_sums_in_another_order_differ_in_bits() -> None:
    # Without this the laws below would say nothing.
    one_by_one = STATES[0]
    for state in STATES[1:]:
        one_by_one = one_by_one.merge(state)
    assert one_by_one.fingerprint() != FINGERPRINT


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(N_SHARDS)),
    st.lists(st.integers(0, 4), min_size=N_SHARDS, max_size=N_SHARDS),
    st.permutations(range(5)),
)
def test_any_partition_and_any_order_give_the_same_bits(
    order: list[int], trees: list[int], merge_order: list[int]
) -> None:
    parts = [tree_of([shard for shard in order if trees[shard] == tree]) for tree in range(5)]
    united = ShardTree()
    for part in merge_order:
        united = united.merge(parts[part])
    assert united.close(N_SHARDS).fingerprint() == FINGERPRINT
    assert list(united.nodes) == [(4, 0), (2, 4), (0, 20)]


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, N_SHARDS - 1), min_size=1).flatmap(lambda shards: st.permutations(sorted(shards))))
def test_a_part_of_the_shards_has_one_sum_too(order: list[int]) -> None:
    tree, in_order = tree_of(order), tree_of(sorted(order))
    assert tree.folded().fingerprint() == in_order.folded().fingerprint()
    assert [shard in tree for shard in range(N_SHARDS)] == [shard in order for shard in range(N_SHARDS)]
    gaps = [shard for gap in tree.missing(N_SHARDS) for shard in gap]
    assert gaps == [shard for shard in range(N_SHARDS) if shard not in order]


def test_nodes_without_the_states_they_were_made_of_are_a_tree() -> None:
    tree = tree_of(list(range(13)))
    again = ShardTree(tree.nodes).merge(tree_of(list(range(13, N_SHARDS))))
    assert again.close(N_SHARDS).fingerprint() == FINGERPRINT


def test_a_tree_is_not_changed_by_what_is_made_of_it() -> None:
    tree = tree_of([0, 1, 2])
    before = tree.folded().fingerprint()
    tree.add(3, STATES[3])
    tree.merge(tree_of([5]))
    assert list(tree.nodes) == [(1, 0), (0, 2)]
    assert tree.folded().fingerprint() == before


def test_a_state_that_goes_on_does_not_change_the_tree() -> None:
    state = shard_state(0)
    tree = ShardTree().add(0, state)
    before = tree.folded().fingerprint()
    state.update([torch.ones(1, 1, DIM)] * LAYERS, torch.ones(1, 1))
    assert tree.folded().fingerprint() == before


def test_a_shard_added_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"both have shard 1$"):
        tree_of([0, 1, 2]).add(1, STATES[1])
    with pytest.raises(ValueError, match=r"both have shard 2$"):
        tree_of([0, 1, 2, 3]).merge(tree_of([4, 2]))
    with pytest.raises(ValueError, match=r"both have shards 0 to 3$"):
        tree_of([0, 1, 2, 3]).merge(tree_of([0, 1, 2, 3]))


def test_states_of_other_runs_are_refused_at_once() -> None:
    # Shards 0 and 8 are no siblings, so nothing would be added up for long.
    tree = ShardTree().add(0, shard_state(0, info={"model": "a", "dtype": "x"}))
    with pytest.raises(ValueError, match=r"info.dtype \('x' and None\), info.model \('a' and 'b'\)"):
        tree.add(8, shard_state(8, info={"model": "b"}))
    with pytest.raises(ValueError, match=r"poolings \(\['cls'\] and \[\]\)"):
        tree_of([0]).add(8, ConeState.empty(range(LAYERS), DIM, second_moment=True))
    with pytest.raises(ValueError, match=r"sentence.dim \(3 and 4\)"):
        tree_of([0]).add(8, ConeState.empty(range(LAYERS), 4, second_moment=True, poolings=["cls"]))


@pytest.mark.parametrize("node", [(-1, 0), (0, -1)])
def test_levels_and_indices_of_nodes_are_counted_from_zero(node: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"node: got {node}; level and index must be 0 or more")):
        ShardTree({node: STATES[0]})


def test_a_tree_with_gaps_does_not_close() -> None:
    tree = tree_of([0, 1, 4, 9])
    with pytest.raises(ValueError, match=r"has 12; there is none of shards 2 to 3, 5 to 8, 10 to 11$"):
        tree.close(12)
    with pytest.raises(ValueError, match="the corpus has 2; got shards 2 to 3 beyond them"):
        tree_of([0, 1, 2, 3]).close(2)
    with pytest.raises(ValueError, match="at least one"):
        ShardTree().folded()


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7, 100])
def test_processes_share_evenly_and_keep_few_nodes(processes: int) -> None:
    n_shards = 200 * processes
    taken: list[list[int]] = [[] for _ in range(processes)]
    for shard in range(n_shards):
        taken[owner(shard, processes)].append(shard)
    assert [shard for shards in taken for shard in shards[:1]] == list(range(processes))
    assert max(map(len, taken)) <= 200 * 1.2
    assert min(map(len, taken)) >= 200 * 0.8
    # Open nodes: maximal dyadic blocks, counted by merging pairs of numbers as the tree merges states.
    for shards in taken[:: max(1, processes // 3)]:
        nodes: set[tuple[int, int]] = set()
        for shard in shards:
            level, index = 0, shard
            while (level, index ^ 1) in nodes:
                nodes.remove((level, index ^ 1))
                level, index = level + 1, index // 2
            nodes.add((level, index))
        assert len(nodes) <= 100


def test_open_nodes_grow_with_the_logarithm() -> None:
    for n_shards in (2**10, 2**15):
        runs = [(key, len(list(group))) for key, group in itertools.groupby(owner(k, 4) for k in range(n_shards))]
        assert len(runs) <= 32 * (n_shards.bit_length())


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "a/b", "1/3/4", " 0/1", "0/0", "½/2"])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(ValueError, match="it must be i/n with i from 0 to n - 1"):
        parsed_shard(text)


def test_shards_are_counted_from_zero() -> None:
    assert [parsed_shard(text) for text in ("0/1", "2/3", "10/11")] == [(0, 1), (2, 3), (10, 11)]
