"""Several `cone` commands, one after another, in ranks that the agent of torchrun forks: nothing is imported anew.

Their reports have no figures.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.support.forked import run_python
from tests.support.undrawn import DRAWN_BY, undrawn


def torchrun(ranks: int, *commands: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """What the commands print and how they end; the first that fails is the last."""
    words = json.dumps([list(map(str, arguments)) for arguments in commands])
    return run_python("-m", "tests.support.torchrun", str(ranks), words)


def run_commands(commands: list[list[str]]) -> None:
    """In each rank."""
    for arguments in commands:
        sys.argv[1:] = arguments
        try:
            with mock.patch(DRAWN_BY, undrawn):
                runpy.run_module("cone_kernels", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise


def main(ranks: int, commands: list[list[str]]) -> None:
    # As `torchrun --standalone` sets it up, but that the ranks are forked and import nothing again.
    os.environ["OMP_NUM_THREADS"] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        monitor_interval=0.1,
    )
    elastic_launch(config, run_commands)(commands)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
