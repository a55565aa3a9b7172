"""Runs a function in several processes of one gloo group, for tests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from tests.support.forked import forked

TIMEOUT_S = 60


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What ``function(*args)`` returns in each rank; it and `args` are pickled, so it is a function of a module."""
    with tempfile.TemporaryDirectory() as folder:
        receivers, senders = zip(*(forked.Pipe(duplex=False) for _ in range(world_size)), strict=True)
        packed = pickle.dumps((function, args))
        process = forked.Process(target=_fork_ranks, args=(packed, f"{folder}/store", senders))
        process.start()
        try:
            answers = [
                pickle.loads(receiver.recv_bytes()) if receiver.poll(TIMEOUT_S) else (None, "no answer")
                for receiver in receivers
            ]
        finally:
            process.join(5)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
    errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(answers) if error]
    assert not errors, "\n".join(errors)
    return [value for value, _ in answers]


def _fork_ranks(packed: bytes, store: str, senders: Sequence[Any]) -> None:
    """The ranks are forked from here, where what they need has been imported once for all."""
    os.setsid()
    try:
        function, args = pickle.loads(packed)
    except BaseException:
        for sender in senders:
            sender.send_bytes(pickle.dumps((None, traceback.format_exc())))
        return
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_run_rank, args=(function, args, rank, len(senders), store, sender))
        for rank, sender in enumerate(senders)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()


def _run_rank(
    function: Callable[..., Any], args: tuple[Any, ...], rank: int, world_size: int, store: str, sender: Any
) -> None:
    torch.set_num_threads(1)
    # As a launcher sets them; Accelerate, and with it the Trainer, look there.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        answer = (function(*args), "")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer = (None, traceback.format_exc())
    # Bytes, because a tensor sent through a pipe stays in the memory of the process that made it.
    sender.send_bytes(pickle.dumps(answer))
