"""The shards of a corpus in order, the next one tokenized in the background while one is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cone_kernels.runs.encoded_shard import EncodedWindow


@dataclass(frozen=True)
class EncodedShard:
    """A shard, and its token ids where it is to be run."""

    number: int
    first_id: int
    texts: list[str]
    _encoded: Future[EncodedWindow] | None

    @property
    def encoded(self) -> EncodedWindow:
        """The token ids; waits for the tokenizer, and raises what it raised."""
        assert self._encoded is not None, "this shard is another process's"
        return self._encoded.result()


def encoded_shards(
    sentences: Iterable[str],
    size: int,
    encode: Callable[[list[str]], EncodedWindow],
    runs_here: Callable[[int, int], bool],
) -> Generator[EncodedShard]:
    """Cuts sentences into shards; one is read ahead, and tokenized by a thread, which ends with the generator.

    Args:
        sentences: they, read in the caller's thread.
        size: sentences of a shard; the last one may have less.
        encode: the tokenizer, called once for each shard that is run here, in order.
        runs_here: of a shard's number and the sentences up to its end.

    Example:
        >>> [shard.texts for shard in encoded_shards("abcde", 2, encode, lambda number, end: False)]
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    stream = iter(sentences)
    with ThreadPoolExecutor(1, "tokenizing") as thread:
        ahead: EncodedShard | None = None
        for number in itertools.count():
            texts = list(itertools.islice(stream, size))
            end = number * size + len(texts)
            future = thread.submit(encode, texts) if texts and runs_here(number, end) else None
            if ahead is not None:
                yield ahead
            if not texts:
                return
            ahead = EncodedShard(number, number * size, texts, future)
