"""Imports once what the cases need, then runs each of them in a process that is forked from this one.

Where each process imports it for itself, sixteen at once on a cold machine take most of the stage's time for that.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu.process import write_aside
from bench.gpu.product.case import Case, Place, run_case
from bench.gpu.product.forks import fork_each
from bench.gpu.product.stage import OUTCOMES_FILE

# What most cases import. It must neither start a thread nor ask CUDA for anything.
IMPORTED = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "cone_kernels.cli.layers",
    "cone_kernels.experiments",
    "click.testing",
    "rich.progress",
)


def run_each_case(
    cases: Mapping[str, Case], folder: Path, device: str, *, processes: int, limit: float, case_seconds: float
) -> None:
    """Writes the models and what came of each case to a folder, and prints a line for each.

    Args:
        cases: by name, in the order of their beginning.
        folder: to write to.
        device: as the commands take it.
        processes: how many run at once.
        limit: seconds for all.
        case_seconds: the most that one may take.

    Raises:
        RuntimeError: an import has initialised CUDA, or the models could not be written.
    """
    import torch

    end = time.perf_counter() + limit
    for name in IMPORTED:
        importlib.import_module(name)
    if torch.cuda.is_initialized():
        raise RuntimeError("imports: got one that initialises CUDA; a process that is forked after it has no GPU")
    for _, ended in fork_each([partial(Place.made, folder)], 1, limit, end):
        if not ended.ok:
            raise RuntimeError(f"models and corpus: got {ended.printed.strip()}")

    names, found = list(cases), {name: {"outcome": "not run"} for name in cases}
    files = {name: folder / f"{number}.json" for number, name in enumerate(names)}
    work = [partial(_write_outcome, case, folder, device, files[name]) for name, case in cases.items()]
    for number, ended in fork_each(work, processes, case_seconds, end):
        name = names[number]
        if files[name].exists():
            found[name] = json.loads(files[name].read_text(encoding="utf-8"))
        else:
            found[name] = {
                "outcome": "not finished",
                "seconds": round(ended.seconds, 1),
                "text": ended.result()["last"],
            }
        print(_line(name, found[name]), flush=True)
        write_aside(folder / OUTCOMES_FILE, json.dumps(found))
    write_aside(folder / OUTCOMES_FILE, json.dumps(found))


def _write_outcome(case: Case, folder: Path, device: str, file: Path) -> None:
    write_aside(file, json.dumps(run_case(case, Place.at(folder), device)))


def _line(name: str, found: Mapping[str, Any]) -> str:
    figures = f", {found['difference']:.1e} {found['where']}".rstrip() if "difference" in found else ""
    text = found.get("text", "")
    return f"{found['outcome']}: {name}{figures}{': ' + text if text else ''}"
