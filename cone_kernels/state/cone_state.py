"""The mergeable state of a model: its sums at both levels, under other poolings, and of the model's own output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cone_kernels.devices import is_captured, to_device
from cone_kernels.names import pooling_names
from cone_kernels.ops.arguments import float_tensor, given_groups, groups_of, hidden_layers, read_is_free
from cone_kernels.ops.pool_moments import pool_and_row_moments_, pool_moments_
from cone_kernels.state import file as state_file
from cone_kernels.state.agreement import refuse_differences
from cone_kernels.state.description import as_table, layers_in_words, model_in_words, second_moments_in_words
from cone_kernels.state.moments import Moments
from cone_kernels.state.parts import OPTIONAL_KEYS, Parts, parts_of_file
from cone_kernels.state.poolings import pool_layers, refuse_missing_special, rows_of
from cone_kernels.state.sentence_batch import SentenceBatch
from cone_kernels.sums import SECOND_MOMENT_FIELDS

__all__ = ["Added", "ConeState", "Moments"]

_NO_ID = torch.iinfo(torch.int64).max
_MOST_NOTED = 64  # batches


class Added(NamedTuple):
    """What `ConeState.add` gives for the L layers and B sentences of a batch."""

    status: Tensor
    """(L, B) uint8, as `ConeState.update` returns it."""
    pooled: Tensor
    """(L, B, D) float32 (float64 for float64 input): the sentence vectors, NaN for a sentence without a token."""


@dataclass(eq=False, repr=False)
class ConeState:
    """The sums of all layers of one model, at the sentence and the token level; states of equal `info` merge.

    Examples:
        >>> state = ConeState.empty(layers=range(7), dim=384)
        >>> state.update(hidden_states, attention_mask)  # seven tensors (B, T, 384)
        >>> metrics.anisotropy(state.sentence)  # (7,)
    """

    sentence: Moments
    token: Moments
    info: dict[str, Any]
    _first_left_out: Tensor
    backend: str = "auto"
    poolings: dict[str, Moments] = field(default_factory=dict)
    """The sentence level under other poolings than `pooling`, by name."""
    pooling: str = "mean"
    """How the vectors of the sentence level are made of tokens."""
    output: Moments | None = None
    """The vectors that the model itself gives for sentences, of any width: the sums of one layer with the number 0."""
    _left_out: list[tuple[slice, Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(
        cls,
        layers: Sequence[int],
        dim: int,
        *,
        second_moment: bool = False,
        unit_second_moment: bool = False,
        pooling: str = "mean",
        poolings: str | Sequence[str] = (),
        backend: str = "auto",
        device: torch.device | str | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> ConeState:
        """A state to which no sentence has been added.

        Args:
            layers, dim, device: as in `Moments.empty`.
            second_moment, unit_second_moment: those of the sentence level.
            pooling: how the vectors of the sentence level are made, one of `cone_kernels.names.POOLINGS`.
            poolings: further ways to make a sentence's vector, of the same names or "all"; beside the mean alone.
            backend: as in `pool_moments`.
            info: JSON data that must be equal when states merge.

        Raises:
            ValueError: as `Moments.empty`; a pooling is unknown or named twice, or there are others beside one that is
                not the mean.
        """
        pooling_names([pooling])
        others = [name for name in pooling_names(poolings) if name != pooling]
        if others and pooling != "mean":
            raise ValueError(
                f"poolings: got {', '.join(others)} with pooling {pooling!r}; they must be none, or pooling the mean"
            )
        keep = {"second_moment": second_moment, "unit_second_moment": unit_second_moment}
        sentence = Moments.empty("sentence", layers, dim, device=device, **keep)
        token = Moments.empty("token", layers, dim, device=device)
        left_out = torch.full((len(sentence.layers), 8), _NO_ID, device=device)
        kept = {name: Moments.empty("sentence", layers, dim, device=device) for name in others}
        return cls(sentence, token, dict(info or {}), left_out, backend, kept, pooling)

    @classmethod
    def of_vectors(
        cls,
        dim: int,
        *,
        second_moment: bool = False,
        unit_second_moment: bool = False,
        backend: str = "auto",
        info: Mapping[str, Any] | None = None,
    ) -> ConeState:
        """A state without layers, for vectors that no model gives here: `add_output` adds them, and `output` has them.

        Args:
            dim: d, their width.
            second_moment, unit_second_moment, backend, info: as in `empty`.

        Raises:
            ValueError: the width is below 1.

        Examples:
            >>> state = ConeState.of_vectors(384)
            >>> state.add_output(vectors, torch.arange(len(vectors)))  # (n, 384)
            >>> metrics.anisotropy(state.output)  # (1,)
        """
        kept: dict[str, Any] = {"second_moment": second_moment, "unit_second_moment": unit_second_moment}
        output = Moments.empty("sentence", [0], dim, **kept)
        state = cls(output.without_layers(), output.without_layers("token"), dict(info or {}), torch.empty(0, 8).long())
        return replace(state, backend=backend, output=output)

    def __repr__(self) -> str:
        device, seconds = self._first_left_out.device, second_moments_in_words(self.sentence.fields)
        lines = [f"ConeState({model_in_words(self.info) if self.layers else 'vectors'})"]
        if self.layers:
            lines += [
                f"  layers: {layers_in_words(self.layers)}; {self.sentence.dim:,} wide, on {device}",
                f"  {self.sentence.rows_in_words()}",
                f"  {self.token.rows_in_words()}",
            ]
        lines.append(f"  second moments: {seconds}")
        if self.layers:
            lines.append(f"  poolings: {', '.join((self.pooling, *self.poolings))}")
        if self.output is not None:
            lines.append(f"  output: {self.output.dim:,} wide; {self.output.rows_in_words()}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return as_table(repr(self))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers' numbers."""
        return self.sentence.layers

    @property
    def first_left_out(self) -> Tensor:
        """(L, 8) int64: the smallest ids of sentences left out (under any pooling) or with a token left out; 2**63 - 1
        where there are fewer than eight."""
        for at, left_out, sentence_ids in self._left_out:
            ids = torch.where(left_out != 0, sentence_ids, _NO_ID)  # (l, B)
            self._first_left_out[at] = smallest_ids(self._first_left_out[at], ids)
        self._left_out.clear()
        return self._first_left_out

    @property
    def all_moments(self) -> dict[str, Moments]:
        """All that is summed, by name: sentence, token, each further pooling, and the output where it is kept."""
        output = {} if self.output is None else {"output": self.output}
        return {"sentence": self.sentence, "token": self.token, **self.poolings, **output}

    def pooled(self, pooling: str) -> Moments:
        """The sentence level under a pooling; `sentence` for the state's own, which is the mean unless it says so.

        Raises:
            ValueError: the state does not keep this pooling.
        """
        kept = {self.pooling: self.sentence, **self.poolings}
        if pooling not in kept:
            raise ValueError(f"pooling: got {pooling!r}; it must be one that the state keeps: {', '.join(kept)}")
        return kept[pooling]

    def update(
        self,
        hidden_states: Sequence[Tensor],
        mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        layers: Sequence[int] | None = None,
        special: Tensor | None = None,
    ) -> Tensor:
        """Adds a batch of sentences at both levels, in place; one read of the hidden states.

        Args:
            hidden_states: one tensor a layer, (B, T, D) with `mask` or packed (N, D) with `cu_seqlens`.
            mask: (B, T): 1 = the token counts.
            cu_seqlens: (B + 1,): first rows of the packed sentences, and N.
            sentence_ids: (B,) int64 index in the corpus. Default: ids count on from the sentences seen so far.
            layers: the numbers of the layers given; default all, in order.
            special: (B, T), or packed (N,): 1 = a token that the tokenizer adds; for poolings without special ones.

        Returns:
            (len(layers), B) uint8: 0, or the sum of 1 (a zero token), 2 (one that is not finite), 4 (no token).

        Raises:
            TypeError, ValueError: as `pool_moments`; ValueError where layers or widths are not this state's, or
                `special` is missing.
        """
        numbers = self.layers if layers is None else tuple(layers)
        row_dims, shape = (3, "(B, T, D)") if cu_seqlens is None else (2, "(N, D)")
        hidden = hidden_layers("hidden_states", list(hidden_states), row_dims, shape)
        if len(hidden) != len(numbers):
            raise ValueError(f"hidden_states: got {len(hidden)} layers; it must be {len(numbers)}, one per layer")
        if hidden[0].shape[-1] != self.sentence.dim:
            raise ValueError(
                f"hidden_states: got width {hidden[0].shape[-1]}; it must be {self.sentence.dim} as the state's"
            )
        unknown = sorted(set(numbers) - set(self.layers))
        if unknown:
            raise ValueError(f"layers: got {unknown}; it must be among the state's layers {self.layers}")
        first_id = self.sentence.rows_seen(self.layers.index(numbers[0])) if sentence_ids is None else 0
        batch = SentenceBatch.of(hidden[0], mask, cu_seqlens, sentence_ids, first_id, special)
        return self.add(batch, hidden, numbers).status

    def add(self, batch: SentenceBatch, hidden: Sequence[Tensor], layers: Sequence[int]) -> Added:
        """As `update`, of arguments that are known to fit: a probe checks a batch once for all its layers."""
        refuse_missing_special((self.pooling, *self.poolings), batch.special)
        known = self.layers
        if len(layers) == len(known) and tuple(layers) == known:
            return self._add(0, hidden, batch)
        positions = [known.index(number) for number in layers]
        # Sums are layer-major, so a run of neighbouring layers is one call.
        if positions == list(range(positions[0], positions[0] + len(positions))):
            return self._add(positions[0], hidden, batch)
        apart = [self._add(at, [one], batch) for at, one in zip(positions, hidden, strict=True)]
        return Added(torch.cat([one.status for one in apart]), torch.cat([one.pooled for one in apart]))

    def _add(self, start: int, hidden: Sequence[Tensor], batch: SentenceBatch) -> Added:
        at = slice(start, start + len(hidden))
        if self.pooling == "mean":
            pooled, status, of_vectors = self._add_both_levels(at, hidden, batch)
            left_out = status | of_vectors
        else:
            _, status = self._add_tokens(at, hidden, batch)
            pooled = pool_layers((self.pooling,), hidden, batch)[self.pooling]
            left_out = status | self._add_pooled(self.pooling, at, pooled, batch)
        for name, vectors in pool_layers(tuple(self.poolings), hidden, batch).items():
            left_out |= self._add_pooled(name, at, vectors, batch)
        if not read_is_free(left_out) or bool(left_out.any()):
            self._note_left_out(at, left_out, batch.sentence_ids)
        return Added(status, pooled)

    def _add_tokens(self, at: slice, hidden: Sequence[Tensor], batch: SentenceBatch) -> tuple[Tensor, Tensor]:
        sums = self.token.first_order_sums(at)
        return pool_moments_(hidden, batch.mask, batch.cu_seqlens, batch.groups, sums, self.backend)

    def _add_both_levels(
        self, at: slice, hidden: Sequence[Tensor], batch: SentenceBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means of sentences, and what sentences (l, B) have that was left out: of the tokens, of the means."""
        sums = self.token.first_order_sums(at), self.sentence.first_order_sums(at)
        added = pool_and_row_moments_(hidden, batch.mask, batch.cu_seqlens, batch.groups, *sums, self.backend)
        if added is not None:
            pooled, _, of_vectors = added
            if self.sentence.has_second_moments:
                self.sentence.keep_for_products(at, pooled, of_vectors == 0, self.backend)
            return added
        pooled, status = self._add_tokens(at, hidden, batch)
        if batch.empty_by_group is not None:
            self.sentence.n_empty[at] += batch.empty_by_group
        return pooled, status, self.sentence.add_rows(at, pooled, batch.groups_of_pooled, self.backend)

    def add_output(
        self, vectors: Tensor, sentence_ids: Tensor, empty: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Adds the vectors that the model itself gives for sentences to `output`.

        The first ones say how wide it is; second moments are kept of it where they are of the sentence level. A vector
        that is zero or not finite is left out and counted.

        Args:
            vectors: (B, d).
            sentence_ids: (B,) int64 index in the corpus.
            empty: (B,) bool: sentences without a token, which are counted as such; None where all have some.
            groups: (B,) int64, their jackknife groups; None where the ids decide them.

        Raises:
            TypeError, ValueError: as `Moments.update`.
        """
        rows = float_tensor("vectors", vectors, 2, "(B, d)")
        if self.output is None:
            keep: dict[str, Any] = {name: name in self.sentence.fields for name in SECOND_MOMENT_FIELDS}
            self.output = Moments.empty("sentence", [0], rows.shape[1], device=rows.device, **keep)
        elif rows.shape[1] != self.output.dim:
            raise ValueError(f"vectors: got width {rows.shape[1]}; it must be {self.output.dim} as the state's output")
        if groups is None:
            groups = groups_of("sentence_ids", sentence_ids, len(rows), rows.device)
        else:
            groups = to_device(given_groups(groups, len(rows)), rows.device)
        assert groups is not None
        if empty is not None:
            without = to_device(empty, rows.device)
            self.output.n_empty[0].index_add_(0, groups, without.to(groups.dtype))
            groups = torch.where(without, -1, groups)
        self.output.add_rows(slice(None), rows[None], groups, self.backend)

    def _note_left_out(self, at: slice, left_out: Tensor, sentence_ids: Tensor) -> None:
        """Keeps for `first_left_out` which sentences (l, B) were left out: on a GPU a look takes ten small operations.

        Not for long: memory stays flat, and a CUDA graph writes over what it leaves when it is replayed.
        """
        self._left_out.append((at, left_out, sentence_ids))
        if len(self._left_out) >= _MOST_NOTED or torch.compiler.is_compiling() or is_captured(left_out):
            _ = self.first_left_out

    def _add_pooled(self, pooling: str, at: slice, vectors: Tensor, batch: SentenceBatch) -> Tensor:
        """Adds vectors (L, B, D); returns (L, B) uint8, not 0 for a sentence that was left out."""
        moments, empty = self.pooled(pooling), rows_of(pooling, batch).empty
        if empty is None:
            return moments.add_rows(at, vectors, batch.groups, self.backend)
        moments.n_empty[at] += batch.by_group(empty)
        return moments.add_rows(at, vectors, torch.where(empty, -1, batch.groups), self.backend) | empty.byte()

    def clear_(self) -> None:
        """Forgets all sentences, in place: as an empty state, in the same memory."""
        for moments in self.all_moments.values():
            moments.clear_()
        self._first_left_out.fill_(_NO_ID)
        self._left_out.clear()

    def merge(self, other: ConeState) -> ConeState:
        """The state of both sets of sentences; neither input changes.

        Raises:
            ValueError: the states differ in `info`, poolings, output, layers, width or fields, each named.
        """
        refuse_differences("ConeState.info", self.info, other.info)
        refuse_differences("ConeState", self.vector_kinds(), other.vector_kinds())
        return ConeState(
            self.sentence.merge(other.sentence),
            self.token.merge(other.token),
            dict(self.info),
            smallest_ids(self.first_left_out, other.first_left_out),
            self.backend,
            {name: moments.merge(other.poolings[name]) for name, moments in self.poolings.items()},
            self.pooling,
            None if self.output is None or other.output is None else self.output.merge(other.output),
        )

    def vector_kinds(self) -> dict[str, Any]:
        """Which vectors of sentences are summed, as JSON: two states must agree in it before they merge."""
        return {"pooling": self.pooling, "poolings": list(self.poolings), "output": self.output is not None}

    def settled(self, device: torch.device | str | None = None) -> ConeState:
        """A copy on a device (default: the same) without waiting rows: their products are in its second moments."""
        left_out = self.first_left_out.clone()
        return ConeState(
            self.sentence.settled(device),
            self.token.settled(device),
            dict(self.info),
            left_out.to(device or left_out.device),
            self.backend,
            {name: moments.settled(device) for name, moments in self.poolings.items()},
            self.pooling,
            None if self.output is None else self.output.settled(device),
        )

    def on_cpu(self) -> ConeState:
        """This state where formulas take its float64 matrices; see `Moments.on_cpu`."""
        return self if self._first_left_out.device.type == "cpu" else self.settled("cpu")

    def emptied(self) -> ConeState:
        """The state of no sentence that merges with this one."""
        kept: dict[str, Any] = {name: name in self.sentence.fields for name in SECOND_MOMENT_FIELDS}
        device = self._first_left_out.device
        if not self.layers:
            return ConeState.of_vectors(self.sentence.dim, **kept, backend=self.backend, info=self.info)
        empty = ConeState.empty(self.layers, self.sentence.dim, **kept, backend=self.backend, device=device)
        poolings = {
            name: Moments.empty("sentence", self.layers, moments.dim, device=device)
            for name, moments in self.poolings.items()
        }
        output = None if self.output is None else Moments.empty("sentence", [0], self.output.dim, device=device, **kept)
        return replace(empty, info=dict(self.info), poolings=poolings, pooling=self.pooling, output=output)

    def fingerprint(self) -> str:
        """sha256 (hex) of all that `save` writes: equal states have equal fingerprints."""
        return state_file.fingerprint(*self.file_content())

    def save(self, path: str | os.PathLike[str]) -> str:
        """Writes a safetensors file, whole or not at all; returns its fingerprint."""
        return state_file.write(path, *self.file_content())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backend: str = "auto") -> ConeState:
        """Reads what `save` wrote.

        Raises:
            StateFileError: the file is damaged, or not of this kind.
        """
        tensors, info = state_file.read(path, "state", "sentence", "token", optional=OPTIONAL_KEYS)
        return cls.restore(path, tensors, info, backend=backend)

    @classmethod
    def restore(
        cls, path: str | os.PathLike[str], tensors: dict[str, Tensor], info: Mapping[str, Any], *, backend: str = "auto"
    ) -> ConeState:
        """A state from the tensors and the header of a file, whose names, shapes, dtypes and ranges are checked.

        Raises:
            StateFileError: they are not those of a state.
        """
        sentence, token, left_out, poolings, pooling, output = parts_of_file(path, tensors, info)
        names = info["state"].get("layer_names")
        each = [str] * len(left_out)
        if names is not None and not (isinstance(names, list) and [type(one) for one in names] == each):
            raise state_file.StateFileError(
                f"{path}: layer_names are {names!r:.200}; they must be a text for each of its {len(each)} layers"
            )
        return cls(sentence, token, info["state"], left_out, backend, poolings, pooling, output)

    def file_content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the JSON header that `save` writes and `restore` takes."""
        kept = Parts(self.sentence, self.token, self.first_left_out, self.poolings, self.pooling, self.output)
        tensors, header = kept.file_content()
        return tensors, {"state": self.info, **header}


def smallest_ids(kept: Tensor, ids: Tensor) -> Tensor:
    """The eight smallest distinct ids of both, (L, 8) and (L, n), padded as `first_left_out` is: (L, 8)."""
    ordered = torch.cat([kept, ids], dim=1).sort().values
    again = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return ordered.masked_fill(again, _NO_ID).sort().values[:, : kept.shape[1]]
