"""Whether a model keeps the sentences of a packed batch, one row of many sentences, apart."""

from __future__ import annotations

import inspect

import torch

from cone_kernels.models.loading import LoadedModel
from cone_kernels.models.transformers_names import FLASH, POSITIONS
from cone_kernels.runs.encoded_shard import EncodedWindow

# Of the last hidden states' norm: what rounding may make of other shapes, far below what a foreign token does.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}


def refuse_unpackable(loaded: LoadedModel) -> None:
    """Refuses a model that cannot be told where a packed sentence begins.

    Raises:
        ValueError: its attention is no flash attention, or it takes no `position_ids`.
    """
    attention = str(loaded.info["attention"])
    if FLASH not in attention:
        raise ValueError(
            f"packed: got True with attention {attention!r}; only flash attention keeps packed sentences apart: "
            "load the model with attention='flash_attention_2'"
        )
    if POSITIONS not in inspect.signature(loaded.model.forward).parameters:
        raise ValueError(f"packed: got True, but {type(loaded.model).__name__}.forward takes no {POSITIONS}")


def refuse_mixing(loaded: LoadedModel, encoded: EncodedWindow) -> None:
    """Refuses a model in which the first sentences come out packed other than they do one by one.

    Args:
        loaded: the model.
        encoded: sentences, of which three are run.

    Raises:
        ValueError: they differ by more than rounding.
    """
    some = [index for index, length in enumerate(encoded.lengths) if length > 0][:3]
    if not some:
        return
    with torch.inference_mode():
        packed = loaded.model(**encoded.packed_inputs(some, loaded))[0][0].double()  # (N, D)
        alone = [loaded.model(**encoded.padded_inputs([index], loaded))[0][0] for index in some]
    expected = torch.cat(alone).double()
    difference = float((packed - expected).norm() / expected.norm())
    if not difference <= _TOLERANCE[alone[0].dtype]:
        raise ValueError(
            f"packed: {type(loaded.model).__name__} mixes the sentences of a packed batch: the last hidden states of "
            f"three sentences are off by {difference:.2g} of their norm; run it without"
        )
