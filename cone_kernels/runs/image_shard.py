"""Images as a model takes them in: what a run gives to a model of images, in place of an `EncodedShard`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cone_kernels.devices import to_device
from cone_kernels.models.images import pixels_of
from cone_kernels.models.loaded import LoadedModel
from cone_kernels.models.transformers_names import PIXELS


@dataclass(frozen=True, eq=False)
class ImageShard:
    """The images of a shard.

    Attributes:
        first_id: the index of its first image in the corpus.
        pixels: (n, C, H, W), as the model's own processor gives them.
        lengths: positions of the hidden states of each image.
        groups: (n,) int64 jackknife groups; None where the indices decide them.
        truncated, unknown: 0, as of texts.
    """

    first_id: int
    pixels: Tensor = field(repr=False)
    lengths: list[int] = field(repr=False)
    groups: Tensor | None = None
    truncated: int = 0
    unknown: int = 0

    @classmethod
    def of(
        cls, loaded: LoadedModel, paths: list[str], first_id: int = 0, *, groups: list[int] | None = None
    ) -> ImageShard:
        """The images of these files, through the model's own processor.

        Raises:
            ImageError: one cannot be read.
        """
        pixels = pixels_of(loaded.image_processor, paths)
        given = None if groups is None else torch.tensor(groups)
        return cls(first_id, pixels, [loaded.image_positions] * len(paths), given)

    def padded_inputs(self, batch: list[int], loaded: LoadedModel, length: int | None = None) -> dict[str, Tensor]:
        """The model's input for images by their positions in the shard."""
        like = next(loaded.model.parameters())
        return {PIXELS: to_device(self.pixels[batch].to(like.dtype), loaded.device)}

    def groups_of(self, batch: list[int]) -> Tensor | None:
        """As of an `EncodedShard`."""
        return None if self.groups is None else self.groups[batch]

    def n_tokens(self, batch: list[int]) -> int:
        """Positions of these images together."""
        return sum(self.lengths[index] for index in batch)
