"""The forward that is running, as the probe sees it: its sentences, the tokens that count, the layers added."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.devices import OnItsWay, is_captured, to_device
from cone_kernels.models.transformers_names import (
    ATTENTION_MASK,
    POSITIONS,
    SEQUENCE_NUMBERS,
    STARTS,
    TOKENS,
    filled_cache,
)
from cone_kernels.probe.calibration import Kind
from cone_kernels.probe.layer_points import LayerPoint
from cone_kernels.state.poolings import refuse_missing_special
from cone_kernels.state.sentence_batch import SentenceBatch

# How much memory the layers take that wait so that one call adds them all: a cache on a CPU, what a GPU can spare.
_HELD_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}

# torch finds no largest value of these; as signed integers what is above 1 is so still, or below 0.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


# The bits of the status that ConeState.update returns for each layer and sentence.
_FAULTS = {1: "a zero token", 2: "a token that is not finite", 4: "no token under the mask"}


@dataclass(frozen=True)
class BatchNotes:
    """What `ConeProbe.next_batch` says of the next forward."""

    sentence_ids: Tensor | None = None  # (B,) integers
    mask: Tensor | None = None  # (B, T) bool
    special: Tensor | None = None  # (B, T) bool
    repeats: Tensor | None = None  # (B,) bool
    groups: Tensor | None = None  # (B,) int64


@dataclass
class ProbedForward:
    """One forward; made by `of`.

    Attributes:
        sentence_ids: (B',) int64, of the sentences that are no repeats.
        mask: (B, T) bool, or (1, N) where the sentences are flattened into one row.
        special: special tokens, of the shape of `mask`.
        cu_seqlens: (B + 1,) int64, first rows of the sentences in packed layers.
        flattened: whether the batch is one row (1, N) of several sentences.
        kept: (B,) bool, the sentences that are no repeats; None for all.
        groups: (B',) int64, their jackknife groups; None where the ids decide them.
        calls: how often each module's input or output was seen so far.
        seen: layers that were taken in.
        held: layers that wait to be added, with their hidden states; all are alike.
        added: layers that are in the sums.
        status: of each layer that was added, as `ConeState.update` returns it; kept for `strict` alone.
        thread: the one that it runs in.
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
    _batches: dict[bool, SentenceBatch] = field(default_factory=dict)
    _mask_on_its_way: OnItsWay | None = None
    _n_rows: int | None = None
    _held_form: tuple[object, ...] | None = None
    _most_held: int = 0

    @classmethod
    def of(
        cls, arguments: Mapping[str, Any], notes: BatchNotes, first_id: int, poolings: Sequence[str]
    ) -> ProbedForward:
        """The forward that a call with these arguments (by name) begins.

        Sentences flattened into one row (1, N), as by transformers' `DataCollatorWithFlattening` and
        sentence-transformers, are recognised by `cu_seq_lens_q` (B + 1,), by `seq_idx` (1, N), or by `position_ids`
        (1, N) that start again.

        Raises:
            ValueError: there are no tokens, or mask, ids or special do not fit them.
        """
        _refuse_cache(arguments)
        tokens = _tokens(arguments)
        size = tuple(tokens.shape[:2])
        starts = _sentence_starts(arguments, size, notes)
        on_its_way: OnItsWay | None = None
        if starts is None:
            mask, on_its_way = _token_mask(arguments, notes, size, tokens.device)
            _refuse_packed_rows(arguments, mask)
        else:
            mask = torch.ones(size, dtype=torch.bool, device=tokens.device)
        n_sentences = size[0] if starts is None else len(starts) - 1
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
        refuse_missing_special(poolings, notes.special)
        if notes.special is not None and notes.special.shape != size:
            raise ValueError(f"special: got shape {tuple(notes.special.shape)}; it must be {size} as the tokens")
        form: dict[str, Any] = {"cu_seqlens": starts, "flattened": starts is not None, "kept": kept, "groups": groups}
        return cls(ids, mask, notes.special, **form, _mask_on_its_way=on_its_way)

    def refuse_wrong_mask(self) -> None:
        """Raises ValueError where the mask of the call has other values than 0 and 1, which a GPU's shows late."""
        if self._mask_on_its_way is not None:
            _refuse_other_values(self._mask_on_its_way.values(), ATTENTION_MASK)
            self._mask_on_its_way = None

    def rows_of(self, point: LayerPoint, hidden: Tensor, dim: int) -> Tensor:
        """A layer's hidden states, (B, T, D), (T, B, D) or packed (N, D), as (B', T, D) or (N', D) without repeats.

        Raises:
            ValueError: its shape does not fit the batch.
        """
        if point.time_major and hidden.dim() == 3:
            hidden = hidden.transpose(0, 1)
        packed = hidden.dim() == 2
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


def checked_mask(mask: object, name: str) -> Tensor:
    """(B, T) bool from a mask of bool or 0/1 integers, of which the host waits for those on a GPU."""
    given = _mask_of_integers(mask, name)
    if given.dtype == torch.bool:
        return given
    _refuse_other_values(given.cpu(), name)
    return given.to(torch.bool)


def _mask_of_integers(mask: object, name: str) -> Tensor:
    """A mask as it was given, of bool or of integers that have still to be checked."""
    hint = _hint_for(name)
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: got {type(mask).__name__}; it must be a tensor (B, T){hint}")
    if mask.dim() != 2 or mask.is_floating_point() or mask.is_complex():
        raise ValueError(
            f"{name}: got {mask.dtype} of shape {tuple(mask.shape)}; it must be bool or 0/1 integers (B, T){hint}"
        )
    return mask


def _refuse_other_values(mask: Tensor, name: str) -> None:
    """Raises ValueError where a mask of integers on the CPU has other values than 0 and 1."""
    # Sequence numbers of packed batches, or Longformer's 2 for global attention, do not say which tokens count.
    values = mask.view(_SIGNED[mask.dtype]) if mask.dtype in _SIGNED else mask
    if mask.numel() > 0 and not (int(values.min()) >= 0 and int(values.max()) <= 1):
        raise ValueError(
            f"{name}: got values other than 0 and 1; it must say for each token whether it counts{_hint_for(name)}"
        )


def _hint_for(name: str) -> str:
    return "" if name == "special" else "; say which tokens count by next_batch(mask=...)"


def _refuse_cache(arguments: Mapping[str, Any]) -> None:
    name = filled_cache(arguments)
    if name is not None:
        raise ValueError(
            f"{name}: got a cache with earlier tokens; it must be empty, as a probed forward takes in "
            "whole sentences (generate() continues them; probe the forward on the prompt alone)"
        )


def _tokens(arguments: Mapping[str, Any]) -> Tensor:
    tokens = next((arguments[name] for name in TOKENS if arguments.get(name) is not None), None)
    if not isinstance(tokens, Tensor) or tokens.dim() < 2 or 0 in tokens.shape[:2]:
        got = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else "none"
        raise ValueError(
            f"{' or '.join(TOKENS)}: got {got}; it must be at least one token, (B, T) or (B, T, D) (of a "
            "SentenceTransformer probe the model inside, model[0].auto_model)"
        )
    return tokens


def _token_mask(
    arguments: Mapping[str, Any], notes: BatchNotes, size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, OnItsWay | None]:
    """(B, T) bool, and the integers that it was made of where they are still to be checked."""
    name = "mask" if notes.mask is not None else ATTENTION_MASK
    given = notes.mask if notes.mask is not None else arguments.get(ATTENTION_MASK)
    if given is None:
        return torch.ones(size, dtype=torch.bool, device=device), None
    mask = _mask_of_integers(given, name)
    if mask.shape != size:
        longer = " (continuing from a key-value cache cannot be probed)" if mask.shape[1] > size[1] else ""
        raise ValueError(f"{name}: got shape {tuple(mask.shape)}; it must be {size} as the tokens{longer}")
    if mask.dtype == torch.bool or not mask.is_cuda or is_captured(mask):
        return checked_mask(mask, name), None
    # A look at them now would make the host wait for all that the GPU has still to do.
    return mask.to(torch.bool), OnItsWay(mask)


def n_sentences(arguments: Mapping[str, Any]) -> int:
    """How many sentences a forward with these arguments (by name) takes in; 0 where it takes in no tokens.

    Raises:
        ValueError: what says where they begin does not fit the tokens.
    """
    tokens = next((arguments[name] for name in TOKENS if arguments.get(name) is not None), None)
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return 0
    starts = _sentence_starts(arguments, tuple(tokens.shape[:2]), BatchNotes())
    return len(tokens) if starts is None else len(starts) - 1


def _sentence_starts(arguments: Mapping[str, Any], size: tuple[int, ...], notes: BatchNotes) -> Tensor | None:
    """(B + 1,) int64: where each sentence begins in the one row of a flattened batch, and N; None of other batches."""
    starts = arguments.get(STARTS[0])
    if starts is not None:
        return _checked_starts(starts, size, notes)
    if size[0] != 1 or notes.mask is not None or arguments.get(ATTENTION_MASK) is not None:
        return None
    begins: Tensor | None = None
    numbers, positions = _of_size(arguments, SEQUENCE_NUMBERS, size), _of_size(arguments, POSITIONS, size)
    if numbers is not None:
        begins = numbers[0, 1:] != numbers[0, :-1]
    elif positions is not None:
        begins = _starts_again(positions)[0]
    if begins is None or not bool(begins.any()):
        return None
    at = begins.nonzero()[:, 0] + 1
    return nn.functional.pad(nn.functional.pad(at, (1, 0)), (0, 1), value=size[1])


def _refuse_packed_rows(arguments: Mapping[str, Any], mask: Tensor) -> None:
    """Raises ValueError where rows of a padded batch have several sentences each."""
    positions = _of_size(arguments, POSITIONS, tuple(mask.shape))
    if positions is None:
        return
    both = mask[:, 1:] & mask[:, :-1]
    if bool((_starts_again(positions) & both.to(positions.device)).any()):
        raise ValueError(
            f"{POSITIONS}: got positions that start again within a row of tokens {tuple(mask.shape)}; it must be one "
            "sentence a row, or one row (1, N) of all sentences without a mask"
        )


def _of_size(arguments: Mapping[str, Any], name: str, size: tuple[int, ...]) -> Tensor | None:
    value = arguments.get(name)
    return value if isinstance(value, Tensor) and tuple(value.shape) == size else None


def _starts_again(positions: Tensor) -> Tensor:
    """(B, T - 1) bool: whether the position (B, T) of a token is not after that of the one before; none in rows whose
    positions are all the same, which say nothing."""
    again: Tensor = positions[:, 1:] <= positions[:, :-1]
    return again & (positions != positions[:, :1]).any(1, keepdim=True)


def _checked_starts(starts: object, size: tuple[int, ...], notes: BatchNotes) -> Tensor:
    """(B + 1,) int64: where each sentence begins in the one row of a flattened batch, and N."""
    if notes.mask is not None:
        raise ValueError(
            f"mask: got one for a batch with {STARTS[0]}; it must be None, as every token of such a batch counts"
        )
    if size[0] != 1 or not isinstance(starts, Tensor) or starts.dim() != 1 or starts.is_floating_point():
        got = f"{starts.dtype} of shape {tuple(starts.shape)}" if isinstance(starts, Tensor) else type(starts).__name__
        raise ValueError(f"{STARTS[0]}: got {got} with tokens {size}; it must be integers (B + 1,) with tokens (1, N)")
    return starts.to(torch.int64)
