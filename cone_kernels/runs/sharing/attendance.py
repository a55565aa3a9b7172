"""Ranks that wait for each other: each tells that it lives, who is waited for is said, and the wait has an end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

from torch.distributed import Store  # type: ignore[attr-defined]

from cone_kernels.runs.sharing.workers import WorkerError

logger = logging.getLogger(__name__)

# Seconds between two signs of life of a rank, between two looks for them, and between two words of who is waited for.
_SIGN_S = 10.0
_LOOK_S = 0.5
_SAY_S = 60.0
# A rank without a sign for so long is taken for dead, or for cut off.
_SILENT_S = 600.0


class Attendance:
    """While this context lasts the rank gives signs of life; those that are done wait for the others.

    Args:
        store: keys of its own in what all ranks share.
        rank, world_size: as torch.distributed has them.

    Examples:
        >>> with Attendance(store, rank, world_size) as ranks:
        ...     part = run_shards()
        ...     ranks.wait_for_all()
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._ranks = store, rank, range(world_size)
        self._ended = threading.Event()

    def __enter__(self) -> Attendance:
        threading.Thread(target=self._give_signs, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()

    def wait_for_all(self) -> None:
        """Returns when every rank has called this.

        Raises:
            WorkerError: a rank has given no sign for ten minutes.
        """
        self._store.set(f"{self._rank}/done", "")
        said = time.monotonic()
        heard = dict.fromkeys(self._ranks, (b"", said))
        while waited_for := [rank for rank in self._ranks if not self._store.check([f"{rank}/done"])]:
            now = time.monotonic()
            for rank in waited_for:
                sign = self._store.get(f"{rank}/sign") if self._store.check([f"{rank}/sign"]) else b""
                if sign != heard[rank][0]:
                    heard[rank] = (sign, now)
            silent = [rank for rank in waited_for if now - heard[rank][1] > _SILENT_S]
            if silent:
                raise WorkerError(f"{_named(silent)}: no sign of life for {_SILENT_S:.0f} s; it has died or is cut off")
            if now - said > _SAY_S:
                logger.warning("rank %d is done and waits for %s", self._rank, _named(waited_for))
                said = now
            time.sleep(_LOOK_S)

    def _give_signs(self) -> None:
        number = 0
        with suppress(Exception):  # the store has gone: the others miss this rank, and it will miss them
            while not self._ended.wait(_SIGN_S if number else 0):
                number += 1
                self._store.set(f"{self._rank}/sign", str(number))


def _named(ranks: Iterable[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in ranks)
