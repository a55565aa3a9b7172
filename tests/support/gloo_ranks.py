"""Runs a function in several processes of one gloo group, for tests."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tests.support.forked import forked

TIMEOUT_S = 60


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What ``function(*args)`` returns in each rank; it and `args` are pickled, so it is a function of a module."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [forked.Pipe(duplex=False) for _ in range(world_size)]
        ranks = [
            forked.Process(target=_run_rank, args=(function, args, rank, world_size, f"{folder}/store", sender))
            for rank, (_, sender) in enumerate(pipes)
        ]
        for process in ranks:
            process.start()
        try:
            answers = [
                pickle.loads(receiver.recv_bytes()) if receiver.poll(TIMEOUT_S) else (None, "no answer")
                for receiver, _ in pipes
            ]
        finally:
            for process in ranks:
                process.join(5)
                process.kill()
    errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(answers) if error]
    assert not errors, "\n".join(errors)
    return [value for value, _ in answers]


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
