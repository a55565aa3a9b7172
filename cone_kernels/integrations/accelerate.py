"""What Accelerate's data loaders repeat to give each process as many samples."""

from __future__ import annotations

import torch
from torch import Tensor


def repeated_samples(size: int) -> Tensor:
    """Which samples of this process's current batch are there a second time, for ``next_batch(repeats=...)``.

    A loader prepared by Accelerate (so the Trainer's too) fills its last round of batches with samples from the
    beginning, unless ``even_batches=False``; Accelerate counts the others in ``GradientState.remainder``.

    Args:
        size: B, the samples of this process's batch.

    Returns:
        (B,) bool; all False outside a prepared loader and before its last batch.

    Example:
        >>> for batch in loader:
        ...     probe.next_batch(repeats=repeated_samples(len(batch["input_ids"])))
        ...     loss = model(**batch).loss
    """
    from accelerate.state import GradientState, PartialState

    loading, process = GradientState(), PartialState()
    sampler = getattr(loading.active_dataloader, "batch_sampler", None)
    filled_up = loading.end_of_dataloader and loading.remainder > 0 and getattr(sampler, "even_batches", True)
    if not filled_up:
        return torch.zeros(size, dtype=torch.bool)
    repeats: Tensor = process.process_index * size + torch.arange(size) >= loading.remainder
    return repeats
