"""What the arguments of a call, and `ConeProbe.next_batch`, say of its batch: sentences, tokens, the mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.devices import OnItsWay, is_captured
from cone_kernels.models.transformers_names import (
    ATTENTION_MASK,
    INPUTS,
    OTHER_INPUTS,
    POSITIONS,
    SEQUENCE_NUMBERS,
    STARTS,
    TOKENS,
    filled_cache,
    padding_token,
)
from cone_kernels.probe.positions import Positions

# torch finds no largest value of these; as signed integers what is above 1 is so still, or below 0.
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@dataclass(frozen=True)
class BatchNotes:
    """What `ConeProbe.next_batch` says of the next forward."""

    sentence_ids: Tensor | None = None  # (B,) integers
    mask: Tensor | None = None  # (B, T) bool
    special: Tensor | None = None  # (B, T) bool
    repeats: Tensor | None = None  # (B,) bool
    groups: Tensor | None = None  # (B,) int64


def checked_mask(mask: object, name: str) -> Tensor:
    """(B, T) bool from a mask of bool or 0/1 integers, of which the host waits for those on a GPU."""
    given = _mask_of_integers(mask, name)
    if given.dtype == torch.bool:
        return given
    refuse_other_values(given.cpu(), name)
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


def has_gaps(mask: Tensor) -> bool:
    """Whether a mask (B, n) of 0 and 1 has a 1 after a 0."""
    return bool((mask.to(torch.int8).diff(dim=1) > 0).any())


def refuse_other_values(mask: Tensor, name: str) -> None:
    """Raises ValueError where a mask of integers on the CPU has other values than 0 and 1."""
    # Sequence numbers of packed batches, or Longformer's 2 for global attention, do not say which tokens count.
    values = mask.view(_SIGNED[mask.dtype]) if mask.dtype in _SIGNED else mask
    if mask.numel() > 0 and not (int(values.min()) >= 0 and int(values.max()) <= 1):
        raise ValueError(
            f"{name}: got values other than 0 and 1; it must say for each token whether it counts{_hint_for(name)}"
        )


def _hint_for(name: str) -> str:
    return "" if name == "special" else "; say which tokens count by next_batch(mask=...)"


def refuse_cache(arguments: Mapping[str, Any]) -> None:
    name = filled_cache(arguments)
    if name is not None:
        raise ValueError(
            f"{name}: got a cache with earlier tokens; it must be empty, as a probed forward takes in "
            "whole sentences (generate() continues them; probe the forward on the prompt alone)"
        )


def tokens_of(arguments: Mapping[str, Any]) -> Tensor:
    tokens = next((arguments[name] for name in TOKENS if arguments.get(name) is not None), None)
    if not isinstance(tokens, Tensor) or tokens.dim() < 2 or 0 in tokens.shape[:2]:
        got = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else "none"
        raise ValueError(
            f"{' or '.join(TOKENS)}: got {got}; it must be at least one token, (B, T) or (B, T, D), or one of "
            f"{', '.join(OTHER_INPUTS)} (of a SentenceTransformer probe the model inside, model[0].auto_model)"
        )
    return tokens


def token_mask(
    arguments: Mapping[str, Any], notes: BatchNotes, size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Callable[[], Tensor] | None]:
    """(B, T) bool, and what gives the integers that it was made of where they are still to be checked."""
    name = "mask" if notes.mask is not None else ATTENTION_MASK
    given = notes.mask if notes.mask is not None else arguments.get(ATTENTION_MASK)
    if given is None:
        return torch.ones(size, dtype=torch.bool, device=device), None
    mask = _mask_of_integers(given, name)
    if mask.shape != size:
        longer = " (continuing from a key-value cache cannot be probed)" if mask.shape[1] > size[1] else ""
        raise ValueError(f"{name}: got shape {tuple(mask.shape)}; it must be {size} as the tokens{longer}")
    if mask.dtype == torch.bool or not mask.is_cuda:
        return checked_mask(mask, name), None
    return mask.to(torch.bool), _values_on_their_way(mask)


def mask_values(positions: Positions) -> Callable[[], Tensor] | None:
    """What gives the values of the mask of images or sounds, on the CPU; None where there is none to be checked."""
    if positions.mask is None:
        return None
    mask = _mask_of_integers(positions.mask, positions.mask_name)
    return _values_on_their_way(mask) if mask.is_cuda else lambda: mask


def _values_on_their_way(mask: Tensor) -> Callable[[], Tensor] | None:
    """What gives the values of a mask on a GPU, on the CPU; None in the capture of a CUDA graph, where it has none.

    A look at them at once would make the host wait for all that the GPU has still to do.
    """
    return None if is_captured(mask) else OnItsWay(mask).values


def n_sentences(model: nn.Module, arguments: Mapping[str, Any]) -> int:
    """How many sentences, images or sounds a forward with these arguments (by name) takes in; 0 where it takes in none.

    Raises:
        ValueError: what says where they begin does not fit the tokens.
    """
    name = next((name for name in INPUTS if arguments.get(name) is not None), None)
    tokens = None if name is None else arguments[name]
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return 0
    if name in OTHER_INPUTS:
        return len(tokens)
    starts = sentence_starts(arguments, tuple(tokens.shape[:2]), BatchNotes())
    return len(tokens) if starts is None else len(starts) - 1 - n_padding(model, arguments, starts)


def sentence_starts(arguments: Mapping[str, Any], size: tuple[int, ...], notes: BatchNotes) -> Tensor | None:
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


def n_padding(model: nn.Module, arguments: Mapping[str, Any], starts: Tensor) -> int:
    """How many of the sentences of a flattened batch are padding: at the end, of the padding token alone each.

    TRL's collator lets a sentence begin at each token that it fills up a row with (`pad_to_multiple_of`).

    Args:
        model: whose configuration says which token it is.
        arguments: of the call, by name.
        starts: (B + 1,) int64, as from `sentence_starts`.
    """
    ids = arguments.get(TOKENS[0])
    padding = padding_token(model)
    if padding is None or not isinstance(ids, Tensor) or ids.dim() != 2:
        return 0
    alone = starts.diff() == 1
    if not bool(alone[-1:].any()):
        return 0
    last = ids[0, starts[:-1].clamp(0, ids.shape[1] - 1).to(ids.device)] == padding
    return int((alone & last.to(alone.device)).flip(0).cumprod(0).sum())


def refuse_packed_rows(arguments: Mapping[str, Any], mask: Tensor) -> None:
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
