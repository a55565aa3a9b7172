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
from cone_kernels.state.pending_rows import PendingRows
from cone_kernels.sums import (
    ROW_FIELDS,
    SECOND_MOMENT_FIELDS,
    SENTENCE_FIELDS,
    TOKEN_FIELDS,
    field_dtype,
    field_shape,
    jackknife_groups,
    zero_sums,
)

_FIELDS = {"sentence": SENTENCE_FIELDS, "token": TOKEN_FIELDS}


@dataclass(frozen=True, eq=False)
class Moments:
    """The sums of one level, all layers stacked; L layers, 64 jackknife groups, width d.

    `sums` has the fields of `cone_kernels.sums` by name; each is an attribute too (`moments.unit_sum`). Made by
    `Moments.empty`, filled by `update`, combined by `merge`.

    Example:
        >>> moments = Moments.empty("sentence", layers=[0], dim=384)
        >>> moments.update(vectors)  # (1, n, 384)
        >>> metrics.anisotropy(moments)
    """

    level: str
    layers: tuple[int, ...]
    dim: int
    _sums: dict[str, Tensor] = field(repr=False)
    _pending: tuple[PendingRows, ...] = field(default=(), repr=False)
    _views: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict, repr=False)

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
            second_moment: also keep Σ x xᵀ (d, d) per layer.
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
        wanted = dict(zip(SECOND_MOMENT_FIELDS, (second_moment, unit_second_moment), strict=True))
        fields = [*_FIELDS[level], *(name for name, keep in wanted.items() if keep)]
        return cls._of(level, numbers, dim, zero_sums(fields, len(numbers), dim, device=device))

    @classmethod
    def _of(cls, level: str, layers: tuple[int, ...], dim: int, sums: dict[str, Tensor]) -> Moments:
        kept = any(name in sums for name in SECOND_MOMENT_FIELDS)
        pending = tuple(PendingRows(dim) for _ in layers) if kept else ()
        return cls(level, layers, dim, sums, pending)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the sums."""
        return tuple(self._sums)

    @property
    def sums(self) -> dict[str, Tensor]:
        """Every sum by name. Second moments are copies that include the rows still waiting for their product."""
        complete = dict(self._sums)
        for name in SECOND_MOMENT_FIELDS:
            if name in complete:
                complete[name] = complete[name].clone()
        for position, pending in enumerate(self._pending):
            rows, use = pending.waiting()
            if len(rows) > 0:
                self._add_products(complete, position, rows, use)
        return complete

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self._sums:
            raise AttributeError(f"Moments of level {self.level!r} has no field {name!r}")
        return self.sums[name] if name in SECOND_MOMENT_FIELDS else self._sums[name]

    def update(self, x: Tensor, *, sentence_ids: Tensor | None = None, backend: str = "auto") -> Tensor:
        """Adds rows in place, one read of `x`.

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
        return self._add_rows(slice(None), rows, groups, backend)

    def rows_seen(self, position: int) -> int:
        """Rows used or left out so far in the layer at this position of `layers`."""
        names = ("count", "n_zero", "n_nonfinite", *(("n_empty",) if self.level == "sentence" else ()))
        return int(sum(self._sums[name][position].sum() for name in names))

    def merge(self, other: Moments) -> Moments:
        """The state of both sets of rows; neither input changes.

        Raises:
            ValueError: the states differ in level, layers, width or fields, each named.
        """
        refuse_differences("Moments", self.identity(), other.identity())
        total = {name: value + other.sums[name] for name, value in self.sums.items()}
        return Moments._of(self.level, self.layers, self.dim, total)

    def settled(self, device: torch.device | str | None = None) -> Moments:
        """A copy on a device (default: the same) without waiting rows: their products are in its second moments."""
        copies = {name: value.clone() if value is self._sums[name] else value for name, value in self.sums.items()}
        return Moments._of(
            self.level,
            self.layers,
            self.dim,
            {name: value.to(device or value.device) for name, value in copies.items()},
        )

    def select(self, layer: int) -> Moments:
        """A copy of one layer's sums, as a state of that layer alone.

        Raises:
            ValueError: the state has no such layer.
        """
        if layer not in self.layers:
            raise ValueError(f"layer: got {layer}; the state has layers {self.layers}")
        at = self.layers.index(layer)
        sums = {name: value[at : at + 1].clone() for name, value in self._sums.items()}
        selected = Moments._of(self.level, (layer,), self.dim, sums)
        for mine, other in zip(selected._pending, self._pending[at : at + 1], strict=True):
            mine.extend(*other.waiting(), other.backend)
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
        """A state from the parts of a file, after names, shapes, dtypes and ranges have been checked."""
        level, layers, dim, fields = state_file.checked_identity(path, identity, _FIELDS, SECOND_MOMENT_FIELDS)
        if sorted(tensors) != sorted(fields):
            raise state_file.StateFileError(f"{path}: has tensors {sorted(tensors)}; its header says {sorted(fields)}")
        for name in fields:
            shape, dtype = field_shape(name, len(layers), dim), field_dtype(name)
            state_file.check_tensor(path, name, tensors[name], shape, dtype)
        return cls._of(level, layers, dim, {name: tensors[name] for name in fields})

    def identity(self) -> dict[str, Any]:
        """Level, layers, width and fields, as JSON: what must agree before two states merge."""
        return {"level": self.level, "layers": list(self.layers), "dim": self.dim, "fields": list(self._sums)}

    def _sums_at(self, at: slice) -> list[Tensor]:
        # Views of some layers, kept: a probe asks for the same ones batch after batch, and sums are added to in place.
        key = (at.start or 0, len(self.layers) if at.stop is None else at.stop)
        if key not in self._views:
            self._views[key] = [self._sums[name][at] for name in _FIELDS[self.level]]
        return self._views[key]

    def _add_rows(self, at: slice, x: Tensor, groups: Tensor, backend: str) -> Tensor:
        status = row_moments_(x, groups, self._sums_at(at)[: len(ROW_FIELDS)], backend)
        if not self._pending:
            return status
        use = (status == 0) & (groups >= 0)  # (L, n)
        for row, position in enumerate(range(len(self.layers))[at]):
            pending = self._pending[position]
            pending.extend(x[row], use[row], backend)
            if pending.full:
                self._add_products(self._sums, position, *pending.take_blocks())
        return status

    def _add_products(self, sums: dict[str, Tensor], position: int, rows: Tensor, use: Tensor) -> None:
        options: dict[str, Any] = {"use": use[None], "backend": self._pending[position].backend}
        count = self._sums["count"][position].sum().clamp_min(1)
        if "second_moment" in sums:
            pilot = self._sums["sum"][position] / count  # (d,)
            second_moment_(sums["second_moment"][position, None], rows[None], pilot=pilot[None], **options)
        if "unit_second_moment" in sums:
            pilot = self._sums["unit_sum"][position].sum(0) / count
            weights = 1 / torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)  # (n,)
            moment = sums["unit_second_moment"][position, None]
            second_moment_(moment, rows[None], weights=weights[None], pilot=pilot[None], **options)


def refuse_differences(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises ValueError naming every key in which the two differ."""
    differing = differences(mine, theirs)
    if differing:
        raise ValueError(f"merge: the two {what} differ in {', '.join(differing)}")


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Every key in which the two differ, with both values, in words."""
    keys = [key for key in sorted(set(mine) | set(theirs)) if mine.get(key) != theirs.get(key)]
    return [f"{key} ({mine.get(key)!r} and {theirs.get(key)!r})" for key in keys]
