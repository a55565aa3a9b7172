"""Whether a model keeps the sentences of a packed batch, one row of many sentences, apart."""

from __future__ import annotations

import inspect

import torch

from cone_kernels.models.loading import LoadedModel
from cone_kernels.models.transformers_names import FLASH, POSITIONS
from cone_kernels.runs.encoded_shard import EncodedShard

# The most that two ways to run the same sentences may differ by, as a share of the norm of the last hidden states.
# Other shapes round otherwise; a token of another sentence that is attended to makes a far larger difference.
_MOST_DIFFERENCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}


def refuse_unpackable(loaded: LoadedModel) -> None:
    """Refuses a model that has no way to know where a packed sentence begins.

    Raises:
        ValueError: its attention is not flash attention, or it takes no `position_ids`.
    """
    attention = str(loaded.info["attention"])
    if FLASH not in attention:
        raise ValueError(
            f"packed: got True with attention {attention!r}; only flash attention keeps packed sentences apart: "
            "load the model with attention='flash_attention_2'"
        )
    if POSITIONS not in inspect.signature(loaded.model.forward).parameters:
        raise ValueError(f"packed: got True, but {type(loaded.model).__name__}.forward takes no {POSITIONS}")


def refuse_mixing(loaded: LoadedModel, shard: EncodedShard) -> None:
    """Refuses a model that gives other vectors for packed sentences than for the same ones run one by one.

    Args:
        loaded: the model.
        shard: sentences, of which three are run.

    Raises:
        ValueError: they differ by more than rounding.
    """
    some = [index for index, length in enumerate(shard.lengths) if length > 0][:3]
    if not some:
        return
    with torch.inference_mode():
        packed = loaded.model(**shard.packed_inputs(some, loaded))[0][0].double()  # (N, D)
        alone = [loaded.model(**shard.padded_inputs([index], loaded))[0][0] for index in some]
    expected = torch.cat(alone).double()
    difference = float((packed - expected).norm() / expected.norm())
    if not difference <= _MOST_DIFFERENCE[alone[0].dtype]:
        raise ValueError(
            f"packed: {type(loaded.model).__name__} mixes the sentences of a packed batch: the last hidden states of "
            f"three sentences are off by {difference:.2g} of their norm; run it without packed"
        )
