"""How the sentences of a shard are cut into batches: without padding, in few shapes, or packed into one row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np


def length_batches(lengths: Sequence[int], token_budget: int, batch_size: int | None = None) -> Iterator[list[int]]:
    """Cuts sentences into batches of one exact length within the budget: lists of indices, longest sentences first.

    Args:
        lengths: tokens of each sentence.
        token_budget: tokens of a batch at most; a longer sentence is a batch of its own.
        batch_size: sentences of a batch at most; None leaves that to the budget.

    Examples:
        >>> list(length_batches([3, 5, 3, 3], token_budget=6))
        [[1], [0, 2], [3]]
    """
    for length, group in itertools.groupby(_longest_first(lengths), key=lambda index: lengths[index]):
        size = max(1, token_budget // max(1, length))
        size = size if batch_size is None else min(size, batch_size)
        while batch := list(itertools.islice(group, size)):
            yield batch


def padded_batches(lengths: Sequence[int], token_budget: int, batch_size: int | None = None) -> Iterator[list[int]]:
    """Cuts sentences into full batches of few shapes: lists of indices, longest first, those without a token apart.

    Each takes as many sentences as the budget has room for when all are as long as `padded_length` of its first, so
    that shapes depend on that length alone, but for the last batch.

    Args:
        lengths: tokens of each sentence.
        token_budget: tokens and padding of a batch at most; a longer sentence is a batch of its own.
        batch_size: as in `length_batches`.

    Examples:
        >>> list(padded_batches([3, 5, 4, 3], token_budget=12))
        [[1, 2], [0, 3]]
    """
    order = _longest_first(lengths)
    n_with_tokens, at = sum(length > 0 for length in lengths), 0
    while at < len(order):
        size = max(1, token_budget // max(1, padded_length(lengths[order[at]])))
        size = size if batch_size is None else min(size, batch_size)
        end = at + size if at >= n_with_tokens else min(at + size, n_with_tokens)
        yield order[at:end]
        at = end


def padded_length(length: int) -> int:
    """What a sentence of so many tokens is padded to where shapes should be few: an even number, 8 in each octave.

    Examples:
        >>> [padded_length(length) for length in (3, 17, 33, 500)]
        [4, 18, 36, 512]
    """
    step = max(2, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


def packed_batches(lengths: Sequence[int], token_budget: int, batch_size: int | None = None) -> Iterator[list[int]]:
    """Cuts sentences into batches within the budget: lists of indices, longest first, those without a token apart.

    Args:
        lengths, token_budget, batch_size: as in `length_batches`.

    Examples:
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
    order: list[int] = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return order
