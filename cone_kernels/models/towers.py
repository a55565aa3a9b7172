"""A model with a tower of texts and one of images, as CLIP and SigLIP: what each of them takes, and what it gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.models.images import pixels_of
from cone_kernels.models.source import ModelError
from cone_kernels.models.transformers_names import ATTENTION_MASK, PIXELS, TOKEN_TYPES, TOWERS

TEXTS_TOWER, IMAGES_TOWER = TOWERS


@dataclass(frozen=True)
class Towers:
    """A model of texts and images, with what makes its inputs.

    Attributes:
        model: of transformers, with both towers.
        tokenizer: of its texts.
        image_processor: of its images.
        name: as it was asked for.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    name: str

    def __post_init__(self) -> None:
        lacks = [name for pair in TOWERS.items() for name in pair if not hasattr(self.model, name)]
        if lacks:
            raise ModelError(
                f"model: {self.name} is a {type(self.model).__name__}, which has no {lacks[0]}; it must have a tower "
                "of texts and one of images, as CLIP and SigLIP"
            )

    @property
    def text_tower(self) -> nn.Module:
        """The module whose hidden states are those of texts."""
        tower: nn.Module = getattr(self.model, TEXTS_TOWER)
        return tower

    @property
    def image_tower(self) -> nn.Module:
        """The module whose hidden states are those of images."""
        tower: nn.Module = getattr(self.model, IMAGES_TOWER)
        return tower

    def text_inputs(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], Tensor, int]:
        """What the model takes of texts, (B, T), the tokens that are no padding, (B, T) bool, and how many it cut.

        As in training, SigLIP's texts are all padded to its longest input, which it sees; CLIP's to the longest text.
        """
        most = getattr(self.text_tower.config, "max_position_embeddings", None)
        # A model whose tokenizer gives no mask sees the padding, and was trained with as much of it as there can be.
        sees_padding = ATTENTION_MASK not in self.tokenizer.model_input_names
        found = self.tokenizer(
            list(texts),
            padding="max_length" if sees_padding else True,
            truncation=most is not None,
            max_length=most,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        names = [name for name in self.tokenizer.model_input_names if name in found and name != TOKEN_TYPES]
        mask = found[ATTENTION_MASK].bool()
        return {name: found[name] for name in names}, mask, self._truncated(texts, mask.sum(1).tolist(), most)

    def _truncated(self, texts: Sequence[str], lengths: Sequence[int], most: int | None) -> int:
        """How many texts are longer than the longest input; only those that fill it are tokenized again."""
        full = [text for text, length in zip(texts, lengths, strict=True) if length == most]
        if most is None or not full:
            return 0
        return sum(len(ids) > most for ids in self.tokenizer(full, verbose=False)["input_ids"])

    def image_inputs(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """What the model takes of images, (B, C, H, W).

        Args:
            images: paths, images of PIL, or arrays; or tensors (C, H, W) that have been processed already.

        Raises:
            ImageError: one cannot be read.
            ModuleNotFoundError: Pillow is not installed.
        """
        if all(isinstance(image, Tensor) for image in images):
            pixels = torch.stack(list(images))
        else:
            pixels = pixels_of(self.image_processor, images)
        return {PIXELS: pixels.to(self.model.device, self.model.dtype)}

    def text_vectors(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, d): the vectors of texts in the space of both."""
        return _vectors(getattr(self.model, TOWERS[TEXTS_TOWER])(**inputs))

    def image_vectors(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, d): the vectors of images in the space of both."""
        return _vectors(getattr(self.model, TOWERS[IMAGES_TOWER])(**inputs))


def batches_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in order, so many at a time.

    Examples:
        >>> list(batches_of("abc", 2))
        [['a', 'b'], ['c']]
    """
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch


def _vectors(found: Any) -> Tensor:
    """The vectors themselves, which some releases of transformers give in a model's output."""
    vectors: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return vectors
