"""A uniform sample of distinct sentences in one pass, and an order drawn by chance."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

MAX_SEED = 2**64 - 1


def shuffled(sentences: Iterable[tuple[str, bytes]], seed: int) -> list[tuple[str, bytes]]:
    """The sentences in an order drawn by chance: by the numbers that `draw` gives them, so all are in memory.

    Args:
        sentences: distinct ones, each as text and as UTF-8.
        seed: from 0 to 2^64 - 1.

    Example:
        >>> shuffled([("a", b"a"), ("b", b"b"), ("c", b"c")], seed=0)
    """
    return sorted(sentences, key=lambda one: _number(one[1], seed))


def _number(encoded: bytes, seed: int) -> int:
    key = seed.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=16, key=key).digest(), "little")


def draw(sentences: Iterable[tuple[str, bytes]], size: int, seed: int) -> tuple[list[tuple[str, bytes]], int]:
    """Draws `size` of the sentences without replacement, each set of that size as likely as any other.

    Every sentence gets a number of 128 bits, BLAKE2b of it keyed by the seed, and the `size` lowest are the sample
    (bottom-k sampling; Cohen & Kaplan 2007). So whether a sentence is drawn depends on the seed and the
    sentences alone, not on their order or on the files, and at most `size` sentences are in memory.

    Args:
        sentences: distinct ones, each as text and as UTF-8.
        size: how many; all where there are fewer.
        seed: from 0 to 2^64 - 1.

    Returns:
        The sample in the order of the corpus, and how many sentences it is drawn from.

    Example:
        >>> draw([("a", b"a"), ("b", b"b"), ("c", b"c")], size=2, seed=0)
        ([('a', b'a'), ('b', b'b')], 3)
    """
    lowest: list[tuple[int, int, str, bytes]] = []  # a heap with the highest number of the sample on top
    count = 0
    for text, encoded in sentences:
        number = _number(encoded, seed)
        if len(lowest) < size:
            heapq.heappush(lowest, (-number, count, text, encoded))
        elif -number > lowest[0][0]:
            heapq.heapreplace(lowest, (-number, count, text, encoded))
        count += 1
    lowest.sort(key=lambda drawn: drawn[1])
    return [(text, encoded) for _, _, text, encoded in lowest], count
