"""A run that is killed and resumed, over and over; run by test_checkpoint.py in a process of its own.

The model is loaded once, with one thread, and every attempt is a fork: so hundreds of them take a minute.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.runner import run
from tests.support.tiny_checkpoints import THREE_LENGTHS, sentences

TEXTS = sentences(200, THREE_LENGTHS, seed=1)


def bits(loaded: LoadedModel, **options: Any) -> str:
    """What a run gives, sums and sentence vectors, as two fingerprints."""
    found = run(loaded, TEXTS, shard_size=16, second_moment=True, keep_vectors=[-1], **options)
    (vectors,) = found.vectors.values()
    return f"{found.state.fingerprint()} {vectors.header()['sha256']}"


def attempt(loaded: LoadedModel, checkpoint: Path, result: Path, largest_file: int | None) -> int:
    """Forks a process that goes on from the checkpoint and writes the fingerprints to `result`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        result.write_text(bits(loaded, checkpoint=checkpoint, checkpoint_every=0, resume=True))
        code = 0
    except OSError:
        code = 28
    finally:
        os._exit(code)


def main(folder: Path, model: Path, kills: int, full_disks: int, seed: int) -> None:
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loaded, rng = load_model(model), random.Random(seed)
    started = time.perf_counter()
    undisturbed = bits(loaded)
    duration = time.perf_counter() - started
    checkpoint, result = folder / "c", folder / "result"
    killed = full = finished = 0
    while killed < kills or full < full_disks or not result.exists():
        if result.exists():
            # It was done before it could be killed; the next run starts from nothing.
            assert result.read_text() == undisturbed
            finished += 1
            for file in folder.iterdir():
                file.unlink()
        if full < full_disks and rng.random() < 0.3:
            size = checkpoint.stat().st_size if checkpoint.exists() else 0
            _, status = os.waitpid(attempt(loaded, checkpoint, result, rng.randint(1, max(2, size))), 0)
            assert os.waitstatus_to_exitcode(status) == 28, status
            full += 1
            continue
        child = attempt(loaded, checkpoint, result, None)
        if killed < kills:
            time.sleep(rng.uniform(0, 0.6 * duration))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), code
        killed += code != 0
    assert result.read_text() == undisturbed
    print(f"{killed} kills, {full} full disks, {finished + 1} finished runs, all of one fingerprint")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]))
