"""A uniform sample of distinct sentences in one pass."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

MAX_SEED = 2**64 - 1


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
    key = seed.to_bytes(8, "little")
    lowest: list[tuple[int, int, str, bytes]] = []  # a heap with the highest number of the sample on top
    count = 0
    for text, encoded in sentences:
        number = int.from_bytes(hashlib.blake2b(encoded, digest_size=16, key=key).digest(), "little")
        if len(lowest) < size:
            heapq.heappush(lowest, (-number, count, text, encoded))
        elif -number > lowest[0][0]:
            heapq.heapreplace(lowest, (-number, count, text, encoded))
        count += 1
    lowest.sort(key=lambda drawn: drawn[1])
    return [(text, encoded) for _, _, text, encoded in lowest], count
