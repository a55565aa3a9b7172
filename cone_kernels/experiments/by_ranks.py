"""One pass of a model over a corpus by the processes that torchrun starts."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cone_kernels.experiments.measurement import Measurement, measure, measurement_of
from cone_kernels.experiments.options import ShardOptions


def measure_by_ranks(
    model: Any,
    corpus: Any,
    kept: Mapping[str, Any],
    save_state: str | os.PathLike[str] | None,
    options: ShardOptions,
) -> Measurement:
    """As `measure`: each rank reads the whole corpus and runs its shards; all return the same, rank 0 alone writes.

    Args:
        model, corpus: as in `measure`, on every rank.
        kept: `second_moment`, `unit_second_moment`, `poolings` and `keep_vectors` of `measure`.
        save_state: where to write the state.
        options: `ShardOptions` with `distributed`; a checkpoint becomes one of each rank, FILE.0-of-4 and so on.

    Raises:
        ValueError: there is `shard`, `workers` or `keep_vectors` beside it, or torchrun has not started this process.
    """
    rest = dict[str, Any](options)
    del rest["distributed"]
    beside = [name for name in ("shard", "workers") if rest.get(name) is not None]
    beside += ["keep_vectors"] if kept["keep_vectors"] else []
    if beside:
        raise ValueError(f"distributed: got True beside {', '.join(beside)}; they do not go together")

    import torch
    import torch.distributed as dist

    from cone_kernels.partial_run import PartialRun
    from cone_kernels.runner import Run
    from cone_kernels.sharded_run import all_merged, process_group

    started, clock = datetime.now(timezone.utc), time.perf_counter()
    with process_group():
        rank, world_size = dist.get_rank(), dist.get_world_size()
        if rank > 0:
            rest.pop("log_json", None)
        if rest.get("checkpoint") is not None:
            rest["checkpoint"] = f"{os.fspath(rest['checkpoint'])}.{rank}-of-{world_size}"
        if rest.get("device") is None and torch.cuda.is_available():
            rest["device"] = f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "part")
            own = {"shard": f"{rank}/{world_size}", "save_state": file}
            measure(model, corpus, **{**kept, **rest, **own})
            part = all_merged(PartialRun.load(file))
    part = replace(part, facts={**part.facts, "seconds": time.perf_counter() - clock})
    ran = Run.of(part, part.close())
    if save_state is not None and rank == 0:
        ran.state.save(save_state)
    asked = {**kept, **{name: options.get(name) for name in ("token_budget", "threads", "shard_size")}}
    asked |= {"backend": options.get("backend", "auto"), "distributed": world_size}
    asked.pop("keep_vectors")
    return measurement_of(ran, asked, {"started": started.isoformat(timespec="seconds"), "load": 0.0})
