"""How far a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How far a run is, after a batch.

    Attributes:
        sentences, tokens: done so far.
        expected: the sentences in all, where that can be judged.
        elapsed: seconds since the run began, the model being loaded by then.
        padding: share of the positions given to the model that were padding; 0 in batches of one exact length.
        statistics: share of the elapsed time that was spent on the statistics; on a GPU the host's part of it.
        resumed_sentences, resumed_tokens: how many of those done an interrupted run had done before this one began.
    """

    sentences: int
    tokens: int
    expected: int | None
    elapsed: float = field(default=0.0, compare=False)
    padding: float = 0.0
    statistics: float = field(default=0.0, compare=False)
    resumed_sentences: int = 0
    resumed_tokens: int = 0

    @property
    def sentences_per_second(self) -> float:
        """The rate since this run began; NaN at its start."""
        return (self.sentences - self.resumed_sentences) / self.elapsed if self.elapsed else math.nan

    @property
    def tokens_per_second(self) -> float:
        """The rate since this run began; NaN at its start."""
        return (self.tokens - self.resumed_tokens) / self.elapsed if self.elapsed else math.nan

    @property
    def remaining(self) -> float | None:
        """Seconds left at the rate so far; None where the end or the rate is not known."""
        if self.expected is None or not self.sentences_per_second > 0:
            return None
        return max(0, self.expected - self.sentences) / self.sentences_per_second
