"""What row_moments and pool_moments share: the sums of rows, the parts' partial sums, and the kernel that adds them.

A program takes one part of one layer (see `Segments`), and of wide rows one slab of columns. Rows pass through in tiles
of 2 or 4, whose sums are taken in float32 and then added to float64. A tile with a row whose squares do not fit float32
is left for later, and its rows are then added one by one in float64; bits say which tiles that are, up to 64 at a time.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cone_kernels.kernels.segments import Segments
from cone_kernels.kernels.triton.launch import launch

TILES = tl.constexpr(64)

# Squared norms for which float32 squares neither overflow in a sum of rows nor lose digits to underflow; the same
# numbers as kLeastSafeNormSq and kMostSafeNormSq in csrc/include/cone/moments.h.
SAFE_LEAST = tl.constexpr(2.0**-80)
SAFE_MOST = tl.constexpr(2.0**80)
LEAST_NORMAL = tl.constexpr(2.0**-1022)

# What a row was left out for; bits of the status bytes, as in csrc/include/cone/moments.h.
ZERO = tl.constexpr(1)
NONFINITE = tl.constexpr(2)
EMPTY = tl.constexpr(4)

# How many scalar sums there are of one slice of a group, in two short vectors: a thread keeps one entry of each, as
# registers are scarce.
COUNTS = tl.constexpr(4)  # rows used, zero, not finite; sentences
TOTALS = tl.constexpr(8)  # Σ‖u‖², Σ‖x‖, Σ‖x‖², Σ‖g‖², ΣT²; the rest is not used
_FINISH_COLUMNS = 32
_FINISH_ENTRIES = 2048  # partial sums that a program of `_finish` loads at once


@triton.jit
def is_safe(norm_sq):
    """Whether float32 holds the squares of rows with these squared norms; a norm that is NaN is not safe."""
    return (norm_sq >= SAFE_LEAST) & (norm_sq <= SAFE_MOST)


@triton.jit
def entry(at, value, ENTRIES: tl.constexpr):
    """A vector that is zero but for one entry."""
    return tl.where(tl.arange(0, ENTRIES) == at, value, 0)


@triton.jit
def entry_of(vector, at):
    """One entry of a vector."""
    return tl.sum(tl.where(tl.arange(0, vector.shape[0]) == at, vector, 0), 0)


@triton.jit
def add_tile(x, norm_sq, valid, state, ALL: tl.constexpr):
    """Adds rows x (rows, columns) in float32 to `state` if all valid ones are safe; returns it and whether they are.

    state: Σu, Σx, Σx², Σu² (columns,), float64; the slice's COUNTS and TOTALS. norm_sq: (rows,) float32. Rows that are
    not valid are zero.
    """
    unit, plain, squares, unit_squares, counts, totals = state
    all_safe = tl.sum((valid & (is_safe(norm_sq) == 0)).to(tl.int32), 0) == 0
    if all_safe:
        scale = tl.rsqrt(tl.where(valid, norm_sq, 1.0))
        scale *= 1.5 - 0.5 * norm_sq * scale * scale  # one Newton step, because the instruction gives 22 bits
        u = x * scale[:, None]
        unit += tl.sum(u, 0).to(tl.float64)
        if ALL:
            plain += tl.sum(x, 0).to(tl.float64)
            squares += tl.sum(tl.fma(x, x, 0.0), 0).to(tl.float64)  # x * x would stay in registers since the norms
            unit_squares += tl.sum(u * u, 0).to(tl.float64)
        counts += entry(0, tl.sum(valid.to(tl.int32), 0), COUNTS)
        unit_sq = entry(0, tl.sum(norm_sq * scale * scale, 0), TOTALS)
        norms = entry(1, tl.sum(norm_sq * scale, 0), TOTALS)
        totals += (unit_sq + norms + entry(2, tl.sum(norm_sq, 0), TOTALS)).to(tl.float64)
    return (unit, plain, squares, unit_squares, counts, totals), all_safe


@triton.jit
def add_row(x, norm_sq, state, ALL: tl.constexpr):
    """Adds one row x (columns,) in float64, of squared norm norm_sq, to `state`; returns it and the row's status."""
    unit, plain, squares, unit_squares, counts, totals = state
    is_zero = norm_sq < LEAST_NORMAL
    is_used = (is_zero == 0) & (norm_sq < float("inf"))
    if is_used:
        norm = tl.sqrt(norm_sq)
        u = x * (1.0 / norm)
        unit += u
        if ALL:
            plain += x
            squares += x * x
            unit_squares += u * u
        counts += entry(0, 1, COUNTS)
        totals += entry(0, 1.0, TOTALS) + entry(1, norm, TOTALS) + entry(2, norm_sq, TOTALS)
    else:
        counts += entry(tl.where(is_zero, 1, 2), 1, COUNTS)
    status = tl.where(is_used, 0, tl.where(is_zero, ZERO, NONFINITE))
    return (unit, plain, squares, unit_squares, counts, totals), status


