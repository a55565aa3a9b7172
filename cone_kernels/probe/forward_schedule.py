"""Which forwards of a probed model count: in which mode, how often, and not while they are paused."""

from __future__ import annotations

from typing import Literal, get_args

During = Literal["always", "training", "evaluation"]


class ForwardSchedule:
    """Decides of each forward, as it begins, whether it counts.

    Args:
        every: of the forwards in training mode one in so many counts, the first among them.
        during: the mode of the model in which forwards count.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> schedule = ForwardSchedule(every=2, during="always")
        >>> [schedule.counts(training=True) for _ in range(4)]
        [True, False, True, False]
    """

    def __init__(self, every: int, during: During) -> None:
        if every < 1:
            raise ValueError(f"every: got {every}; it must be 1 (each forward) or more")
        if during not in get_args(During):
            raise ValueError(f"during: got {during!r}; it must be one of {', '.join(get_args(During))}")
        self.paused = False
        self._every, self._during = every, during
        self._n_training = 0

    def counts(self, *, training: bool) -> bool:
        """Whether the forward that begins counts; ask once for each."""
        if self.paused or self._during == ("evaluation" if training else "training"):
            return False
        if not training:
            return True
        self._n_training += 1
        return (self._n_training - 1) % self._every == 0

    def in_words(self) -> str:
        """What counts, such as "one in 10 forwards in training mode"."""
        return f"{self._unpaused()}{', paused' if self.paused else ''}"

    def _unpaused(self) -> str:
        if self._during == "evaluation" or (self._during == "training" and self._every == 1):
            return f"forwards in {self._during} mode"
        if self._every == 1:
            return "all forwards"
        training = f"one in {self._every:,} forwards in training mode"
        return training if self._during == "training" else f"{training}, all in evaluation mode"
