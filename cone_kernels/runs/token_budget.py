"""How many tokens a batch should have, found by trying."""

from __future__ import annotations

import statistics
import time

import torch

from cone_kernels.models.loaded import LoadedModel
from cone_kernels.runs.encoded_shard import EncodedShard

_SMALLEST, _LARGEST = 1 << 10, 1 << 18
_WORTH = 1.03  # a budget twice as large is taken where it gives at least this many times the tokens per second
_ROUNDS = 3


def find_token_budget(loaded: LoadedModel, shard: EncodedShard) -> int:
    """Tokens of a batch: from 1024 on doubled for as long as the forward gets faster by 3 % and memory lasts.

    The answer depends on the clock, so two trials may differ.

    Args:
        loaded: the model.
        shard: sentences, of which one of median length is repeated to fill a batch.

    Examples:
        >>> find_token_budget(loaded, EncodedShard.of(loaded, sentences))
        4096
    """
    middle = sorted(range(len(shard.lengths)), key=lambda index: shard.lengths[index])[len(shard.lengths) // 2]
    budget, rate = _SMALLEST, _rate(loaded, shard, middle, _SMALLEST)
    while budget < _LARGEST:
        larger = _rate(loaded, shard, middle, 2 * budget)
        if larger < _WORTH * rate:
            break
        budget, rate = 2 * budget, larger
    return budget


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that there is not enough memory, of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _rate(loaded: LoadedModel, shard: EncodedShard, sentence: int, budget: int) -> float:
    """Tokens per second in batches of a budget; 0 where they do not fit into memory."""
    rows = max(1, budget // max(1, shard.lengths[sentence]))
    inputs = shard.padded_inputs([sentence] * rows, loaded)
    try:
        _seconds(loaded, inputs)
        seconds = statistics.median(_seconds(loaded, inputs) for _ in range(_ROUNDS))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
    return inputs["input_ids"].numel() / seconds


def _seconds(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        loaded.model(**inputs)
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return time.perf_counter() - started
