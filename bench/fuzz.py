"""Altered input for everything that reads bytes: `make fuzz`. What is wrong is refused in the package's own errors.

State files, parts of runs (which checkpoints are) and centerings are altered byte by byte, and in their header and
tensors under a hash that is right again; corpora and files of vectors of every format byte by byte; masks and
cu_seqlens in dtype, shape and values, and what an op takes of them must be what the reference makes of it. Any other
error is a find: its case stays in the folder of the finds, and so does the case at hand when the process dies; --case
runs one again.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cone_kernels import Centering, ConeState, masked_mean_pool, pool_moments
from cone_kernels.corpora import Corpus, CorpusError
from cone_kernels.runs.part import RunPart
from cone_kernels.state import file as state_file
from cone_kernels.state.file import StateFileError
from cone_kernels.vector_files import VectorFileError, Vectors
from tests.support.vector_writers import WRITERS

WIDTH = 6
TEXTS = ["a cat", "b, c", "é\u2028x", 'say "no"', "a cat", "", "one two three"]
ODD_NUMBERS = (0, 1, -1, 2**31, -(2**31), 2**63 - 1, 2**53 + 1, 1e308, float("nan"), float("inf"))
ODD: tuple[Any, ...] = (None, True, "", "\x1b[31m", "\ud800", [], {}, [[]], "x" * 70_000, *ODD_NUMBERS)

Case = Callable[[random.Random, Path], None]


class WrongError(AssertionError):
    """An input was taken that means something else, or was refused in no words of the package."""


def altered(content: bytes, chance: random.Random) -> bytes:
    """The content with some of its bytes flipped, cut, doubled, moved or replaced."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at, size = chance.randrange(len(data) + 1), chance.choice((1, 2, 4, 8, 64))
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size] * chance.choice((1, 2, 50))
        elif kind == 3:
            data[at : at + size] = bytes(chance.randrange(256) for _ in range(size))
        elif kind == 4:
            data[at : at + 8] = chance.choice((2**63 - 1, 2**31, 0, 2**64 - 1, 2**40)).to_bytes(8, "little")
        else:
            del data[at:]
    return bytes(data)


