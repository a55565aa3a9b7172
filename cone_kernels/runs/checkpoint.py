"""Checkpoints of a run: each written whole or not at all, the one before kept, and read back only by the same run."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import torch

from cone_kernels.runs.part import RunPart
from cone_kernels.runs.vector_keeper import VectorKeeper
from cone_kernels.state.agreement import differences
from cone_kernels.state.file import StateFileError

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 300.0


class Interrupted(KeyboardInterrupt):
    """A run was interrupted, and its checkpoint has been written; the message says how far it came."""


class Checkpoint:
    """A file that a run writes its state to every so often, and goes on from.

    Args:
        file: the checkpoint; the one before it is kept as `FILE.previous`.
        keeper: of the run's sentence vectors; their files grow with the run, and are cut back to what the checkpoint
            says is in them when a run goes on from it.
        every: seconds between two checkpoints at least; None is 300, and 0 writes one after every shard.
        resume: go on from the file; without it, a file that is there is not overwritten.

    Raises:
        FileExistsError: there is a checkpoint and `resume` is False.
        FileNotFoundError: there is no such folder.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        keeper: VectorKeeper | None = None,
        *,
        every: float | None = None,
        resume: bool = False,
    ) -> None:
        self.file = Path(file)
        self.previous = self.file.with_name(self.file.name + ".previous")
        self._keeper = keeper or VectorKeeper(())
        self._every = CHECKPOINT_EVERY if every is None else every
        self._written = time.monotonic()
        self._latest: RunPart | None = None
        self._newest_is_whole = True
        self._room_is_checked = False
        if not self.file.parent.is_dir():
            raise FileNotFoundError(f"checkpoint: there is no folder {self.file.parent}")
        there = [path for path in (self.file, self.previous) if path.exists()]
        if there and not resume:
            raise FileExistsError(f"checkpoint: {there[0]} is there already; resume that run, or remove it")

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._written >= self._every

    def latest(self, start: RunPart, device: torch.device) -> RunPart:
        """The newest checkpoint that is whole; `start`, with a warning, where there is no checkpoint yet.

        Args:
            start: the run before its first sentence; the checkpoint must have the same model, corpus and options.
            device: where the sums are put.

        Raises:
            StateFileError: there are files, and none of them is whole.
            ValueError: it has another model, corpus, option or shard, each named.
        """
        faults = []
        for path in (self.file, self.previous):
            try:
                found = RunPart.load(path, device)
                _refuse_other(path, found, start)
                self._keeper.restore(found.facts)
            except FileNotFoundError:
                faults.append(f"there is no {path}")
                continue
            except StateFileError as error:
                faults.append(str(error))
                self._newest_is_whole = False
                continue
            if faults:
                logger.warning("%s; resuming from %s, %d %s in", faults[0], path, found.sentences, found.unit)
            self._latest = found
            return found
        if any(path.exists() for path in (self.file, self.previous)):
            raise StateFileError(f"resume: no checkpoint is whole: {'; '.join(faults)}")
        logger.warning("there is no checkpoint %s yet: starting with the first %s", self.file, start.unit[:-1])
        return start

    def shard_done(self, part: RunPart, expected_sentences: int | None) -> None:
        """Writes the run so far if it is time; finds after the first shard whether the disk has room for the whole run.

        Args:
            part: the run so far.
            expected_sentences: of the whole corpus, where that can be judged.

        Raises:
            OSError: there is no room, or the file cannot be written.
        """
        if self._latest is None and not self._room_is_checked and part.tree.nodes:
            # Three files at once: the newest, the one before, and the one being written. Each has at most as many open
            # nodes as the number of shards has bits.
            sentences = max(expected_sentences or 0, part.sentences)
            shards = sentences // part.shard_size + 1
            vectors = (sentences - part.sentences) * self._keeper.sentence_bytes
            self._require_room(3 * part.nbytes() * shards.bit_length() + vectors)
            self._room_is_checked = True
        if self.due:
            self.save(part)

    def save(self, part: RunPart) -> None:
        """Writes the next checkpoint and keeps the one before.

        Raises:
            OSError: there is no room for it, or it cannot be written; the one before is whole.
        """
        self._require_room(part.nbytes())
        # A file that was found damaged must not take the place of the whole one before it.
        previous = self.previous if self._newest_is_whole else None
        try:
            # The vectors come first: a checkpoint must not count any that a power loss may take away.
            self._keeper.sync()
            part.save(self.file, previous=previous)
        except OSError as error:
            what = f"{self.file} cannot be written: {error.strerror}"
            raise OSError(f"checkpoint: {what}{self._what_is_left()}") from error
        self._written, self._latest, self._newest_is_whole = time.monotonic(), part, True

    def interrupted(self, part: RunPart) -> Interrupted:
        """Writes the run so far; returns what to raise, with a message that says so."""
        if not part.sentences:
            return Interrupted(f"no shard was done yet, so {self.file} was not written")
        if part is not self._latest:
            self.save(part)
        return Interrupted(f"{self.file} holds the first {part.sentences:,} {part.unit}; --resume goes on from there")

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.file.parent).free
        if free < needed:
            room = f"{needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free"
            raise OSError(f"checkpoint: {self.file.parent} must have room for {room}{self._what_is_left()}")

    def _what_is_left(self) -> str:
        """The end of an error's message, where an earlier checkpoint can be resumed from."""
        return f"; the checkpoint before is whole, {self.file} or {self.previous}" if self._latest else ""


def _refuse_other(path: Path, found: RunPart, start: RunPart) -> None:
    """Refuses a checkpoint of another model, corpus, option or shard than those of the run that is to go on."""
    differing = differences(*({**one.identity, "shard": ", ".join(one.shards)} for one in (found, start)))
    if differing:
        raise ValueError(f"resume: {path} and this run differ in {', '.join(differing)}")
