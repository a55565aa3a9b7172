"""One pass of a model over a corpus by the processes that torchrun starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cone_kernels.runs.measurement import Measurement, measure
from cone_kernels.runs.options import SharedOptions
from cone_kernels.runs.sharing.shared_run import SharedRun


def measure_by_ranks(
    model: Any,
    corpus: Any,
    kept: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: SharedOptions,
) -> Measurement:
    """As `measure`: each rank reads the whole corpus and runs its shards; all return the same, rank 0 alone writes.

    Args:
        model, corpus: as in `measure`, on every rank.
        kept: `second_moment`, `unit_second_moment`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `SharedOptions` with `distributed`; a checkpoint becomes one of each rank, FILE.0-of-4 and so on.

    Raises:
        ValueError: torchrun has not started this process.
    """
    import torch
    import torch.distributed as dist

    from cone_kernels.runs.part import PartialRun
    from cone_kernels.runs.sharing.ranks import all_merged, all_united, process_group

    with process_group(), tempfile.TemporaryDirectory() as folder:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        own: dict[str, Any] = {"save_state": Path(folder, "part"), "progress": options.get("progress")}
        if rank == 0:
            own["log_json"] = options.get("log_json")
        if options.get("device") is None and torch.cuda.is_available():
            number = int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count()
            torch.cuda.set_device(number)  # before anything takes memory on the first GPU, which is another rank's
            own["device"] = f"cuda:{number}"
        shared = SharedRun(model, corpus, kept, save_state, options)
        mine = measure(**shared.keywords(rank, world_size, **own))
        part = all_merged(PartialRun.load(own["save_state"]))
        vectors = all_united(mine.vectors, part.sentences) if kept["keep_vectors"] else {}
    return shared.measurement(part, vectors, {"distributed": world_size}, mine.loaded, rank)
