"""How many tokens a batch is to have, found by trying."""

from __future__ import annotations

import statistics
import time

import torch

from cone_kernels.models.loading import LoadedModel
from cone_kernels.runs.encoded_shard import EncodedWindow

_SMALLEST, _LARGEST = 1 << 10, 1 << 18
_WORTH = 1.03  # a budget twice as large is taken for at least this many times the tokens per second
_ROUNDS = 3


def find_token_budget(loaded: LoadedModel, encoded: EncodedWindow) -> int:
    """The budget from 1024 on, doubled as long as the forward gets faster by 3 % and memory lasts.

    It depends on the clock, so two trials may differ.

    Args:
        loaded: the model.
        encoded: sentences, of which one of median length is repeated to fill a batch.

    Example:
        >>> find_token_budget(loaded, EncodedWindow.of(loaded, sentences))
        4096
    """
    middle = sorted(range(len(encoded.lengths)), key=lambda index: encoded.lengths[index])[len(encoded.lengths) // 2]
    budget, rate = _SMALLEST, _rate(loaded, encoded, middle, _SMALLEST)
    while budget < _LARGEST:
        larger = _rate(loaded, encoded, middle, 2 * budget)
        if larger < _WORTH * rate:
            break
        budget, rate = 2 * budget, larger
    return budget


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory, of a GPU or of the machine, does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _rate(loaded: LoadedModel, encoded: EncodedWindow, sentence: int, budget: int) -> float:
    """Tokens per second in batches of a budget; 0 where they do not fit into memory."""
    rows = max(1, budget // max(1, encoded.lengths[sentence]))
    inputs = encoded.padded_inputs([sentence] * rows, loaded)
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
