"""A uniform sample of distinct sentences in one pass, and an order drawn by chance."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from typing import TypeAlias

MAX_SEED = 2**64 - 1

Sentence: TypeAlias = tuple[str, bytes, int]
"""A sentence as text and as UTF-8, and the jackknife group of its record, 0 where none is asked for."""


def shuffled(sentences: Iterable[Sentence], seed: int) -> list[Sentence]:
    """The sentences in an order drawn by chance: by the numbers that `draw` gives them, so all are in memory.

    Args:
        sentences: distinct ones.
        seed: from 0 to 2^64 - 1.

    Examples:
        >>> shuffled([("a", b"a", 0), ("b", b"b", 0), ("c", b"c", 0)], seed=0)
    """
    return sorted(sentences, key=lambda one: _number(one[1], seed))


def _number(encoded: bytes, seed: int) -> int:
    key = seed.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=16, key=key).digest(), "little")


def draw(sentences: Iterable[Sentence], size: int, seed: int) -> tuple[list[Sentence], int]:
    """Draws `size` of the sentences without replacement, each set of that size as likely as any other.

    Every sentence gets a number of 128 bits, BLAKE2b of it keyed by the seed, and the `size` lowest are the sample
    (bottom-k sampling; Cohen & Kaplan 2007). So whether a sentence is drawn depends on the seed and the
    sentences alone, not on their order or on the files, and at most `size` sentences are in memory.

    Args:
        sentences: distinct ones.
        size: how many; all where there are fewer.
        seed: from 0 to 2^64 - 1.

    Returns:
        The sample in the order of the corpus, and how many sentences it is drawn from.

    Examples:
        >>> draw([("a", b"a", 0), ("b", b"b", 0), ("c", b"c", 0)], size=2, seed=0)
        ([('a', b'a', 0), ('b', b'b', 0)], 3)
    """
    lowest: list[tuple[int, int, Sentence]] = []  # a heap with the highest number of the sample on top
    count = 0
    for sentence in sentences:
        number = _number(sentence[1], seed)
        if len(lowest) < size:
            heapq.heappush(lowest, (-number, count, sentence))
        elif -number > lowest[0][0]:
            heapq.heapreplace(lowest, (-number, count, sentence))
        count += 1
    lowest.sort(key=lambda drawn: drawn[1])
    return [sentence for _, _, sentence in lowest], count
