"""The shards of a corpus in order, the next one tokenized in the background while one is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.image_shard import ImageShard


def encoded_shards(
    sentences: Iterable[str],
    size: int,
    encode: Callable[..., EncodedShard | ImageShard],
    runs_here: Callable[[int, int], bool],
    group: Callable[[], int | None] | None = None,
) -> Generator[tuple[list[str], Future[EncodedShard | ImageShard] | None]]:
    """Cuts sentences into shards; one is read ahead and tokenized by a thread, which ends with the generator.

    Args:
        sentences: of the corpus, read in the caller's thread.
        size: sentences of a shard; the last one may have less.
        encode: tokenizes a shard: given the index of its first sentence, its sentences, and where `group` gives some
            their jackknife groups. It is called once for each shard that is run here, in order; what it raises is
            raised when its shard is asked for.
        runs_here: whether a shard is run in this process: given its number, and how many sentences end with it.
        group: gives the jackknife group of the sentence that was read last; None where its index decides it.

    Yields:
        The sentences of each shard, and their token ids to be; None for a shard that is not run here.

    Examples:
        >>> [texts for texts, _ in encoded_shards("abcde", 2, encode, lambda number, end: False)]
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    stream = iter(sentences)
    with ThreadPoolExecutor(1, "tokenizing") as thread:
        ahead: tuple[list[str], Future[EncodedShard | ImageShard] | None] | None = None
        for number in itertools.count():
            texts, groups = [], []
            for text in itertools.islice(stream, size):
                texts.append(text)
                groups.append(None if group is None else group())
            first_id = number * size
            runs = bool(texts) and runs_here(number, first_id + len(texts))
            arguments = (first_id, texts) if group is None else (first_id, texts, groups)
            future = thread.submit(encode, *arguments) if runs else None
            if ahead is not None:
                yield ahead
            if not texts:
                return
            ahead = texts, future
