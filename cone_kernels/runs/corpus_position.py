"""How far a run has come in its corpus, and whether it is the corpus of the run that was interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


class CorpusPosition:
    """Counts and fingerprints the sentences passed over, shard by shard.

    Args:
        done: how many sentences the interrupted run had passed over; 0 where nothing was interrupted.
        sha256: the fingerprint of those sentences.
        ended: whether the corpus ended after them.

    Examples:
        >>> position = CorpusPosition()
        >>> position.pass_over(["one", "two"])
        >>> position.sentences
        2
    """

    def __init__(self, done: int = 0, sha256: str = "", ended: bool = False) -> None:
        self.sentences = 0
        self._done, self._done_sha256, self._ended = done, sha256, ended
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """sha256 (hex) over the sentences passed over, each with its length, in order."""
        return self._digest.hexdigest()

    @property
    def resuming(self) -> bool:
        """Whether all sentences so far were passed over before the interruption."""
        return 0 < self.sentences <= self._done

    def pass_over(self, texts: Sequence[str]) -> None:
        """Counts the sentences of the next shard.

        Raises:
            ValueError: the interrupted run had other sentences here.
        """
        before = self.sentences
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._digest.update(b"".join(part for one in encoded for part in (len(one).to_bytes(8, "little"), one)))
        self.sentences += len(texts)
        if before < self._done <= self.sentences and (self.sentences != self._done or self.sha256 != self._done_sha256):
            raise ValueError(f"resume: the first {self._done} sentences of the corpus are not those of the checkpoint")
        if self._ended and self.sentences > self._done:
            raise ValueError(f"resume: the corpus ended after {self._done} sentences before, and now has more")

    def end(self, why_nothing: str = "") -> None:
        """Says that the corpus has ended.

        Args:
            why_nothing: what the error says where there was no sentence.

        Raises:
            ValueError: it has no sentence, or less than the interrupted run had passed over.
        """
        if self.sentences == 0:
            raise ValueError(f"corpus: there is no sentence to run{why_nothing}")
        if self.sentences < self._done:
            raise ValueError(
                f"resume: the corpus has {self.sentences} sentences; the checkpoint has passed over {self._done}"
            )
