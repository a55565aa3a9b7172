"""The sums of one level: sentences or tokens, all layers of a model stacked.

Every field is a sum, so merging is adding: associative, with the empty state as identity. float64 sums, int64 counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cone_kernels.ops.arguments import float_tensor, groups_of
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.ops.second_moment import second_moment_
from cone_kernels.state import file as state_file
from cone_kernels.state.agreement import refuse_differences
from cone_kernels.state.description import as_table, layers_in_words, rows_in_words, second_moments_in_words
from cone_kernels.state.pending_rows import BLOCK_ROWS, PendingRows
from cone_kernels.sums import (
    FOURTH_ORDER_FIELDS,
    PRODUCT_FIELDS,
    ROW_FIELDS,
    SENTENCE_FIELDS,
    TOKEN_FIELDS,
    field_dtype,
    field_shape,
    jackknife_groups,
    zero_sums,
)

_FIELDS = {"sentence": SENTENCE_FIELDS, "token": TOKEN_FIELDS}

# Rows of a jackknife group in a file at most; sums of such counts stay far below the end of int64.
_MOST = 2**48


@dataclass(eq=False, repr=False, slots=True)
class Moments:
    """The sums of one level, all layers stacked; L layers, 64 jackknife groups, width d.

    `sums` has the fields of `cone_kernels.sums` by name; each is an attribute too (`moments.unit_sum`). Made by
    `Moments.empty`, filled by `update`, combined by `merge`.

    Examples:
        >>> moments = Moments.empty("sentence", layers=[0], dim=384)
        >>> moments.update(vectors)  # (1, n, 384)
        >>> metrics.anisotropy(moments)
    """

    level: str
    layers: tuple[int, ...]
    dim: int
    _sums: dict[str, Tensor]
    _pending: PendingRows | None = None
    _views: dict[tuple[int, int], list[Tensor]] = field(init=False, default_factory=dict)

    @classmethod
    def empty(
        cls,
        level: str,
        layers: Sequence[int],
        dim: int,
        *,
        second_moment: bool = False,
        unit_second_moment: bool = False,
        device: torch.device | str | None = None,
    ) -> Moments:
        """The state of no rows: the identity of `merge`.

        Args:
            level: "sentence" or "token".
            layers: the layers' numbers, as in Hugging Face's `hidden_states`.
            dim: the width d of the rows.
            second_moment: also keep Σ x xᵀ (d, d) per layer, and beside it Σ ‖x‖² x and Σ ‖x‖⁴.
            unit_second_moment: also keep Σ u uᵀ (d, d) per layer.
            device: where the sums are.

        Raises:
            ValueError: an unknown level, no or repeated layers, or a width below 1.
        """
        if level not in _FIELDS:
            raise ValueError(f"level: got {level!r}; it must be 'sentence' or 'token'")
        numbers = tuple(int(layer) for layer in layers)
        if not numbers or len(set(numbers)) != len(numbers):
            raise ValueError(f"layers: got {numbers}; it must be distinct layer numbers, at least one")
        if dim < 1:
            raise ValueError(f"dim: got {dim}; it must be 1 or more")
        kept = (second_moment, unit_second_moment, second_moment, second_moment)
        wanted = dict(zip(PRODUCT_FIELDS, kept, strict=True))
        fields = [*_FIELDS[level], *(name for name, keep in wanted.items() if keep)]
        return cls.of_sums(level, numbers, dim, zero_sums(fields, len(numbers), dim, device=device))

    @classmethod
    def of_sums(cls, level: str, layers: tuple[int, ...], dim: int, sums: dict[str, Tensor]) -> Moments:
        """The state that holds these tensors, which it keeps and adds to; they are not checked.

        Args:
            level, layers, dim: as in `empty`.
            sums: the fields of the level by name, with the shapes and dtypes of `cone_kernels.sums`; a state that is
                only read may have fewer.
        """
        kept = any(name in sums for name in PRODUCT_FIELDS)
        return cls(level, layers, dim, sums, PendingRows(len(layers)) if kept else None)

    def without_layers(self, level: str | None = None) -> Moments:
        """The state of no layer, as wide as this one and with the second moments that it keeps; its sums are empty.

        Args:
            level: another level than this one's, which has no second moments.
        """
        fields = self.fields if level is None else _FIELDS[level]
        return Moments.of_sums(level or self.level, (), self.dim, zero_sums(fields, 0, self.dim))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the sums."""
        return tuple(self._sums)

    @property
    def sums(self) -> dict[str, Tensor]:
        """Every sum by name, for reading: the state's own tensors, to which later updates add.

        While rows wait for their product, second moments are copies with that product in them.
        """
        return self._complete(self.fields)

    def __getattr__(self, name: str) -> Tensor:
        # Copying and unpickling ask for special methods before there are any sums.
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._sums:
            raise AttributeError(f"Moments of level {self.level!r} has no field {name!r}")
        return self._complete((name,))[name]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles leave the views out: they would not share the memory of the new sums."""
        return Moments, (self.level, self.layers, self.dim, self._sums, self._pending)

    def __repr__(self) -> str:
        return "\n".join(
            (
                f"Moments({self.level} level)",
                f"  layers: {layers_in_words(self.layers)}; {self.dim:,} wide, on {self._sums['count'].device}",
                f"  {self.rows_in_words()}",
                f"  second moments: {second_moments_in_words(self.fields)}",
            )
        )

    def _repr_html_(self) -> str:
        return as_table(repr(self))

    def rows_in_words(self) -> str:
        """How many rows were counted and left out, as `repr` says it: 'tokens: 15,123 counted; none left out'."""
        return rows_in_words(self.level, self._sums)

    def update(self, x: Tensor, *, sentence_ids: Tensor | None = None, backend: str = "auto") -> Tensor:
        """Adds rows in place; `x` is read once.

        Args:
            x: (L, n, d), or (n, d) for a state of one layer.
            sentence_ids: (n,) int64 index in the corpus, the same for all layers. Default: ids count on
                from the rows seen so far.
            backend: as in `row_moments`.

        Returns:
            (L, n) uint8: 0 used, 1 left out as zero, 2 left out as not finite.

        Raises:
            TypeError, ValueError: as `row_moments`; ValueError where L or d is not this state's.
        """
        rows = float_tensor("x", x, 2, "(L, n, d) or (n, d)")
        rows = rows[None] if rows.dim() == 2 else rows
        if rows.dim() != 3 or rows.shape[0] != len(self.layers) or rows.shape[2] != self.dim:
            wanted = f"(L, n, d) = ({len(self.layers)}, n, {self.dim})"
            raise ValueError(f"x: got shape {tuple(x.shape)}; it must be {wanted}")
        groups = groups_of("sentence_ids", sentence_ids, rows.shape[1], rows.device)
        if groups is None:
            groups = jackknife_groups(torch.arange(rows.shape[1], device=rows.device) + self.rows_seen(0))
        return self.add_rows(slice(None), rows, groups, backend)

    def rows_seen(self, position: int) -> int:
        """Rows used or left out so far in the layer at this position of `layers`."""
        names = ("count", "n_zero", "n_nonfinite", *(("n_empty",) if self.level == "sentence" else ()))
        return int(sum(self._sums[name][position].sum() for name in names))

    def clear_(self) -> None:
        """Forgets all rows, in place: what is added from here on is the first, in the same memory."""
        for value in self._sums.values():
            value.zero_()
        if self._pending is not None:
            self._pending = PendingRows(len(self.layers))

    def merge(self, other: Moments) -> Moments:
        """The state of both sets of rows; neither input changes.

        Raises:
            ValueError: the states differ in level, layers, width or fields, each named.
        """
        refuse_differences("Moments", self.identity(), other.identity())
        mine, theirs = self.sums, other.sums
        return Moments.of_sums(self.level, self.layers, self.dim, {name: mine[name] + theirs[name] for name in mine})

    def settled(self, device: torch.device | str | None = None) -> Moments:
        """A copy on a device (default: the same) without waiting rows: their products are in its second moments."""
        copies = {
            name: value.to(device or value.device, copy=value is self._sums[name]) for name, value in self.sums.items()
        }
        return Moments.of_sums(self.level, self.layers, self.dim, copies)

    def on_cpu(self) -> Moments:
        """This state where formulas take its float64 matrices: itself on a CPU, a settled copy of what is on a GPU.

        A GPU's kernels take no float64 matrix, and a consumer's GPU computes in float64 at a 64th of its speed. What
        needs no matrix is computed wherever the sums are.
        """
        return self if self._sums["count"].device.type == "cpu" else self.settled("cpu")

    def select(self, layer: int) -> Moments:
        """A copy of one layer's sums, as a state of that layer alone.

        Raises:
            ValueError: the state has no such layer.
        """
        if layer not in self.layers:
            raise ValueError(f"layer: got {layer}; it must be one of the state's layers {self.layers}")
        at = self.layers.index(layer)
        sums = {name: value[at : at + 1].clone() for name, value in self._sums.items()}
        selected = Moments.of_sums(self.level, (layer,), self.dim, sums)
        if self._pending is not None and selected._pending is not None:
            for run in self._pending.runs(slice(at, at + 1)):
                selected._pending.extend(slice(0, 1), *self._pending.waiting(run), self._pending.backend)
        return selected

    def fingerprint(self) -> str:
        """sha256 (hex) of all that `save` writes: equal states have equal fingerprints."""
        return state_file.fingerprint(self.sums, {"moments": self.identity()})

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes a safetensors file, whole or not at all; returns its fingerprint."""
        return state_file.write(path, self.sums, {"moments": self.identity()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Reads what `save` wrote.

        Raises:
            StateFileError: the file is damaged, or not of this kind.
        """
        tensors, info = state_file.read(path, "moments")
        return cls.restore(path, tensors, info["moments"])

    @classmethod
    def restore(cls, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], identity: Any) -> Moments:
        """A state from the tensors and the header of a file, whose names, shapes, dtypes and ranges are checked.

        Raises:
            StateFileError: they are not those of a state.
        """
        level, layers, dim, fields = state_file.checked_identity(path, identity, _FIELDS, PRODUCT_FIELDS)
        if any((name in fields) != ("second_moment" in fields) for name in FOURTH_ORDER_FIELDS):
            both = " and ".join(FOURTH_ORDER_FIELDS)
            raise state_file.StateFileError(f"{path}: fields are {fields}; second_moment must have {both} with it")
        if sorted(tensors) != sorted(fields):
            raise state_file.StateFileError(f"{path}: has tensors {sorted(tensors)}; its header says {sorted(fields)}")
        for name in fields:
            shape, dtype = field_shape(name, len(layers), dim), field_dtype(name)
            state_file.check_tensor(path, name, tensors[name], shape, dtype)
            if dtype == torch.int64 and bool((tensors[name] > _MOST).any()):
                raise state_file.StateFileError(f"{path}: {name} has a count above {_MOST}, more than there can be")
        numbers = {"unit_sum": tensors["count"]}
        if level == "token":
            numbers["sentence_unit_sum"] = tensors["n_sentences"] - tensors["n_cancelled"]
        # Unit vectors add up to no more than their number, but for rounding.
        for name, number in numbers.items():
            if bool((tensors[name].norm(dim=-1) > 1.001 * number + 1e-9).any()):
                raise state_file.StateFileError(f"{path}: {name} of {level} is longer than its count of unit vectors")
        return cls.of_sums(level, layers, dim, {name: tensors[name] for name in fields})

    def identity(self) -> dict[str, Any]:
        """What must agree before two states may merge, as JSON: level, layers, dim and fields."""
        return {"level": self.level, "layers": list(self.layers), "dim": self.dim, "fields": list(self._sums)}

    def first_order_sums(self, at: slice) -> list[Tensor]:
        """Views of the sums of the layers at these positions, all but second moments, in the order that ops take them.

        What is added to them is added to the state; but where second moments are kept, Σx is added by
        `keep_for_products` from the same rows, and what ops make of it goes nowhere.
        """
        # Kept: a probe asks for the same layers batch after batch.
        key = (at.start or 0, len(self.layers) if at.stop is None else at.stop)
        if key not in self._views:
            views = {name: self._sums[name][at] for name in _FIELDS[self.level]}
            if self.has_second_moments:
                views["sum"] = torch.zeros_like(views["sum"])
            self._views[key] = list(views.values())
        return self._views[key]

    def add_rows(self, at: slice, x: Tensor, groups: Tensor, backend: str) -> Tensor:
        """Adds checked rows to the layers at these positions; returns their status, as `update` does.

        Args:
            at: positions in `layers`.
            x: (number of positions, n, d).
            groups: (n,) int64: the rows' jackknife groups; -1 for a row that is to be left out and counted nowhere.
            backend: as in `row_moments`.
        """
        status = row_moments_(x, groups, self.first_order_sums(at)[: len(ROW_FIELDS)], backend)
        if self._pending is not None:
            self.keep_for_products(at, x, (status == 0) & (groups >= 0), backend)
        return status

    def keep_for_products(self, at: slice, x: Tensor, use: Tensor, backend: str) -> None:
        """Adds rows that are in all other sums to Σx, keeps them for second moments, and adds those that are due.

        Args:
            at, x, backend: as in `add_rows`.
            use: (number of positions, n) bool, the rows that count.
        """
        assert self._pending is not None
        # Ops add float32 rows in float32 before float64. A covariance takes ttᵀ/n from Σxxᵀ, and has (mean/std)² times
        # the error of t.
        self._sums["sum"][at] += torch.where(use[..., None], x, 0).sum(1, dtype=torch.float64)
        self._pending.extend(at, x, use, backend)
        for run in self._pending.full_runs(at):
            self._add_products(self._sums, run, *self._pending.take_blocks(run), backend)

    @property
    def has_second_moments(self) -> bool:
        """Whether second moments are kept."""
        return self._pending is not None

    def _complete(self, fields: Sequence[str]) -> dict[str, Tensor]:
        """These sums by name, with the products of the rows that wait in them."""
        complete = {name: self._sums[name] for name in fields}
        moments = [name for name in PRODUCT_FIELDS if name in complete]
        runs = list(self._pending.runs()) if moments and self._pending is not None else []
        if runs:
            assert self._pending is not None
            complete |= {name: complete[name].clone() for name in moments}
            for run in runs:
                self._add_products(complete, run, *self._pending.waiting(run), self._pending.backend)
        return complete

    def _add_products(self, sums: dict[str, Tensor], at: slice, rows: Tensor, use: Tensor, backend: str) -> None:
        """Adds the products of rows (l, n, d), of which `use` (l, n) count, to those products that `sums` has."""
        options: dict[str, Any] = {"use": use, "backend": backend}
        count = self._sums["count"][at].sum(-1, keepdim=True).clamp_min(1)  # (l, 1)
        if "second_moment" in sums:
            second_moment_(sums["second_moment"][at], rows, pilot=self._sums["sum"][at] / count, **options)
        if "unit_second_moment" in sums:
            pilot = self._sums["unit_sum"][at].sum(1) / count
            weights = 1 / torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)  # (l, n)
            second_moment_(sums["unit_second_moment"][at], rows, weights=weights, pilot=pilot, **options)
        fourth_order = [name for name in FOURTH_ORDER_FIELDS if name in sums]
        # Block by block, as they came: how many are due at once depends on how rows are batched.
        blocks = (
            zip(torch.split(rows, BLOCK_ROWS, 1), torch.split(use, BLOCK_ROWS, 1), strict=True) if fourth_order else ()
        )
        for block, counts in blocks:
            left_out = ~counts[..., None]
            squares = torch.linalg.vector_norm(block, dim=-1, keepdim=True, dtype=torch.float64).square()  # (l, n, 1)
            if "cubic_sum" in fourth_order:
                sums["cubic_sum"][at] += (block * squares).masked_fill_(left_out, 0).sum(1)
            if "quartic_sum" in fourth_order:
                sums["quartic_sum"][at] += squares.square().masked_fill_(left_out, 0).sum((1, 2))
