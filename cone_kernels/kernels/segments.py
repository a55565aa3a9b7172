"""How GPU kernels cut rows or sentences into parts with sums of their own: by shape alone, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Parts of all layers together: some for each multiprocessor of a large GPU. The sums of a part take as much memory as a
# few rows, so a part should have more rows than that.
_PARTS = 512
_LEAST_ROWS = 8


ByGroup = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Segments:
    """Which items (rows or sentences) each part of a layer takes, and in which order.

    Part p takes, of each of the groups p // slices, p // slices + group_parts, …, slice p % slices: the items at
    positions [start + size·s // slices, start + size·(s + 1) // slices) of that group. Groups are cut into more than
    one slice only where each has parts of its own (group_parts = groups).
    """

    items: int
    groups: int
    group_parts: int
    slices: int
    order: Tensor | None = None
    """(items,) int64: the items group by group, after room for those of group -1; None: item k of group g is
    g + k·groups."""
    starts: Tensor | None = None
    """(groups + 1,) int64: where each group starts in `order`, and the number of items."""

    @property
    def parts(self) -> int:
        """How many parts a layer has."""
        return self.group_parts * self.slices

    @classmethod
    def of(
        cls,
        group_of: Tensor | None,
        items: int,
        groups: int,
        layers: int,
        rows: int,
        by_group: ByGroup | None = None,
    ) -> Segments:
        """Segments of `items` with `rows` rows in all, for each of `layers`.

        Args:
            group_of: (items,) int64 in [0, groups), or -1 for an item to skip; None: item i is in group i mod groups.
            items, groups, layers, rows: how many.
            by_group: makes `order` and `starts` of `group_of` and `groups`; None: torch does.
        """
        parts = 1
        while parts * 2 * layers <= _PARTS and parts * 2 * _LEAST_ROWS <= rows:
            parts *= 2
        group_parts, slices = min(parts, groups), max(1, parts // groups)
        if group_of is None:
            return cls(items, groups, group_parts, slices)
        return cls(items, groups, group_parts, slices, *(by_group or _sorted_by_group)(group_of, groups))


def _sorted_by_group(group_of: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    in_order, order = torch.sort(group_of, stable=True)
    return order, torch.searchsorted(in_order, torch.arange(groups + 1, device=group_of.device))