@triton.jit
def positions_of_slice(group, part, groups, items, starts, slices, ORDERED: tl.constexpr):
    """Positions [begin, end) of a part's items in a group: in `order` where ORDERED, else counted in the group."""
    if ORDERED:
        start = tl.load(starts + group)
        size = tl.load(starts + group + 1) - start
    else:
        start = group * 0
        size = (items - group + groups - 1) // groups
    cut = part % slices
    return start + size * cut // slices, start + size * (cut + 1) // slices


@triton.jit
def item_at(position, group, groups, order, valid, ORDERED: tl.constexpr):
    """The item (row or sentence) at a position of a group."""
    return tl.load(order + position, mask=valid, other=0) if ORDERED else group + position * groups


@triton.jit
def store_slice(
    unit, counts, totals, unit_sum, unit_parts, all_counts, all_totals,
    group_of_layer, part, slices, slab, slabs, columns, in_row, d, SLICED: tl.constexpr,
):  # fmt: skip
    """Stores the sums of a slice of a group for `_finish`; where a group is one slice, its Σu is added at once."""
    cut = part % slices
    if SLICED:
        tl.store(unit_parts + (group_of_layer * slices + cut) * d + columns, unit, mask=in_row)
    else:
        to = unit_sum + group_of_layer * d + columns
        tl.store(to, tl.load(to, mask=in_row) + unit, mask=in_row)
    at = (group_of_layer * slices + cut) * slabs + slab
    # All slabs have the same sums of whole rows, so slab 0 stores them; of ‖g‖² each slab has its own columns' share.
    count, total = tl.arange(0, COUNTS), tl.arange(0, TOTALS)
    tl.store(all_counts + at * COUNTS + count, tl.where(slab == 0, counts, 0))
    tl.store(all_totals + at * TOTALS + total, tl.where((slab == 0) | (total == 3), totals, 0.0))


@triton.jit
def store_part(column_parts, part_of_layer, columns, in_row, d, plain, squares, unit_squares):
    """Stores a part's sums over all groups for `_finish`."""
    to = column_parts + part_of_layer * 3 * d + columns
    tl.store(to, plain, mask=in_row)
    tl.store(to + d, squares, mask=in_row)
    tl.store(to + 2 * d, unit_squares, mask=in_row)


