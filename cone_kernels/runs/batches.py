"""How the sentences of a shard are cut into batches without padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence


def length_batches(lengths: Sequence[int], token_budget: int, batch_size: int | None = None) -> Iterator[list[int]]:
    """Cuts sentences into batches of one exact length within the budget: lists of indices, longest sentences first.

    Args:
        lengths: tokens of each sentence.
        token_budget: tokens of a batch at most; a longer sentence is a batch of its own.
        batch_size: sentences of a batch at most; None leaves that to the budget.

    Example:
        >>> list(length_batches([3, 5, 3, 3], token_budget=6))
        [[1], [0, 2], [3]]
    """
    for length, group in itertools.groupby(_longest_first(lengths), key=lambda index: lengths[index]):
        size = max(1, token_budget // max(1, length))
        size = size if batch_size is None else min(size, batch_size)
        while batch := list(itertools.islice(group, size)):
            yield batch


def packed_batches(lengths: Sequence[int], token_budget: int, batch_size: int | None = None) -> Iterator[list[int]]:
    """Cuts sentences into batches within the budget: lists of indices, longest first, those without a token apart.

    Args:
        lengths, token_budget, batch_size: as in `length_batches`.

    Example:
        >>> list(packed_batches([3, 5, 3, 3], token_budget=8))
        [[1, 0], [2, 3]]
    """
    batch: list[int] = []
    tokens = 0
    for index in _longest_first(lengths):
        length = lengths[index]
        full = tokens + length > token_budget or len(batch) == batch_size
        if batch and (full or (length == 0 and tokens > 0)):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
