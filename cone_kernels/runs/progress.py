"""How far a run is, and a log of it as JSON lines, for a program to read."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TextIO

from cone_kernels.files import require_local

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is, after a batch.

    Attributes:
        sentences, tokens: done so far.
        expected: how many sentences there will be; None where that cannot be estimated.
        elapsed: seconds since the run began, without the loading of the model.
        padding: share of the positions given to the model that were padding; 0 in batches of one exact length.
        statistics: share of the elapsed time that was spent on the statistics; on a GPU that of the CPU alone.
        unit: what is counted as sentences: "vectors" or "pairs" of them where no model is run; "images" and then
            "texts" where both towers of a model are. There are no tokens then.
        resumed_sentences, resumed_tokens: how many of the done ones come from an interrupted run that this one goes on.
    """

    sentences: int
    tokens: int
    expected: int | None
    elapsed: float = field(default=0.0, compare=False)
    padding: float = 0.0
    statistics: float = field(default=0.0, compare=False)
    resumed_sentences: int = 0
    resumed_tokens: int = 0
    unit: str = "sentences"

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


class JsonLinesProgress:
    """A `progress` for a run that writes JSON lines: at most one every `interval` seconds, and the last report.

    A line has `timestamp` (ISO 8601, UTC), `sentences`, `tokens`, `expected`, `elapsed`, `remaining` (seconds),
    `sentences_per_second`, `tokens_per_second`, `padding` and `statistics` (shares from 0 to 1), and the entries of
    `also`; what is not known is null. Lines are appended and flushed one by one, so the log can be followed. Where one
    cannot be written, as on a full disk, the log ends with a warning, and the run goes on.

    Args:
        file: to append to; "-" is stderr.
        interval: seconds between two lines; 0 writes every report.
        then: called with every report as well.
        also: further entries of each line.

    Raises:
        OSError: the file cannot be opened.
        ValueError: `interval` is negative, or `file` a URL.

    Examples:
        >>> with JsonLinesProgress("progress.jsonl") as progress:
        ...     run(loaded, corpus, progress=progress)
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        interval: float = 1.0,
        then: Callable[[Progress], None] | None = None,
        also: dict[str, str] | None = None,
    ) -> None:
        if not interval >= 0:
            raise ValueError(f"interval: got {interval}; it must be 0 seconds or more")
        require_local("log_json", file)
        self._interval, self._file, self._failed = interval, file, False
        self._then = then
        self._also = also or {}
        self._lines: TextIO = sys.stderr if file == "-" else Path(file).open("a", encoding="utf-8")  # noqa: SIM115
        self._next = -math.inf
        self._waiting: tuple[datetime, Progress] | None = None

    def __call__(self, done: Progress) -> None:
        """Takes a report, and writes it where a line is due."""
        self._waiting = (datetime.now(timezone.utc), done)
        if time.monotonic() >= self._next:
            self._write()
            self._next = time.monotonic() + self._interval
        if self._then is not None:
            self._then(done)

    def __enter__(self) -> JsonLinesProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Writes the last report if it has not been written, and closes the file."""
        self._write()
        if self._lines is not sys.stderr:
            try:
                self._lines.close()  # what could not be written is tried again
            except OSError as error:
                self._end(error)

    def _write(self) -> None:
        if self._waiting is None or self._failed:
            return
        (now, done), self._waiting = self._waiting, None
        line = {
            "timestamp": now.isoformat(timespec="milliseconds"),
            **self._also,
            "sentences": done.sentences,
            "tokens": done.tokens,
            "expected": done.expected,
            "elapsed": round(done.elapsed, 3),
            "remaining": None if done.remaining is None else round(done.remaining, 3),
            "sentences_per_second": _rounded(done.sentences_per_second),
            "tokens_per_second": _rounded(done.tokens_per_second),
            "padding": round(done.padding, 4),
            "statistics": round(done.statistics, 4),
        }
        try:
            self._lines.write(json.dumps(line, allow_nan=False) + "\n")
            self._lines.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        if not self._failed:
            logger.warning("log_json: %s cannot be written: %s; the run goes on without it", self._file, error.strerror)
        self._failed = True


def _rounded(rate: float) -> float | None:
    return round(rate, 1) if math.isfinite(rate) else None
