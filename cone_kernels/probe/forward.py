"""The forward that is running, as the probe sees it: its sentences, the tokens that count, the layers added."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.devices import to_device
from cone_kernels.models.transformers_names import ATTENTION_MASK
from cone_kernels.probe.batch_arguments import (
    BatchNotes,
    has_gaps,
    mask_values,
    n_padding,
    refuse_cache,
    refuse_other_values,
    refuse_packed_rows,
    sentence_starts,
    token_mask,
    tokens_of,
)
from cone_kernels.probe.calibration import Kind
from cone_kernels.probe.layer_points import LayerPoint
from cone_kernels.probe.positions import Positions
from cone_kernels.state.poolings import needs_special, refuse_missing_special
from cone_kernels.state.sentence_batch import SentenceBatch

# How much memory the layers take that wait so that one call adds them all: a cache on a CPU, what a GPU can spare.
_HELD_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}

# The bits of the status that ConeState.update returns for each layer and sentence.
_FAULTS = {1: "a zero token", 2: "a token that is not finite", 4: "no token under the mask"}


@dataclass
class ProbedForward:
    """One forward; made by `of`.

    Attributes:
        sentence_ids: (B',) int64, of the sentences that are no repeats.
        mask: (B, T) bool, or (1, N) where the sentences are flattened into one row; (B, 0) of images and sounds before
            the first layer shows how many positions they have.
        special: special tokens, of the shape of `mask`.
        cu_seqlens: (B + 1,) int64, first rows of the sentences in packed layers.
        flattened: whether the batch is one row (1, N) of several sentences.
        kept: (B,) bool, the sentences that are neither repeats nor padding; None for all.
        groups: (B',) int64, their jackknife groups; None where the ids decide them.
        calls: how often each module's input or output was seen so far.
        seen: layers that were taken in.
        held: layers that wait to be added, with their hidden states; all are alike.
        added: layers that are in the sums.
        status: of each layer that was added, as `ConeState.update` returns it; kept for `strict` alone.
        thread: the one that it runs in.
        positions: of images and sounds, which of their positions count; None for texts.
    """

    sentence_ids: Tensor
    mask: Tensor
    special: Tensor | None = None
    cu_seqlens: Tensor | None = None
    flattened: bool = False
    kept: Tensor | None = None
    groups: Tensor | None = None
    calls: dict[tuple[str, Kind], int] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    held: list[tuple[int, Tensor]] = field(default_factory=list)
    added: set[int] = field(default_factory=set)
    status: dict[int, Tensor] = field(default_factory=dict)
    thread: int = field(default_factory=threading.get_ident)
    positions: Positions | None = None
    _batches: dict[bool, SentenceBatch] = field(default_factory=dict)
    _unchecked_mask: Callable[[], Tensor] | None = None
    _poolings: Sequence[str] = ()
    _n_rows: int | None = None
    _held_form: tuple[object, ...] | None = None
    _most_held: int = 0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        arguments: Mapping[str, Any],
        notes: BatchNotes,
        first_id: int,
        poolings: Sequence[str],
    ) -> ProbedForward:
        """The forward that a call of a model with these arguments (by name) begins.

        Sentences flattened into one row (1, N), as by transformers' `DataCollatorWithFlattening` and
        sentence-transformers, are recognised by `cu_seq_lens_q` (B + 1,), by `seq_idx` (1, N), or by `position_ids`
        (1, N) that start again; what fills up the row behind them is left out.

        Raises:
            ValueError: there are no tokens, or mask, ids or special do not fit them.
        """
        refuse_cache(arguments)
        positions = Positions.of(model, arguments, notes.mask)
        tokens = tokens_of(arguments) if positions is None else positions.input
        size = (*tokens.shape[:2],) if positions is None else (len(tokens), 0)
        starts = sentence_starts(arguments, size, notes) if positions is None else None
        unchecked: Callable[[], Tensor] | None = None
        if positions is not None:
            mask, unchecked = torch.ones(size, dtype=torch.bool), mask_values(positions)
        elif starts is None:
            mask, unchecked = token_mask(arguments, notes, size, tokens.device)
            refuse_packed_rows(arguments, mask)
        else:
            mask = torch.ones(size, dtype=torch.bool, device=tokens.device)
        padding = 0 if starts is None else n_padding(model, arguments, starts)
        n_sentences = size[0] if starts is None else len(starts) - 1 - padding
        kept = None if notes.repeats is None or not bool(notes.repeats.any()) else ~notes.repeats.to(tokens.device)
        given = {"sentence_ids": notes.sentence_ids, "repeats": notes.repeats, "groups": notes.groups}
        for name, value in given.items():
            if value is not None and len(value) != n_sentences:
                raise ValueError(
                    f"{name}: got {len(value)}; it must be {n_sentences}, one for each sentence of the batch"
                )
        if notes.sentence_ids is None:
            n_kept = n_sentences if kept is None else int(kept.sum())
            ids = torch.arange(first_id, first_id + n_kept, device="cpu")
        else:
            ids = notes.sentence_ids.to(torch.int64)
            ids = ids if kept is None else ids[kept.to(ids.device)]
        groups = notes.groups
        groups = groups if groups is None or kept is None else groups[kept.to(groups.device)]
        if padding > 0:
            all_kept = torch.ones(n_sentences, dtype=torch.bool, device=tokens.device)
            kept = nn.functional.pad(all_kept if kept is None else kept, (0, padding))
        form: dict[str, Any] = {"cu_seqlens": starts, "flattened": starts is not None, "kept": kept, "groups": groups}
        made = cls(ids, mask, notes.special, **form, positions=positions, _unchecked_mask=unchecked, _poolings=poolings)
        if positions is None:
            made._refuse_wrong_special()
        return made

    def begin(self, point: LayerPoint, hidden: Tensor) -> None:
        """Takes from the first layer that is seen where the sums are made, and how many positions there are.

        Raises:
            ValueError: the mask of images or sounds does not fit their positions.
        """
        if self.positions is not None:
            if hidden.dim() != 3:
                raise ValueError(
                    f"layer {point.layer} ({point.name}): got hidden states of shape {tuple(hidden.shape)}; it must be "
                    f"(B, T, D) for {self.positions.name}"
                )
            n_positions = hidden.shape[0 if point.time_major else 1]
            self.mask = self.positions.mask_of(n_positions)
            if self.special is None and needs_special(self._poolings):
                self.special = self.positions.special_of(n_positions)
            self._refuse_wrong_special()
        self.move_to(hidden.device)

    def _refuse_wrong_special(self) -> None:
        refuse_missing_special(self._poolings, self.special)
        if self.special is not None and self.special.shape != self.mask.shape:
            size = tuple(self.mask.shape)
            raise ValueError(f"special: got shape {tuple(self.special.shape)}; it must be {size} as the tokens")

    def refuse_wrong_mask(self) -> None:
        """Raises ValueError where the mask of the call has other values than 0 and 1, which a GPU's shows late.

        Of a mask of samples it is one too that the padding comes before them.
        """
        if self._unchecked_mask is not None:
            values, self._unchecked_mask = self._unchecked_mask(), None
            name = ATTENTION_MASK if self.positions is None else self.positions.mask_name
            refuse_other_values(values, name)
            if self.positions is not None and values.shape != self.mask.shape and has_gaps(values):
                raise ValueError(
                    f"{name}: got padding before samples; it must follow them, as the model takes it to do"
                )

    def rows_of(self, point: LayerPoint, hidden: Tensor, dim: int) -> Tensor:
        """A layer's hidden states, (B, T, D), (T, B, D) or packed (N, D), as (B', T, D) or (N', D) without repeats.

        Raises:
            ValueError: its shape does not fit the batch.
        """
        if point.time_major and hidden.dim() == 3:
            hidden = hidden.transpose(0, 1)
        packed = hidden.dim() == 2
        if point.padded and not packed:
            hidden = hidden[:, : self.mask.shape[1]]
        fits = len(hidden) == self._n_packed() if packed else hidden.shape[:2] == self.mask.shape
        if not fits:
            wanted = (
                f"({self._n_packed()}, D) for the tokens under the mask" if packed else f"{(*self.mask.shape, dim)}"
            )
            got = f"got hidden states of shape {tuple(hidden.shape)}; it must be {wanted}"
            raise ValueError(f"layer {point.layer} ({point.name}): {got}")
        rows = hidden[0] if self.flattened and not packed else hidden
        return rows if self.kept is None else rows[self._kept_tokens() if rows.dim() == 2 else self.kept]

    def batch_of(self, rows: Tensor) -> SentenceBatch:
        """The batch for layers of this form, padded or packed; it is checked once for each of the two forms."""
        packed = rows.dim() == 2
        if packed not in self._batches:
            mask, starts = (None, self.cu_seqlens) if packed else (self.mask, None)
            special = self.special[self.mask] if packed and self.special is not None else self.special
            if self.kept is not None:
                mask = None if mask is None else mask[self.kept]
                special = None if special is None else special[self._kept_tokens() if packed else self.kept]
                starts = None if starts is None else nn.functional.pad(starts.diff()[self.kept].cumsum(0), (1, 0))
            self._batches[packed] = SentenceBatch.of(
                rows, mask, starts, self.sentence_ids, special=special, groups=self.groups
            )
        return self._batches[packed]

    def holds_like(self, rows: Tensor) -> bool:
        """Whether these rows of a layer can be added together with the layers that wait."""
        return not self.held or _form(rows) == _form(self.held[0][1])

    def hold(self, layer: int, rows: Tensor, *, as_it_was: bool) -> None:
        """Lets the rows of a layer wait; `as_it_was` where `rows_of` left its hidden states as they were."""
        self.seen.add(layer)
        self.held.append((layer, rows))
        self._held_form = _form(rows) if as_it_was else None
        limit = _HELD_BYTES.get(rows.device.type, 0)
        self._most_held = -(-limit // max(1, rows.numel() * rows.element_size()))

    def holds_another(self, point: LayerPoint, hidden: Tensor) -> bool:
        """Lets a layer wait that is in every way as those which wait as they were, so that it needs no check.

        Returns:
            False, and nothing is done, where it is not so.
        """
        if not self.held or hidden.requires_grad or point.time_major or _form(hidden) != self._held_form:
            return False
        self.seen.add(point.layer)
        self.held.append((point.layer, hidden))
        return True

    def holds_enough(self) -> bool:
        """Whether the layers that wait take as much memory as they may."""
        return len(self.held) >= self._most_held

    def move_to(self, device: torch.device) -> None:
        """Moves the masks to the device of the layers; the caller's may be on the CPU, each for itself."""
        self.mask = to_device(self.mask, device)
        self.special = None if self.special is None else to_device(self.special, device)
        self.kept = None if self.kept is None else to_device(self.kept, device)
        self.cu_seqlens = None if self.cu_seqlens is None else to_device(self.cu_seqlens, device)
        self._batches.clear()

    def refuse_faults(self, names: Mapping[int, str]) -> None:
        """Raises ValueError where a token is zero or not finite, or a sentence has no token.

        Args:
            names: what each layer is.
        """
        faults = []
        for layer, status in sorted(self.status.items()):
            for bit, what in _FAULTS.items():
                ids = self.sentence_ids[(status & bit).bool().to(self.sentence_ids.device)].tolist()
                if ids:
                    listed = ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
                    faults.append(f"layer {layer} ({names[layer]}): {what} in sentences {listed}")
        if faults:
            raise ValueError("strict: " + "; ".join(faults))

    def _n_packed(self) -> int:
        """How many rows the batch has with its padding left out; fills in `cu_seqlens`."""
        if self.cu_seqlens is None:
            self.cu_seqlens = nn.functional.pad(self.mask.sum(dim=1).cumsum(0), (1, 0))
        if self._n_rows is None:
            self._n_rows = int(self.cu_seqlens[-1])
        return self._n_rows

    def _kept_tokens(self) -> Tensor:
        """(N,) bool: the tokens of the sentences that are no repeats."""
        assert self.kept is not None
        assert self.cu_seqlens is not None
        return torch.repeat_interleave(self.kept, self.cu_seqlens.diff())


def _form(hidden: Tensor) -> tuple[object, ...]:
    return type(hidden), hidden.shape, hidden.stride(), hidden.dtype, hidden.device
