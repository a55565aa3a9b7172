"""The tokens of a corpus, by sentence, kept in a temporary file until all of them are counted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class CorpusTokens:
    """Length and mean log frequency of every sentence, frequencies being those of the corpus itself.

    Tokens that the tokenizer added count in the length, as they do in the sentence vector, and in no frequency. The
    file takes 4 bytes a token and is gone with the object.

    Examples:
        >>> tokens = CorpusTokens()
        >>> tokens.append([[2, 7, 7, 9, 3]], [[1, 0, 0, 0, 1]])
        >>> lengths, log_frequency = next(tokens.windows())  # 5 and (2·log(2/3) + log(1/3))/3
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        """(V,) how often each token occurs, up to the largest id seen."""
        self._windows: list[tuple[int, int]] = []  # sentences and counted tokens of each
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the object is

    def append(self, input_ids: Sequence[Sequence[int]], added: Sequence[Sequence[int]]) -> None:
        """Adds a window of sentences: their token ids, and 1 for those that the tokenizer added."""
        lengths = np.fromiter(map(len, input_ids), np.int32, len(input_ids))
        ids = np.fromiter(chain.from_iterable(input_ids), np.int32, int(lengths.sum()))
        own = np.fromiter(chain.from_iterable(added), np.int8, len(ids)) == 0
        sentence = np.repeat(np.arange(len(lengths)), lengths)
        sizes = np.bincount(sentence[own], minlength=len(lengths)).astype(np.int32)
        counts = np.bincount(ids[own], minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        self._file.seek(0, 2)
        self._file.write(b"".join(part.tobytes() for part in (lengths, sizes, ids[own])))
        self._windows.append((len(lengths), int(own.sum())))

    def windows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each window appended, and by all counts so far: lengths in tokens (n,), and the mean of
        log(count/all tokens) over the sentence's own tokens (n,), NaN where it has none; both float64."""
        # A token that does not occur is never looked up.
        with np.errstate(divide="ignore"):
            log_frequency = np.log(self.counts) - np.log(self.counts.sum())
        self._file.seek(0)
        for sentences, tokens in self._windows:
            numbers = np.frombuffer(self._file.read(4 * (2 * sentences + tokens)), np.int32)
            lengths, sizes, ids = np.split(numbers, [sentences, 2 * sentences])
            sentence = np.repeat(np.arange(sentences), sizes)
            total = np.bincount(sentence, weights=log_frequency[ids], minlength=sentences)
            mean = np.divide(total, sizes, out=np.full(sentences, np.nan), where=sizes > 0)
            yield torch.from_numpy(lengths.astype(np.float64)), torch.from_numpy(mean)
