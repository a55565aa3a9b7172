"""The part of a run that grows shard by shard, and the checkpoint that it is written to on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from cone_kernels.runs.checkpoint import Checkpoint
from cone_kernels.runs.options import parsed_shard
from cone_kernels.runs.part import RunPart
from cone_kernels.runs.shard_tree import owner
from cone_kernels.runs.vector_keeper import VectorKeeper
from cone_kernels.state.cone_state import ConeState


class GrowingPart:
    """What one process has gathered of a run so far, whatever it runs: sentences through a model, or rows of files.

    Args:
        start: the run before its first shard; `start.shards` says which shards fall to this process.
        checkpoint: the file that the part is written to now and then; None for none.
        every, resume: as in `Checkpoint`.
        keeper: of sentence vectors that go with the checkpoint.
        device: where the sums of a checkpoint are put.

    Attributes:
        part: the shards that are done, with those of an interrupted run that this one goes on with.

    Raises:
        FileExistsError, FileNotFoundError, StateFileError, ValueError: as `Checkpoint` and its `latest`.

    Examples:
        >>> growing = GrowingPart(RunPart.begin(identity, "0/1", 8192))
        >>> growing.take(0, state, sentences=8192)
        >>> growing.end().close()
    """

    def __init__(
        self,
        start: RunPart,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        every: float | None = None,
        resume: bool = False,
        keeper: VectorKeeper | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.part = start
        self._checkpoint = None
        if checkpoint:
            self._checkpoint = Checkpoint(checkpoint, keeper, every=every, resume=resume)
            if resume:
                self.part = self._checkpoint.latest(start, device or torch.device("cpu"))
        self._process, self._processes = parsed_shard(start.shards[0])
        self._done_before = self.part.sentences

    def runs_here(self, number: int, end: int) -> bool:
        """Whether this process runs a shard: it falls to it, and was not done before an interruption.

        Args:
            number: of the shard.
            end: how many sentences there are up to its end.
        """
        return owner(number, self._processes) == self._process and end > self._done_before

    def take(self, number: int, state: ConeState | None, expected: int | None = None, **passed: Any) -> None:
        """Adds one more shard, and writes the checkpoint where it is time.

        Args:
            number: of the shard.
            state: its sums; None where it is left to another process.
            expected: how many sentences the whole has, where that can be judged.
            passed: what of the part is changed by it: `sentences`, `counts`, `facts`, ...

        Raises:
            OSError: the checkpoint cannot be written.
        """
        tree = self.part.tree if state is None else self.part.tree.add(number, state)
        self.part = replace(self.part, tree=tree, **passed)
        if self._checkpoint:
            self._checkpoint.shard_done(self.part, expected)

    def end(self, **facts: Any) -> RunPart:
        """The whole part, once all shards have been passed over; writes the last checkpoint.

        Args:
            facts: more of them.
        """
        self.part = replace(self.part, ended=True, facts={**self.part.facts, **facts})
        if self._checkpoint:
            self._checkpoint.save(self.part)
        return self.part

    def state(self, empty: ConeState | None) -> ConeState:
        """The sums as one state: of the whole, or of the shards of this process alone where several share them.

        Args:
            empty: the state of no sentence, for a process to which no shard fell; None where one did.
        """
        if self._processes == 1:
            return self.part.close()
        if self.part.tree.nodes or empty is None:
            return self.part.tree.folded()
        return empty

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Writes the checkpoint at an interruption.

        Raises:
            Interrupted: in place of KeyboardInterrupt, once it has been written.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self._checkpoint is None:
                raise
            raise self._checkpoint.interrupted(self.part) from None
