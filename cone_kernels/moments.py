"""The mergeable state: plain sums per layer at the sentence and the token level.

Every field is a sum, so merging is adding: associative, with the empty state as identity. float64 sums, int64 counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cone_kernels import state_file
from cone_kernels.ops.arguments import float_tensor, groups_of, hidden_layers
from cone_kernels.ops.pool_moments import pool_moments_
from cone_kernels.ops.row_moments import row_moments_
from cone_kernels.ops.second_moment import second_moment_
from cone_kernels.pending_rows import PendingRows
from cone_kernels.sentence_batch import SentenceBatch
from cone_kernels.sums import (
    GROUPS,
    ROW_FIELDS,
    SECOND_MOMENT_FIELDS,
    SENTENCE_FIELDS,
    TOKEN_FIELDS,
    field_dtype,
    field_shape,
    zero_sums,
)

_FIELDS = {"sentence": SENTENCE_FIELDS, "token": TOKEN_FIELDS}
_NO_ID = torch.iinfo(torch.int64).max


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
    def sums(self) -> dict[str, Tensor]:
        """Every sum by name. Second moments are copies that include the rows still waiting for their product."""
        complete = dict(self._sums)
        for name in SECOND_MOMENT_FIELDS:
            if name in complete:
                complete[name] = complete[name].clone()
        for position, pending in enumerate(self._pending):
            rows = pending.waiting()
            if len(rows) > 0:
                self._add_products(complete, position, rows)
        return complete

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self._sums:
            raise AttributeError(f"Moments of level {self.level!r} has no field {name!r}")
        return self.sums[name] if name in SECOND_MOMENT_FIELDS else self._sums[name]

    def update(self, x: Tensor, *, sentence_ids: Tensor | None = None, backend: str = "auto") -> Tensor:
        """Adds rows in place, one read of `x`.

        Args:
            x: (L, n, d), or (n, d) for a state of one layer.
            sentence_ids: (n,) int64 index in the corpus, the same for all layers; group = id mod 64. Default: ids
                count on from the rows seen so far.
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
            groups = (torch.arange(rows.shape[1], device=rows.device) + self.rows_seen(0)) % GROUPS
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
        refuse_differences("Moments", self._identity(), other._identity())
        total = {name: value + other.sums[name] for name, value in self.sums.items()}
        return Moments._of(self.level, self.layers, self.dim, total)

    def select(self, layer: int) -> Moments:
        """A copy of one layer's sums, as a state of that layer alone.

        Raises:
            ValueError: the state has no such layer.
        """
        if layer not in self.layers:
            raise ValueError(f"layer: got {layer}; the state has layers {self.layers}")
        at = self.layers.index(layer)
        sums = {name: value[at : at + 1].clone() for name, value in self.sums.items()}
        return Moments._of(self.level, (layer,), self.dim, sums)

    def fingerprint(self) -> str:
        """sha256 (hex) of all that `save` writes: equal states have equal fingerprints."""
        return state_file.fingerprint(self.sums, {"moments": self._identity()})

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes a safetensors file, whole or not at all; returns its fingerprint."""
        return state_file.write(path, self.sums, {"moments": self._identity()})

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

    def _identity(self) -> dict[str, Any]:
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
        all_used = not bool(status.any()) and not bool((groups < 0).any())
        for position, pending in list(enumerate(self._pending))[at]:
            row = position if at.start is None else position - at.start
            pending.extend(x[row] if all_used else x[row][(status[row] == 0) & (groups >= 0)], backend)
            if pending.full:
                self._add_products(self._sums, position, pending.take_blocks())
        return status

    def _add_products(self, sums: dict[str, Tensor], position: int, rows: Tensor) -> None:
        backend = self._pending[position].backend
        count = self._sums["count"][position].sum()
        if "second_moment" in sums:
            pilot = self._sums["sum"][position] / count  # (d,)
            second_moment_(sums["second_moment"][position, None], rows[None], pilot=pilot[None], backend=backend)
        if "unit_second_moment" in sums:
            pilot = self._sums["unit_sum"][position].sum(0) / count
            weights = 1 / torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)  # (n,)
            moment = sums["unit_second_moment"][position, None]
            second_moment_(moment, rows[None], weights=weights[None], pilot=pilot[None], backend=backend)


@dataclass(eq=False)
class ConeState:
    """Both levels of all layers of one model, and what must agree before two states may merge.

    Example:
        >>> state = ConeState.empty(layers=range(7), dim=384)
        >>> state.update(hidden_states, attention_mask)  # seven tensors (B, T, 384)
        >>> metrics.anisotropy(state.sentence)  # (7,)
    """

    sentence: Moments
    token: Moments
    info: dict[str, Any]
    first_left_out: Tensor
    """(L, 8) int64: the smallest ids of sentences left out or with a token left out; 2**63 - 1 where there are less."""
    backend: str = "auto"

    @classmethod
    def empty(
        cls,
        layers: Sequence[int],
        dim: int,
        *,
        second_moment: bool = False,
        unit_second_moment: bool = False,
        backend: str = "auto",
        device: torch.device | str | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> ConeState:
        """The state of no sentence. The second moments are those of the sentence level; `info` is JSON and is compared
        when states merge; the rest as in `Moments.empty`."""
        keep = {"second_moment": second_moment, "unit_second_moment": unit_second_moment}
        sentence = Moments.empty("sentence", layers, dim, device=device, **keep)
        token = Moments.empty("token", layers, dim, device=device)
        left_out = torch.full((len(sentence.layers), 8), _NO_ID, device=device)
        return cls(sentence, token, dict(info or {}), left_out, backend)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers' numbers."""
        return self.sentence.layers

    def update(
        self,
        hidden_states: Sequence[Tensor],
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> Tensor:
        """Adds a batch of sentences at both levels, in place; one read of the hidden states.

        Args:
            hidden_states: one tensor a layer, (B, T, D) with `mask` or packed (N, D) with `cu_seqlens`.
            mask: (B, T): 1 = the token counts.
            cu_seqlens: (B + 1,): first rows of the packed sentences, and N.
            sentence_ids: (B,) int64 index in the corpus. Default: ids count on from the sentences seen so far.
            layers: the numbers of the layers given; default all, in order.

        Returns:
            (len(layers), B) uint8: 0, or the sum of 1 (a zero token), 2 (one that is not finite), 4 (no token).

        Raises:
            TypeError, ValueError: as `pool_moments`; ValueError where layers or widths are not this state's.
        """
        numbers = self.layers if layers is None else tuple(layers)
        row_dims, shape = (3, "(B, T, D)") if cu_seqlens is None else (2, "(N, D)")
        hidden = hidden_layers("hidden_states", list(hidden_states), row_dims, shape)
        if len(hidden) != len(numbers):
            raise ValueError(f"hidden_states: got {len(hidden)} layers; it must be {len(numbers)}, one per layer")
        if hidden[0].shape[-1] != self.sentence.dim:
            raise ValueError(f"hidden_states: got width {hidden[0].shape[-1]}; the state has {self.sentence.dim}")
        unknown = sorted(set(numbers) - set(self.layers))
        if unknown:
            raise ValueError(f"layers: got {unknown}; the state has {self.layers}")
        first_id = self.sentence.rows_seen(self.layers.index(numbers[0])) if sentence_ids is None else 0
        return self.add(SentenceBatch.of(hidden[0], mask, cu_seqlens, sentence_ids, first_id), hidden, numbers)

    def add(self, batch: SentenceBatch, hidden: Sequence[Tensor], layers: Sequence[int]) -> Tensor:
        """As `update`, for a batch checked before: what a probe calls for each layer."""
        positions = [self.layers.index(number) for number in layers]
        # Sums are layer-major, so a run of neighbouring layers is one call.
        if positions == list(range(positions[0], positions[0] + len(positions))):
            return self._add(positions[0], hidden, batch)
        return torch.cat([self._add(at, [one], batch) for at, one in zip(positions, hidden, strict=True)])

    def _add(self, start: int, hidden: Sequence[Tensor], batch: SentenceBatch) -> Tensor:
        at = slice(start, start + len(hidden))
        token_sums = self.token._sums_at(at)
        pooled, status = pool_moments_(hidden, batch.mask, batch.cu_seqlens, batch.groups, token_sums, self.backend)
        if batch.empty_by_group is not None:
            self.sentence._sums["n_empty"][at] += batch.empty_by_group
        pooled_status = self.sentence._add_rows(at, pooled, batch.groups_of_pooled, self.backend)
        if bool(status.any()) or bool(pooled_status.any()):
            left_out = (status | pooled_status) != 0
            for position, bad in zip(range(at.start, at.stop), left_out, strict=True):
                if bool(bad.any()):
                    kept = self.first_left_out[position]
                    self.first_left_out[position] = _smallest(kept, batch.sentence_ids[bad])
        return status

    def merge(self, other: ConeState) -> ConeState:
        """The state of both sets of sentences; neither input changes.

        Raises:
            ValueError: the states differ in `info`, layers, width or fields, each named.
        """
        refuse_differences("ConeState.info", self.info, other.info)
        pairs = zip(self.first_left_out, other.first_left_out, strict=True)
        return ConeState(
            self.sentence.merge(other.sentence),
            self.token.merge(other.token),
            dict(self.info),
            torch.stack([_smallest(a, b) for a, b in pairs]),
            self.backend,
        )

    def fingerprint(self) -> str:
        """sha256 (hex) of all that `save` writes: equal states have equal fingerprints."""
        return state_file.fingerprint(*self._parts())

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes a safetensors file, whole or not at all; returns its fingerprint."""
        return state_file.write(path, *self._parts())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backend: str = "auto") -> ConeState:
        """Reads what `save` wrote.

        Raises:
            StateFileError: the file is damaged, or not of this kind.
        """
        tensors, info = state_file.read(path, "state", "sentence", "token")
        levels = {}
        for level in _FIELDS:
            prefix = f"{level}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            levels[level] = Moments.restore(path, own, info[level])
        left_out = tensors.get("first_left_out", torch.empty(0))
        shape = (len(levels["sentence"].layers), 8)
        state_file.check_tensor(path, "first_left_out", left_out, shape, torch.int64)
        return cls(levels["sentence"], levels["token"], info["state"], left_out, backend)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        levels = {"sentence": self.sentence, "token": self.token}
        tensors = {f"{level}.{name}": value for level, part in levels.items() for name, value in part.sums.items()}
        identities = {level: moments._identity() for level, moments in levels.items()}
        return tensors | {"first_left_out": self.first_left_out}, {"state": self.info, **identities}


def refuse_differences(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises ValueError naming every key in which the two differ."""
    keys = [key for key in sorted(set(mine) | set(theirs)) if mine.get(key) != theirs.get(key)]
    differing = [f"{key} ({mine.get(key)!r} and {theirs.get(key)!r})" for key in keys]
    if differing:
        raise ValueError(f"merge: the two {what} differ in {', '.join(differing)}")


def _smallest(kept: Tensor, ids: Tensor) -> Tensor:
    distinct = torch.unique(torch.cat([kept, ids.to(kept.dtype)]))
    padding = distinct.new_full((len(kept),), _NO_ID)
    return torch.cat([distinct, padding])[: len(kept)]
