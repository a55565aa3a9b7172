"""Which positions of the hidden states of images and sounds count: the model makes them, and no input says how many."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.models.transformers_names import (
    ATTENTION_MASK,
    FRAME_MASK,
    FRAMES_OF_SAMPLES,
    INPUTS,
    OTHER_INPUTS,
    PATCH_MASK,
    PIXELS,
    UNMASKED_SOUND,
)


@dataclass(frozen=True)
class Positions:
    """The positions of one forward on images or sounds, each of which is one sentence of the state.

    All positions count, those of class and register tokens too, unless a mask says otherwise. A mask of the samples of
    a sound becomes one of its frames as in the model: the first frames count, as many as the samples under the mask
    make, and a sound too short for one frame has none.

    Attributes:
        model: the one that runs.
        name: of the input: `pixel_values`, `input_features` or `input_values`.
        input: (B, ...).
        mask: (B, n) bool or integers, of samples, frames, patches or positions; None where all count.
        mask_name: the argument that it came by.
    """

    model: nn.Module
    name: str
    input: Tensor
    mask: Tensor | None = None
    mask_name: str = ATTENTION_MASK

    @classmethod
    def of(cls, model: nn.Module, arguments: Mapping[str, Any], mask: Tensor | None) -> Positions | None:
        """The positions of a call with these arguments (by name); None where it takes in tokens of texts.

        Args:
            model: the one that is called.
            arguments: of the call.
            mask: (B, T) of its positions, in place of what the call says; None where nothing was said.

        Raises:
            ValueError: the input has no row, or is no batch.
        """
        name = next((name for name in INPUTS if arguments.get(name) is not None), None)
        if name not in OTHER_INPUTS:
            return None
        given = arguments[name]
        if not isinstance(given, Tensor) or given.dim() < 2 or 0 in given.shape:
            got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{name}: got {got}; it must be one image or sound at least, a tensor (B, ...)")
        if mask is not None:
            return cls(model, name, given, mask, "mask")
        mask_name = PATCH_MASK if name == PIXELS else ATTENTION_MASK
        found = arguments.get(mask_name)
        return cls(model, name, given, found, mask_name)

    def mask_of(self, n_positions: int) -> Tensor:
        """(B, T) bool: which of so many positions of each row count.

        Raises:
            ValueError: the mask is of something else than the positions, and how the model turns it into theirs is not
                known.
        """
        size = (len(self.input), n_positions)
        if self.mask is None:
            return torch.ones(size, dtype=torch.bool, device=self.input.device)
        if tuple(self.mask.shape) == size:
            return self.mask.to(torch.bool)
        if not self._counts_from_the_first(n_positions):
            raise ValueError(
                f"{self.mask_name}: got shape {tuple(self.mask.shape)}; it must be {size} as the positions of the "
                f"layers (how {type(self.model).__name__} turns another mask into theirs is not known here); say "
                "which count by next_batch(mask=...)"
            )
        lengths = self._frames(self.mask.to(torch.int64).sum(1))
        return torch.arange(n_positions, device=lengths.device) < lengths[:, None]

    def special_of(self, n_positions: int) -> Tensor | None:
        """(B, T) bool: the class and register tokens, which come before the patches; None where that is not known."""
        patch = getattr(getattr(self.model, "config", None), "patch_size", None)
        sides = (patch, patch) if isinstance(patch, int) else patch
        if self.name != PIXELS or self.input.dim() != 4 or not isinstance(sides, (tuple, list)) or len(sides) != 2:
            return None
        height, width = (int(size) // int(side) for size, side in zip(self.input.shape[2:], sides, strict=True))
        before = n_positions - height * width
        if before < 0:
            return None
        return (torch.arange(n_positions, device=self.input.device) < before).expand(len(self.input), -1)

    def _counts_from_the_first(self, n_positions: int) -> bool:
        """Whether the model lets the first frames of a sound count, and makes this many of all that the mask is of."""
        assert self.mask is not None
        kind = getattr(getattr(self.model, "config", None), "model_type", None)
        knows = hasattr(self.model, FRAMES_OF_SAMPLES) and (hasattr(self.model, FRAME_MASK) or kind in UNMASKED_SOUND)
        if not knows or self.mask_name != ATTENTION_MASK or len(self.mask) != len(self.input):
            return False
        return int(self._frames(torch.tensor([self.mask.shape[1]]))) == n_positions

    def _frames(self, lengths: Tensor) -> Tensor:
        """(B,) int64: how many frames so many samples make, before what an adapter leaves of them."""
        frames_of = getattr(self.model, FRAMES_OF_SAMPLES)
        # The hidden states are those before an adapter, which the count of some models takes in.
        own = {"add_adapter": False} if "add_adapter" in inspect.signature(frames_of).parameters else {}
        counted: Tensor = frames_of(lengths, **own)
        return counted.to(torch.int64)
