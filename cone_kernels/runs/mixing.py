"""Whether a model keeps the sentences of a batch apart from each other, and from padding."""

from __future__ import annotations

import inspect

import torch

from cone_kernels.models.loaded import LoadedModel
from cone_kernels.models.transformers_names import ATTENTION_MASK, FLASH, POSITIONS, VARLEN
from cone_kernels.runs.encoded_shard import EncodedShard

# The most that two ways to run the same sentences may differ by, as a share of the norm of the last hidden states
# (packed, of all together; padded, of each).
# Other shapes round otherwise; a token of another sentence that is attended to makes a far larger difference.
_MOST_DIFFERENCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}


def refuse_unpackable(loaded: LoadedModel) -> None:
    """Refuses a model that has no way to know where a packed sentence begins.

    Raises:
        ValueError: its attention is not flash attention nor torch's own for packed rows, or it takes no `position_ids`.
    """
    attention = str(loaded.info["attention"])
    if FLASH not in attention and attention != VARLEN:
        raise ValueError(
            f"packed: got True with attention {attention!r}, which does not keep packed sentences apart; on a GPU and "
            f"in 16 bits load the model with attention={VARLEN!r} or 'flash_attention_2'"
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
        packed = loaded.model(**shard.packed_inputs(some, loaded))[0][0]  # (N, D)
        alone = _one_by_one(loaded, shard, some)
    difference = float((packed.double() - alone.double()).norm() / alone.double().norm())
    if not difference <= _MOST_DIFFERENCE[alone.dtype]:
        raise ValueError(
            f"packed: {type(loaded.model).__name__} mixes the sentences of a packed batch: the last hidden states of "
            f"three sentences are off by {difference:.2g} of their norm; run it without packed"
        )


def heeds_padding(loaded: LoadedModel, shard: EncodedShard) -> bool:
    """Whether a model gives the same vectors for sentences that are padded as for the same ones run one by one.

    Some have no attention mask; in others a convolution or a Fourier transform reaches over the tokens, masked or not.

    Args:
        loaded: the model.
        shard: sentences, of which the longest is run: whole, its first half, and its first token alone.
    """
    longest = max(shard.lengths, default=0)
    if ATTENTION_MASK not in loaded.input_names or longest < 2:
        return False
    at, lengths = shard.lengths.index(longest), [longest, (longest + 1) // 2, 1]
    cut = shard.beginnings(at, lengths)
    with torch.inference_mode():
        alone = _one_by_one(loaded, cut, [0, 1, 2])
        padded = loaded.model(**cut.padded_inputs([0, 1, 2], loaded))[0]  # (3, T, D)
    if padded.dim() != 3 or padded.shape[:2] != (3, longest):
        return False
    tokens = [rows[:length] for rows, length in zip(padded, lengths, strict=True)]
    # A convolution brings padding to the last few tokens alone: of each token the difference counts.
    differences = (torch.cat(tokens).double() - alone.double()).norm(dim=1) / alone.double().norm(dim=1)
    return bool(differences.max() <= _MOST_DIFFERENCE[alone.dtype])


def _one_by_one(loaded: LoadedModel, shard: EncodedShard, sentences: list[int]) -> torch.Tensor:
    """(N, D): the last hidden states of sentences, each run alone."""
    return torch.cat([loaded.model(**shard.padded_inputs([index], loaded))[0][0] for index in sentences])
