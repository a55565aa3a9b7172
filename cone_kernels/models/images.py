"""Loads a model of images, or the tower of images of one of both, with its processor."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cone_kernels.models.loaded import LoadedModel
from cone_kernels.models.source import ModelError
from cone_kernels.models.transformers_names import ATTENTION_CHOSEN, PIXELS

# The side of the picture that shows how many positions the hidden states have.
_BLANK = 64


class ImageError(ValueError):
    """An image cannot be read; the message names its file."""


def opened(image: Any) -> Any:
    """An image of PIL from a file, or from what has `load_image`, as an image in a corpus; anything else as it is.

    Raises:
        ImageError: it cannot be read.
        ModuleNotFoundError: Pillow is not installed.
    """
    load = getattr(image, "load_image", None)
    if load is not None:
        return load()
    if not isinstance(image, (str, os.PathLike)):
        return image
    if importlib.util.find_spec("PIL") is None:
        raise ModuleNotFoundError("Pillow is not installed; files of images need it: pip install pillow", name="PIL")
    from PIL import Image

    try:
        with Image.open(image) as file:
            return file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"images: {os.fspath(image)} cannot be read as an image: {error}") from None


def pixels_of(image_processor: Any, images: Sequence[Any]) -> Tensor:
    """(n, C, H, W): images of files, of PIL or as arrays, through the model's own processor.

    Raises:
        ImageError, ModuleNotFoundError: as `opened`.
        ModelError: the processor gives images of several sizes, or none.
    """
    found = image_processor(images=[opened(image) for image in images], return_tensors="pt").get(PIXELS)
    if not isinstance(found, Tensor) or found.dim() != 4 or len(found) != len(images):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"model: its image processor gives {got}; it must be one image of one size each, (n, C, H, W)")
    return found


def image_model_of(model: Any, image_processor: Any, name: str, *, compiled: bool, **about: Any) -> LoadedModel:
    """A model of images as a run takes it.

    Args:
        model: of transformers, in eval mode.
        image_processor: its own.
        name, compiled, about: of its `info`.

    Raises:
        ModelError: it gives no position of an image a vector.
    """
    blank = torch.zeros(_BLANK, _BLANK, 3, dtype=torch.uint8).numpy()
    positions = positions_of(model, pixels_of(image_processor, [blank]))
    info = {
        "name": name,
        "revision": about["revision"],
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "n_layers": getattr(model.config, "num_hidden_layers", None),
        "hidden_size": getattr(model.config, "hidden_size", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, ATTENTION_CHOSEN, None),
        "weights_sha256": about["weights_sha256"],
        "max_length": None,
        "compiled": compiled,
        "prompt": None,
        "output": None,
    }
    return LoadedModel(model, None, None, (PIXELS,), info, image_processor=image_processor, image_positions=positions)


def positions_of(model: Any, pixels: Tensor) -> int:
    """How many positions the hidden states of an image (1, C, H, W) have."""
    with torch.inference_mode():
        hidden = model(**{PIXELS: pixels.to(model.device, model.dtype)})[0]
    if hidden.dim() != 3:
        raise ModelError(
            f"model: the last hidden states of {type(model).__name__} have shape {tuple(hidden.shape)}; it must be "
            "(1, T, D), a vector for each position"
        )
    return int(hidden.shape[1])
