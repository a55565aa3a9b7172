"""Workers: progress of all, failures that end all, interruptions that let each write its checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cone_kernels import ConeState, experiments
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.sharing.workers import WorkerError, run_workers
from tests.support import worker_tasks
from tests.support.encoding_folders import dense, save_tiny_encoder
from tests.support.forked import forked_workers  # noqa: F401 - a fixture
from tests.support.tiny_checkpoints import WORDS


def test_all_work_and_their_progress_is_added_up(tmp_path: Path) -> None:
    reports: list[Progress] = []
    files = [tmp_path / str(number) for number in range(2)]
    arguments = [{"number": number, "file": str(file)} for number, file in enumerate(files)]
    run_workers(worker_tasks.count, arguments, reports.append)
    assert [file.read_text() for file in files] == ["0", "1"]
    assert len(reports) == 4
    # 160 tokens in as many positions and 320 in 400; both expect half of the corpus.
    assert reports[-1] == Progress(60, 480, 100, padding=1 - 480 / 560, resumed_sentences=2)
    assert reports[-1].elapsed == 2.0


def test_a_failure_is_raised_and_ends_all() -> None:
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"^line 3: no sentence$"):
        run_workers(worker_tasks.fail, [{"number": 0}, {"number": 1}])
    assert time.monotonic() - started < 30


def test_a_worker_that_is_killed_is_missed() -> None:
    with pytest.raises(WorkerError, match=r"a worker ended without a message, with exit code -9"):
        run_workers(worker_tasks.die, [{"number": 0}, {"number": 1}])


def test_an_interruption_reaches_all_and_waits_for_them(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(2)]
    seen: list[Progress] = []

    def interrupt(done: Progress) -> None:
        seen.append(done)
        if len(seen) == 2:  # both are at work
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="0 is written"):
        run_workers(worker_tasks.wait, [{"file": str(file)} for file in files], interrupt)
    assert [file.read_text() for file in files] == ["interrupted"] * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers, so that the model's own output is shared out too."""
    return save_tiny_encoder(tmp_path_factory.mktemp("bert") / "model", then=[dense(32, 16), ("Normalize", {})])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"{a} {b}\n" for a in WORDS[:20] for b in WORDS[:10]))
    return file


OPTIONS: dict[str, Any] = {"shard_size": 32, "threads": 1, "second_moment": True}


@pytest.mark.usefixtures("forked_workers")
def test_workers_give_the_bits_of_one_process(model: Path, corpus: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    one = experiments.layers(model, corpus, **OPTIONS)
    two = experiments.layers(
        model, corpus, workers=2, save_state=tmp_path / "state", progress=reports.append, **OPTIONS
    )
    assert two.state.fingerprint() == one.state.fingerprint()
    assert ConeState.load(tmp_path / "state").fingerprint() == one.state.fingerprint()
    assert two.corpus == one.corpus
    assert two.model == one.model
    assert [row.to_dict() for row in two.layers] == [row.to_dict() for row in one.layers]
    assert (reports[-1].sentences, reports[-1].expected) == (200, 200)
    assert two.manifest["options"]["workers"] == 2
    assert {"versions", "seconds", "device", "ops", "batches", "threads"} <= set(two.manifest)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3, 4])
def test_any_number_of_workers_gives_the_same_bits(model: Path, corpus: Path, workers: int) -> None:
    one = experiments.pooling(model, corpus, pooling="all", shard_size=32, threads=1)
    found = experiments.pooling(model, corpus, pooling="all", workers=workers, shard_size=32, threads=1)
    assert found.state.fingerprint() == one.state.fingerprint()


@contextmanager
def cone(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "cone_kernels", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_a_signal_ends_all_with_checkpoints_and_resume_goes_on(model: Path, corpus: Path, tmp_path: Path) -> None:
    options = ["layers", "--model", model, "--corpus", corpus, "--workers", "2", "--shard-size", "8", "--threads", "1"]
    options += ["--checkpoint", tmp_path / "c", "--checkpoint-every", "0", "--save-state", tmp_path / "s"]
    files = [tmp_path / f"c.{worker}-of-2" for worker in range(2)]
    with cone(*options, "--token-budget", "1") as process:
        while not all(file.exists() for file in files):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert stdout == ""
    assert "sentences; --resume goes on from there" in stderr
    assert not (tmp_path / "s").exists()
    with cone(*options, "--token-budget", "1", "--resume") as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    undisturbed = experiments.layers(model, corpus, shard_size=8, threads=1, token_budget=1)
    assert ConeState.load(tmp_path / "s").fingerprint() == undisturbed.state.fingerprint()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers: got 0; it must be at least 1"),
        ({"shard": "0/2"}, ValueError, "workers: got 2 together with shard"),
        ({"corpus": ["w5", "w6"]}, TypeError, "corpus: got list with workers"),
        ({"corpus": "-"}, TypeError, "corpus: got standard input with workers"),
        ({"model": object()}, TypeError, "model: got object with workers"),
    ],
)
def test_what_workers_cannot_do_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"model": "m", "corpus": "c.txt", "workers": 2, **change}
    with pytest.raises(error, match=message):
        experiments.layers(**options)


@pytest.mark.usefixtures("forked_workers")
def test_what_a_worker_finds_wrong_is_the_error(model: Path, corpus: Path) -> None:
    corpus.write_bytes(b"w5\nw6\n\xff\n")
    with pytest.raises(WorkerError, match=r"corpus.txt:3: byte 0xff at column 1 is not UTF-8"):
        experiments.layers(model, corpus, workers=1, errors="raise")