class PartialSums:
    """The sums of the parts of all layers, and their addition to the totals in the order of the parts."""

    def __init__(self, segments: Segments, layers: int, d: int, slabs: int, sums: dict[str, Tensor]) -> None:
        device, groups, slices = sums["count"].device, segments.groups, segments.slices
        self._segments, self._layers, self._d, self._slabs, self._sums = segments, layers, d, slabs, sums
        self._all = "sum" in sums
        self._counts = torch.empty((layers, groups, slices * slabs, COUNTS.value), dtype=torch.int64, device=device)
        self._totals = torch.empty((layers, groups, slices * slabs, TOTALS.value), dtype=torch.float64, device=device)
        self._columns, self._units = self._totals, self._totals  # stand-ins: kernels do not write what is not asked for
        if self._all:
            self._columns = torch.empty((layers, segments.parts, 3, d), dtype=torch.float64, device=device)
        if slices > 1:
            self._units = torch.empty((layers, groups, slices, d), dtype=torch.float64, device=device)

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments by which a kernel cuts its work and stores its sums."""
        segments = self._segments
        return {
            "items": segments.items,
            "groups": segments.groups,
            "group_parts": segments.group_parts,
            "slices": segments.slices,
            "order": self._counts if segments.order is None else segments.order,
            "starts": self._counts if segments.starts is None else segments.starts,
            "unit_sum": self._sums["unit_sum"],
            "unit_parts": self._units,
            "column_parts": self._columns,
            "all_counts": self._counts,
            "all_totals": self._totals,
            "slabs": self._slabs,
            "ORDERED": segments.order is not None,
            "SLICED": segments.slices > 1,
        }

    def add(self) -> None:
        """Adds the stored sums of all parts to the totals."""
        segments, sums = self._segments, self._sums
        block_groups = triton.next_power_of_2(segments.groups)
        kinds = 4 + (segments.groups if segments.slices > 1 else 0)
        blocks = triton.cdiv(self._d, _FINISH_COLUMNS) if self._all or segments.slices > 1 else 1
        launch(
            _finish,
            (self._layers, kinds, blocks),
            self._counts,
            self._totals,
            self._columns,
            self._units,
            *(sums.get(field) for field in _FINISHED),
            segments.groups,
            segments.slices,
            segments.slices * self._slabs,
            segments.parts,
            d=self._d,
            ALL=self._all,
            TOKENS="n_sentences" in sums,
            GROUPS=block_groups,
            SLICES=max(1, _FINISH_ENTRIES // 2 // block_groups),
            COLUMNS=_FINISH_COLUMNS,
            PARTS=_FINISH_ENTRIES // _FINISH_COLUMNS,
            num_warps=4,
        )


_FINISHED = (
    "count", "n_zero", "n_nonfinite", "n_sentences",
    "unit_sq_total", "norm_sum", "norm_sq_sum", "sentence_sq_sum", "sentence_size_sq_sum",
    "sum", "sq_sum", "unit_sq_sum", "unit_sum",
)  # fmt: skip


@triton.jit(do_not_specialize=["groups", "slices", "entries", "parts"])
def _finish(
    counts, totals, column_parts, unit_parts,
    count, n_zero, n_nonfinite, n_sentences,
    unit_sq_total, norm_sum, norm_sq_sum, sentence_sq_sum, sentence_size_sq_sum,
    plain_sum, sq_sum, unit_sq_sum, unit_sum,
    groups, slices, entries, parts,
    d: tl.constexpr, ALL: tl.constexpr, TOKENS: tl.constexpr,
    GROUPS: tl.constexpr, SLICES: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Adds partial sums of one layer: kinds 0 to 2 by column, 3 the scalars of all groups, from 4 on Σu of a group."""
    layer = tl.program_id(0).to(tl.int64)
    kind = tl.program_id(1)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    if kind < 3:
        if ALL:
            total = _sum_of_rows(column_parts + (layer * parts * 3 + kind) * d, parts, 3 * d, columns, d, PARTS)
            if kind == 0:
                _add(plain_sum + layer * d + columns, total, columns < d)
            elif kind == 1:
                _add(sq_sum + layer * d + columns, total, columns < d)
            else:
                _add(unit_sq_sum + layer * d + columns, total, columns < d)
    elif kind == 3:
        if tl.program_id(2) == 0:
            group = tl.arange(0, GROUPS)
            in_layer = group < groups
            at = layer * groups + group
            first = at * entries
            _add(count + at, _sum_of_entries(counts, first, 0, COUNTS, in_layer, entries, SLICES), in_layer)
            _add(n_zero + at, _sum_of_entries(counts, first, 1, COUNTS, in_layer, entries, SLICES), in_layer)
            _add(n_nonfinite + at, _sum_of_entries(counts, first, 2, COUNTS, in_layer, entries, SLICES), in_layer)
            _add(unit_sq_total + at, _sum_of_entries(totals, first, 0, TOTALS, in_layer, entries, SLICES), in_layer)
            if TOKENS:
                with_tokens = _sum_of_entries(counts, first, 3, COUNTS, in_layer, entries, SLICES)
                squares = _sum_of_entries(totals, first, 3, TOTALS, in_layer, entries, SLICES)
                sizes = _sum_of_entries(totals, first, 4, TOTALS, in_layer, entries, SLICES)
                _add(n_sentences + at, with_tokens, in_layer)
                _add(sentence_sq_sum + at, squares, in_layer)
                _add(sentence_size_sq_sum + at, sizes, in_layer)
            if ALL:
                norms = _sum_of_entries(totals, first, 1, TOTALS, in_layer, entries, SLICES)
                norms_sq = _sum_of_entries(totals, first, 2, TOTALS, in_layer, entries, SLICES)
                _add(norm_sum + layer, tl.sum(norms, 0), True)
                _add(norm_sq_sum + layer, tl.sum(norms_sq, 0), True)
    else:
        at = layer * groups + kind - 4
        total = _sum_of_rows(unit_parts + at * slices * d, slices, d, columns, d, PARTS)
        _add(unit_sum + at * d + columns, total, columns < d)


@triton.jit
def _sum_of_rows(first, rows, stride, columns, d, ROWS: tl.constexpr):
    total = tl.zeros((columns.shape[0],), tl.float64)
    for begin in range(0, rows, ROWS):
        row = begin + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * stride + columns[None, :]
        total += tl.sum(tl.load(first + at, mask=(row < rows)[:, None] & (columns < d)[None, :], other=0.0), 0)
    return total


@triton.jit
def _sum_of_entries(values, first, field, fields, in_layer, entries, ENTRIES: tl.constexpr):
    total = tl.zeros((first.shape[0],), values.dtype.element_ty)
    for begin in range(0, entries, ENTRIES):
        entry = begin + tl.arange(0, ENTRIES)
        at = (first[:, None] + entry[None, :]) * fields + field
        total += tl.sum(tl.load(values + at, mask=in_layer[:, None] & (entry < entries)[None, :], other=0), 1)
    return total


@triton.jit
def _add(to, value, mask):
    tl.store(to, tl.load(to, mask=mask) + value, mask=mask)
