"""torchrun with several `cone` commands, which each rank runs one after another: torch is imported once for all.

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

from tests.support.places import ROOT
from tests.support.undrawn import DRAWN_BY, undrawn


def torchrun(ranks: int, *commands: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """What the commands print and how they end; the first that fails is the last."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "tests.support.torchrun", json.dumps([list(map(str, arguments)) for arguments in commands])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=ROOT)


def main(commands: list[list[str]]) -> None:
    for arguments in commands:
        sys.argv[1:] = arguments
        try:
            with mock.patch(DRAWN_BY, undrawn):
                runpy.run_module("cone_kernels", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
