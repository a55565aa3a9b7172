"""What Accelerate knows of the data loaders of a job: which one is read from, and which samples it repeats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cone_kernels.extras import require


def repeated_samples(size: int) -> Tensor | None:
    """Which samples of this process's current batch are there a second time, for `next_batch(repeats=...)`.

    Of several processes, a loader prepared by Accelerate (so the Trainer's too) fills the last round of batches with
    samples from the beginning, unless `even_batches=False`: to whole batches, or, where one process reads for all
    (`dispatch_batches`), to as many for each. Accelerate counts the others in `GradientState.remainder`. They can be
    told where the model takes in a batch as the loader gives it, not in parts or joined to another.

    Args:
        size: B, the samples that the model takes in.

    Returns:
        (B,) bool; None where no sample is known to be repeated.

    Raises:
        ModuleNotFoundError: accelerate is not installed.

    Examples:
        >>> for batch in loader:
        ...     probe.next_batch(repeats=repeated_samples(len(batch["input_ids"])))
        ...     loss = model(**batch).loss
    """
    require("accelerate", "train", "repeated_samples")
    from accelerate.data_loader import DataLoaderDispatcher
    from accelerate.state import GradientState, PartialState

    loading, process = GradientState(), PartialState()
    loader = loading.active_dataloader
    if process.num_processes == 1 or not loading.end_of_dataloader or loading.remainder <= 0:
        return None
    if not getattr(getattr(loader, "batch_sampler", None), "even_batches", True):
        return None
    filled = loading.remainder if isinstance(loader, DataLoaderDispatcher) else loader.total_batch_size
    if size != -(-filled // process.num_processes):
        return None
    repeats: Tensor = process.process_index * size + torch.arange(size) >= loading.remainder
    return repeats


def active_loader() -> Any:
    """The data loader prepared by Accelerate that is being read from, the innermost of several; None for none.

    Raises:
        ModuleNotFoundError: accelerate is not installed.

    Examples:
        >>> for batch in loader:
        ...     assert active_loader() is loader
    """
    require("accelerate", "train", "active_loader")
    from accelerate.state import GradientState

    return GradientState().active_dataloader
