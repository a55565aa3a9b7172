"""One thing that the package does, on a device and on the CPU, and what came of it."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.generated import SHAPES, sentences, write_model
from bench.gpu.product.differences import FLOAT32, Tolerance, largest_difference
from tests.support.encoding_folders import dense, save_encoder

SENTENCES = 400
_MOST_TEXT = 2000


@dataclass(frozen=True)
class Place:
    """What the cases run on, and a folder that each run has to itself."""

    models: tuple[Path, Path]
    corpus: Path
    scratch: Path

    @classmethod
    def made(cls, folder: Path) -> Place:
        """Writes two small models of one architecture, with other weights, and a corpus to a folder.

        The first one is of sentence-transformers: its own output is measured too.
        """
        place = cls.at(folder)
        first, second = place.models
        for seed, model in enumerate((folder / "transformer", second)):
            write_model(model, "small", seed=seed)
        width = int(SHAPES["small"]["hidden_size"])
        save_encoder(first, folder / "transformer", "cls", then=[dense(width, width), ("Normalize", {})], dim=width)
        place.corpus.write_text("\n".join(sentences(SENTENCES)) + "\n", encoding="utf-8")
        return place

    @classmethod
    def at(cls, folder: Path) -> Place:
        """Where `made` has written."""
        return cls((folder / "model-0", folder / "model-1"), folder / "corpus.txt", folder)


Results = Callable[[Place, str], Any]
"""From a place and a device to numbers: JSON data, also with tensors."""


@dataclass(frozen=True)
class Case:
    """What is run on the device, and what it is compared with.

    Attributes:
        name: as it is listed.
        tested: its results on the device.
        wanted: what they are to be, computed on the CPU; None: as `tested`.
        tolerance: the largest difference that passes.
        needs: packages without which it cannot be run.
        refusal: a pattern; an error that it matches says, as documented, that this machine cannot do it.
        backend: the GPU backend that it asks for by name; "" leaves that to the package.
    """

    name: str
    tested: Results
    wanted: Results | None = None
    tolerance: Tolerance = FLOAT32
    needs: tuple[str, ...] = ()
    refusal: str = ""
    backend: str = ""


def run_case(case: Case, place: Place, device: str) -> dict[str, Any]:
    """Runs a case on a device and on the CPU.

    Args:
        case: what to run.
        place: of the models and the corpus.
        device: as the commands take it.

    Returns:
        outcome: `ok`, `refused`, `not installed` or `failed`; seconds; the largest difference, where it is, and the
        tolerance; the text of an error.
    """
    lacking = [package for package in case.needs if importlib.util.find_spec(package) is None]
    if lacking:
        return {"outcome": "not installed", "text": ", ".join(lacking)}
    start = time.perf_counter()
    result: dict[str, Any] = {}
    try:
        got = _run(case.tested, place, device)
        result["seconds"] = round(time.perf_counter() - start, 2)
        difference = largest_difference(got, _run(case.wanted or case.tested, place, "cpu"), case.tolerance)
        ok = difference.relative <= case.tolerance.relative
        result |= {"outcome": "ok" if ok else "failed", "difference": difference.relative, "where": difference.where}
        result["tolerance"] = case.tolerance.relative
    except BaseException as error:  # also an exit: each case has an outcome
        text = f"{type(error).__name__}: {error}"
        refused = bool(case.refusal) and re.search(case.refusal, text) is not None
        result |= {"outcome": "refused" if refused else "failed", "text": text[-_MOST_TEXT:]}
        if isinstance(error, KeyboardInterrupt):
            raise
    return {"seconds": round(time.perf_counter() - start, 2), **result}


def _run(results: Results, place: Place, device: str) -> Any:
    with tempfile.TemporaryDirectory(dir=place.scratch) as scratch:
        return results(replace(place, scratch=Path(scratch)), device)