def altered_json(value: Any, chance: random.Random) -> Any:
    """JSON data with one of its values, or a name, replaced by what it must not be."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        changed = dict(value)
        old = changed.pop(name)
        if chance.random() < 0.1:
            return changed
        return changed | {name: altered_json(old, chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], altered_json(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD)


def altered_tensors(tensors: dict[str, torch.Tensor], chance: random.Random) -> dict[str, torch.Tensor]:
    """Tensors by name of which one has another dtype, shape, value or name."""
    if not tensors:
        return tensors
    name = chance.choice(list(tensors))
    changed = {key: value.clone() for key, value in tensors.items()}
    value, kind = changed.pop(name), chance.randrange(5)
    if kind == 0:
        changed[name] = value.to(chance.choice((torch.bfloat16, torch.float32, torch.int32, torch.uint8, torch.bool)))
    elif kind == 1:
        changed[name] = value.flatten()[: chance.randrange(value.numel() + 1)]
    elif kind == 2 and value.numel():
        flat = value.flatten().clone()
        odd = chance.choice(ODD_NUMBERS)
        whole = not value.dtype.is_floating_point
        flat[chance.randrange(len(flat))] = 2**63 - 1 if whole and not abs(odd) < 2**62 else int(odd) if whole else odd
        changed[name] = flat.reshape(value.shape)
    elif kind == 3:
        changed[chance.choice(("x", "", "sentence.", name + "\x1b"))] = value
    return changed


def state_case(kind: str) -> Case:
    """Files of states, parts and centerings."""
    reads: dict[str, Callable[[Path], Any]] = {
        "state": ConeState.load, "part": RunPart.load, "centering": Centering.load,
    }  # fmt: skip

    def case(chance: random.Random, folder: Path) -> None:
        whole = folder / f"whole.{kind}"
        if not whole.exists():
            _write_state(kind, whole)
        path = folder / f"altered.{kind}"
        if chance.random() < 0.3:
            path.write_bytes(altered(whole.read_bytes(), chance))
        else:
            tensors, info = _content(whole)
            if chance.random() < 0.5:
                info = altered_json(info, chance)
            else:
                tensors = altered_tensors(tensors, chance)
            try:
                state_file.write(path, tensors, info)
            except (ValueError, TypeError, OverflowError, UnicodeError, AttributeError):
                return  # safetensors or JSON cannot hold it
        try:
            loaded = reads[kind](path)
        except StateFileError as error:
            if str(path) not in str(error):
                raise WrongError(f"the file is not named: {error}") from error
            return
        repr(loaded)

    return case


def _write_state(kind: str, path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = ConeState.empty([0, 1], WIDTH, second_moment=True, poolings="cls", info={"model": {"name": "m"}})
    state.update(list(torch.randn(2, 5, 3, WIDTH, generator=generator)), torch.ones(5, 3))
    if kind == "state":
        state.save(path)
    elif kind == "centering":
        Centering.fit(state.sentence.select(1)).save(path)
    else:
        part = RunPart.begin({"model.name": "m", "options.shard_size": 8}, "0/1", 8)
        part.tree.add(0, state)
        part.save(path)


def _content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    infos = {name: json.loads(value) for name, value in header.items() if value[:1] in "{["}
    return tensors, next(iter(infos.values())) if len(infos) == 1 else infos


def corpus_case(chance: random.Random, folder: Path) -> None:
    """Corpora of every format and compression."""
    suffix = chance.choice(("txt", "jsonl", "csv", "tsv", "parquet", "arrow"))
    content = _corpus(suffix, folder)
    compressed = chance.random() < 0.3
    if compressed and chance.random() < 0.5:
        content, compressed = altered(gzip.compress(content), chance), True
    elif compressed:
        content = gzip.compress(altered(content, chance))
    else:
        content = altered(content, chance)
    path = folder / f"altered.{suffix}{'.gz' if compressed else ''}"
    path.write_bytes(content)
    try:
        found = list(Corpus(path, errors=chance.choice(("replace", "drop", "raise"))))
    except CorpusError as error:
        if path.name not in str(error):
            raise WrongError(f"the file is not named: {error}") from error
        return
    for text in found:
        text.encode()
        if not text.strip():
            raise WrongError(f"an empty sentence was given out: {text!r}")


def _corpus(suffix: str, folder: Path) -> bytes:
    if suffix == "txt":
        return "".join(f"{text}\n" for text in TEXTS).encode()
    if suffix == "jsonl":
        return "".join(json.dumps({"text": text, "id": 3}) + "\n" for text in TEXTS).encode()
    if suffix in ("csv", "tsv"):
        cell = (lambda text: '"' + text.replace('"', '""') + '"') if suffix == "csv" else str
        mark = "," if suffix == "csv" else "\t"
        return "".join(f"3{mark}{cell(text)}\n" for text in ["text", *TEXTS]).encode()
    import pyarrow as pa
    from pyarrow import parquet

    path, table = folder / f"whole.{suffix}", pa.table({"text": TEXTS})
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    return path.read_bytes()


def vectors_case(chance: random.Random, folder: Path) -> None:
    """Files of vectors of every format."""
    name, dtypes, write = WRITERS[chance.choice([key for key in WRITERS if "faiss" not in key])]
    place = folder / "vectors"
    place.mkdir(exist_ok=True)
    path = place / name
    if path.is_dir():
        return
    write(path, np.random.default_rng(0).normal(size=(20, WIDTH)).astype(dtypes[0]))
    if path.is_dir():
        return
    path.write_bytes(altered(path.read_bytes(), chance))
    try:
        for _, rows in Vectors(path).blocks(rows=7):
            if rows.dim() != 2:
                raise WrongError(f"rows of shape {tuple(rows.shape)}")
    except VectorFileError as error:
        if path.name not in str(error):
            raise WrongError(f"the file is not named: {error}") from error
    finally:
        path.unlink()


def selection_case(chance: random.Random, folder: Path) -> None:
    """Masks and cu_seqlens of odd dtypes, shapes and values."""
    size = (chance.randrange(1, 5), chance.randrange(0, 6))
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    dtypes = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64, torch.complex64)
    x = torch.randn(*size, WIDTH, generator=generator)
    if chance.random() < 0.5:
        shape = size if chance.random() < 0.8 else (size[0], size[1] + chance.choice((-1, 1)) * (size[1] > 0))
        mask: Any = torch.randint(0, 2, shape, generator=generator).to(chance.choice(dtypes))
        if mask.numel() and mask.dtype != torch.bool and chance.random() < 0.3:
            mask.view(-1)[chance.randrange(mask.numel())] = chance.choice((2, 3, 200))
        selection = {"mask": mask.numpy() if chance.random() < 0.3 else mask.mT.contiguous().mT}
    else:
        x = x.flatten(0, 1)
        starts = sorted(chance.randrange(0, len(x) + 1) for _ in range(chance.randrange(0, 4)))
        starts = [0, *starts, len(x)]
        if chance.random() < 0.4:
            starts[chance.randrange(len(starts))] = chance.choice((-1, 2**31 - 1, len(x) + 1, -(2**31)))
        kinds = (torch.int32, torch.int64, torch.int64, torch.float32)
        selection = {"cu_seqlens": torch.tensor(starts).to(chance.choice(kinds))}
    given = x.numpy() if isinstance(next(iter(selection.values())), np.ndarray) else x
    try:
        got = torch.as_tensor(masked_mean_pool(given, **selection))
        sums = pool_moments(given, **selection).sums
    except (TypeError, ValueError) as error:
        if not str(error).startswith(("mask: got", "cu_seqlens: got")):
            raise WrongError(f"refused in no words of the package: {error}") from error
        return
    wanted = torch.as_tensor(masked_mean_pool(given, **selection, backend="reference"))
    of_reference = pool_moments(given, **selection, backend="reference").sums
    if not torch.allclose(got, wanted, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise WrongError(f"{got} where the reference has {wanted}")
    for field, total in sums.items():
        if not torch.allclose(
            torch.as_tensor(total).double(), torch.as_tensor(of_reference[field]).double(), 1e-5, 1e-5
        ):
            raise WrongError(f"{field}: {total} where the reference has {of_reference[field]}")


CASES: dict[str, Case] = {
    "state": state_case("state"),
    "part": state_case("part"),
    "centering": state_case("centering"),
    "corpus": corpus_case,
    "vectors": vectors_case,
    "selection": selection_case,
}


def fuzz(seconds: float, seed: int, finds: Path, only: str | None = None) -> tuple[dict[str, int], dict[str, str]]:
    """Runs cases in turn for so long; how many of each, and the finds by name with their traceback."""
    names = [name for name in CASES if only in (None, name)]
    counts: dict[str, int] = collections.Counter()
    found: dict[str, str] = {}
    end, number = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            name = names[number % len(names)]
            case = f"{name}-{seed}-{number}"
            (finds / "at-hand").write_text(case)
            try:
                CASES[name](random.Random(case), Path(folder))
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                key = f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                if key not in found:
                    found[key] = f"{case}\n{traceback.format_exc()}"
                    (finds / f"{case}.txt").write_text(found[key])
            counts[name] += 1
            number += 1
    (finds / "at-hand").unlink()
    return counts, found


def main() -> int:
    """Fuzzes for a while, prints the counts and the finds, and fails where there are some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--finds", type=Path, default=Path("bench/results/fuzz"))
    parser.add_argument("--case", help="one case alone, such as corpus-0-17, with its traceback")
    asked = parser.parse_args()
    if asked.case:
        with tempfile.TemporaryDirectory() as folder:
            CASES[asked.case.split("-")[0]](random.Random(asked.case), Path(folder))
        return 0
    asked.finds.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    counts, found = fuzz(asked.seconds, asked.seed, asked.finds, asked.only)
    print(", ".join(f"{count:,} of {name}" for name, count in counts.items()), f"; seed {asked.seed}", sep="")
    for name, told in found.items():
        print(f"\n{name}\n{told}")
    print(f"{len(found)} kinds of finds")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
