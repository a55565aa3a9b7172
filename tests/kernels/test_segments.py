from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from cone_kernels.kernels.segments import Segments


def items_of(segments: Segments, part: int) -> list[tuple[int, int]]:
    """(group, item) in the order in which a kernel takes them, as `Segments` says."""
    taken = []
    for group in range(part // segments.slices, segments.groups, segments.group_parts):
        if segments.order is None or segments.starts is None:
            members = list(range(group, segments.items, segments.groups))
        else:
            bounds = segments.starts.tolist()
            members = segments.order[bounds[group] : bounds[group + 1]].tolist()
        cut = part % segments.slices
        begin, end = (len(members) * k // segments.slices for k in (cut, cut + 1))
        taken += [(group, item) for item in members[begin:end]]
    return taken


@given(
    st.integers(0, 3000),
    st.sampled_from([1, 2, 3, 64]),
    st.integers(1, 60),
    st.integers(1, 20),
    st.booleans(),
    st.data(),
)
def test_each_item_is_in_one_part_of_its_group(
    items: int, groups: int, layers: int, rows_per_item: int, given_groups: bool, data: st.DataObject
) -> None:
    group_of: Tensor | None = None
    wanted = {item: item % groups for item in range(items)}
    if given_groups:
        seed = data.draw(st.integers(0, 2**31))
        group_of = torch.randint(-1, groups, (items,), generator=torch.Generator().manual_seed(seed))
        wanted = {item: group for item, group in enumerate(group_of.tolist()) if group >= 0}
    segments = Segments.of(group_of, items, groups, layers, items * rows_per_item)
    parts = [items_of(segments, part) for part in range(segments.parts)]
    taken = [pair for part in parts for pair in part]
    assert len(taken) == len(wanted)
    assert {item: group for group, item in taken} == wanted
    for part in parts:
        assert part == sorted(part), "items of a part are group by group, and in their order"
    assert segments.slices == 1 or segments.group_parts == groups


@pytest.mark.parametrize(
    ("rows", "layers", "parts"), [(0, 1, 1), (15, 1, 1), (1000, 1, 64), (10**6, 1, 512), (10**6, 25, 16)]
)
def test_parts_by_shape(rows: int, layers: int, parts: int) -> None:
    assert Segments.of(None, rows, 64, layers, rows).parts == parts
