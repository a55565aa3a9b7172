"""A pass over vectors has the same bits however its shards are cut up, interrupted and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cone_kernels.runs import vectors_pass
from cone_kernels.runs.checkpoint import Interrupted
from cone_kernels.runs.measure_vectors import measure_vectors
from cone_kernels.runs.part import RunPart, merge
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.vectors_pass import SHARD_ROWS
from cone_kernels.state.cone_state import ConeState
from cone_kernels.sums import jackknife_groups
from cone_kernels.vector_files import Vectors
from tests.support.forked import forked_workers, run_python  # noqa: F401 - a fixture
from tests.support.vector_writers import two_sparse_gigabytes, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

N, DIM = 2 * SHARD_ROWS + 100, 3


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    array = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32) + 0.5
    array[[7, 20_000]] = 0
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, array)
    return path


@pytest.fixture(scope="module")
def whole(file: Path) -> str:
    return bits(file)


def bits(file: Path | Vectors, **options: Any) -> str:
    vectors = file if isinstance(file, Vectors) else Vectors(file)
    return measure_vectors(vectors, second_moment=True, **options).state.fingerprint()


def test_a_row_is_in_the_jackknife_group_of_its_number(file: Path) -> None:
    output = measure_vectors(Vectors(file)).state.output
    assert output is not None
    seen = output.count + output.n_zero + output.n_nonfinite
    assert torch.equal(seen[0], torch.bincount(jackknife_groups(torch.arange(N)), minlength=64))
    assert output.n_zero[0].nonzero().flatten().tolist() == sorted(jackknife_groups(torch.tensor([7, 20_000])).tolist())


class Stop:
    """A progress that interrupts the run once so many rows have been read."""

    def __init__(self, after: float = float("inf")) -> None:
        self.after = after
        self.seen: list[Progress] = []

    def __call__(self, done: Progress) -> None:
        self.seen.append(done)
        if done.sentences >= self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_decide_no_bit(file: Path, whole: str, threads: int) -> None:
    assert bits(file, threads=threads) == whole


def test_files_cut_anywhere_have_the_bits_of_one(file: Path, whole: str, tmp_path: Path) -> None:
    array, cuts = np.load(file), [0, 1, 8191, 8193, SHARD_ROWS + 1, N]
    paths = [tmp_path / f"{at}.npy" for at in range(len(cuts) - 1)]
    for path, start, stop in zip(paths, cuts, cuts[1:], strict=False):
        np.save(path, array[start:stop])
    assert bits(Vectors(paths)) == whole


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_parts_merge_to_the_bits_of_one_process(file: Path, whole: str, tmp_path: Path, processes: int) -> None:
    parts = [tmp_path / str(process) for process in range(processes)]
    for process, part in enumerate(parts):
        measured = measure_vectors(Vectors(file), second_moment=True, shard=f"{process}/{processes}", save_state=part)
        assert measured.state.output is not None
    merge(parts[::-1], tmp_path / "whole")
    assert ConeState.load(tmp_path / "whole").fingerprint() == whole
    loaded = [RunPart.load(part) for part in parts]
    assert sum(part.counts["sentences"] for part in loaded) == N
    assert {part.sentences for part in loaded} == {N}


@pytest.mark.usefixtures("forked_workers")
def test_workers_give_the_bits_of_one_process(file: Path, whole: str, tmp_path: Path) -> None:
    seen: list[Progress] = []
    measured = measure_vectors(
        Vectors(file), second_moment=True, workers=2, progress=seen.append, save_state=tmp_path / "s"
    )
    assert measured.state.fingerprint() == ConeState.load(tmp_path / "s").fingerprint() == whole
    assert measured.corpus["left_out"] == 2
    assert max(done.sentences for done in seen) == N


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("every", [0.0, 300.0])
def test_a_resumed_pass_has_the_bits_of_an_undisturbed_one(
    file: Path, whole: str, tmp_path: Path, after: int, every: float
) -> None:
    options: dict[str, Any] = {"checkpoint": tmp_path / "c", "checkpoint_every": every}
    with pytest.raises(Interrupted, match=rf"holds the first {after * SHARD_ROWS:,} vectors; --resume"):
        bits(file, progress=Stop(after * SHARD_ROWS + 1), **options)
    again = Stop()
    assert bits(file, progress=again, resume=True, **options) == whole
    assert again.seen[-1].sentences == N
    assert all(done.sentences > done.resumed_sentences == after * SHARD_ROWS for done in again.seen)
    assert bits(file, resume=True, **options) == whole
    with pytest.raises(FileExistsError):
        bits(file, **options)


def test_lines_are_resumed_though_their_number_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_pass, "SHARD_ROWS", 8192)
    monkeypatch.setattr(vectors_pass, "_BLOCK_ROWS", 2048)
    array = np.random.default_rng(1).standard_normal((8192 * 2 + 5, 2)).round(3)
    write_jsonl(tmp_path / "v.jsonl", array)
    wanted, options = bits(tmp_path / "v.jsonl"), {"checkpoint": tmp_path / "c", "checkpoint_every": 0.0}
    np.save(tmp_path / "v.npy", array)
    assert wanted == bits(tmp_path / "v.npy")
    with pytest.raises(Interrupted, match="holds the first 16,384 vectors"):
        bits(tmp_path / "v.jsonl", progress=Stop(16_385), **options)
    again = Stop()
    assert bits(tmp_path / "v.jsonl", resume=True, progress=again, **options) == wanted
    assert [(done.sentences, done.resumed_sentences) for done in again.seen] == [(16_389, 16_384)]
    assert bits(tmp_path / "v.jsonl", resume=True, **options) == wanted


def test_other_vectors_and_options_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"no shard was done yet, so .* was not written"):
        bits(file, progress=Stop(1), checkpoint=tmp_path / "c")
    with pytest.raises(Interrupted):
        bits(file, progress=Stop(SHARD_ROWS + 1), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"differ in options.limit \(None and 9000\)"):
        bits(file, limit=9000, checkpoint=tmp_path / "c", resume=True)
    other = np.load(file)
    other[0] += 1
    np.save(tmp_path / "other.npy", other)
    with pytest.raises(ValueError, match=r"differ in vectors.fingerprint"):
        bits(tmp_path / "other.npy", checkpoint=tmp_path / "c", resume=True)
    for at, path in enumerate((file, tmp_path / "other.npy")):
        bits(path, shard=f"{at}/2", save_state=tmp_path / f"{at}")
    with pytest.raises(ValueError, match=r"the two parts differ in vectors.fingerprint"):
        merge([tmp_path / "0", tmp_path / "1"], tmp_path / "whole")


def test_a_process_without_a_shard_gives_an_empty_state(tmp_path: Path) -> None:
    rows = np.ones((10, 2), np.float32)
    measured = measure_vectors(Vectors.from_rows(rows), shard="1/2", save_state=tmp_path / "part")
    assert measured.state.output is not None
    assert int(measured.state.output.count.sum()) == 0
    measure_vectors(Vectors.from_rows(rows), shard="0/2", save_state=tmp_path / "first")
    merge([tmp_path / "first", tmp_path / "part"], tmp_path / "whole")
    assert (
        ConeState.load(tmp_path / "whole").fingerprint() == measure_vectors(Vectors.from_rows(rows)).state.fingerprint()
    )


def test_wide_vectors_are_added_in_blocks_that_depend_on_the_width_alone() -> None:
    wide = np.random.default_rng(2).standard_normal((150, 70_000)).astype(np.float32)
    whole, cut = (measure_vectors(Vectors.from_rows(source)) for source in (wide, [wide[:7], wide[7:]]))
    assert whole.state.fingerprint() == cut.state.fingerprint()


FLAT = """
import json, resource, sys
from click.testing import CliRunner
from cone_kernels.cli import main

CliRunner().invoke(main, ["vectors", sys.argv[1], "--limit", "100", "--threads", "1", "--json", "-"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = CliRunner().invoke(main, ["vectors", *sys.argv[1:], "--threads", "1", "--json", "-"])
rows = json.loads(done.stdout)["vectors"]["rows"]
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_flat_over_half_a_gigabyte(tmp_path: Path) -> None:
    paths = map(str, two_sparse_gigabytes(tmp_path)[:2])
    program = tmp_path / "flat.py"
    program.write_text(FLAT)
    ran = run_python(program, *paths)
    assert ran.returncode == 0, ran.stderr
    rows, more_kilobytes = json.loads(f"[{ran.stdout.strip().replace(' ', ', ')}]")
    assert rows == 1 << 18
    # Two blocks of 16 MiB, and a state of half a MiB for each doubling of the shards; the rows are 512 MiB.
    assert more_kilobytes < 96 << 10
