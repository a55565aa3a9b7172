"""Tasks of Ray: a local cluster gives the bits of a single process, and what it cannot do is said."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cone_kernels import ConeState, experiments
from cone_kernels.runs.measure import measure
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.sharing import ray_tasks
from cone_kernels.runs.sharing.workers import WorkerError
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

OPTIONS: dict[str, Any] = {"shard_size": 8, "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"{a} {b}\n" for a in WORDS[:20] for b in WORDS[:8]))
    return file


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One cluster for all tests, as each start takes seconds; of one CPU, as each process of it imports torch."""
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("local_ray", "one_thread")
def test_tasks_give_the_bits_of_one_process(model: Path, corpus: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    shared: dict[str, Any] = {"ray": 3, "checkpoint": tmp_path / "c", "progress": reports.append}
    one = measure(model, corpus, second_moment=True, keep_vectors=[-1], save_state=tmp_path / "one", **OPTIONS)
    found = measure(
        model, corpus, second_moment=True, keep_vectors=[-1], save_state=tmp_path / "three", **shared, **OPTIONS
    )
    assert (tmp_path / "three").read_bytes() == (tmp_path / "one").read_bytes()
    assert found.vectors[3].header() == one.vectors[3].header()
    assert (found.model, found.corpus) == (one.model, one.corpus)
    assert found.manifest["options"]["ray"] == 3
    assert reports[-1].sentences <= 160
    names = {f"c.{task}-of-3{suffix}" for task in range(3) for suffix in ("", ".layer-3")}
    assert names <= {file.name for file in tmp_path.iterdir()}
    assert ConeState.load(tmp_path / "three").fingerprint() == one.state.fingerprint()


@pytest.mark.usefixtures("local_ray", "one_thread")
def test_an_experiment_in_one_task(model: Path, corpus: Path) -> None:
    one = experiments.center(model, corpus, method="whitening", **OPTIONS)
    found = experiments.center(model, corpus, method="whitening", ray=1, **OPTIONS)
    assert found.to_dict() | {"manifest": None} == one.to_dict() | {"manifest": None}


@pytest.mark.usefixtures("local_ray", "one_thread")
def test_a_task_that_ray_calls_again_goes_on_from_its_checkpoint(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, died, seen = tmp_path / "c.0-of-1", tmp_path / "died", tmp_path / "seen"
    whole = ray_tasks._measure_to_folder

    def work(name: str, keywords: dict[str, Any], folder: Path, progress: object) -> None:
        def dies(done: Progress) -> None:
            if checkpoint.exists() and not died.exists():
                died.touch()
                os._exit(1)
            with seen.open("a") as file:
                file.write(f"{done.sentences}\n")

        whole(name, keywords, folder, dies)

    monkeypatch.setattr(ray_tasks, "_measure_to_folder", work)
    options: dict[str, Any] = {"checkpoint": tmp_path / "c", "checkpoint_every": 0, **OPTIONS}
    found = measure(model, corpus, ray=1, **options)
    assert died.exists()
    assert found.state.fingerprint() == measure(model, corpus, **OPTIONS).state.fingerprint()
    told = [int(line) for line in seen.read_text().split()]
    assert told == sorted(told)  # one that begins anew tells of its first shards twice


@pytest.mark.usefixtures("local_ray")
def test_a_run_goes_on_when_what_tells_its_progress_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Dies:  # made here, as is the work, so that tasks are given them as they are
        def put(self, number: int, done: object) -> None:
            pass

        def latest(self) -> None:
            os._exit(1)

    def work(name: str, folder: Path, progress: object) -> None:
        time.sleep(1.5)
        (folder / name).write_text("done")

    monkeypatch.setattr(ray_tasks, "_ProgressBoard", Dies)
    ray_tasks.run_tasks(work, [{"name": "a"}], tmp_path, lambda done: None, num_cpus=1)
    assert (tmp_path / "a").read_text() == "done"
    assert [record.message for record in caplog.records if "the progress is no longer told" in record.message]


@pytest.mark.usefixtures("local_ray")
def test_what_a_task_finds_wrong_is_the_error(model: Path, corpus: Path) -> None:
    corpus.write_bytes(b"w5\nw6\n\xff\n")
    with pytest.raises(WorkerError, match=r"^.*corpus.txt:3: byte 0xff at column 1 is not UTF-8"):
        experiments.layers(model, corpus, ray=2, errors="raise")


def test_what_cannot_be_done_is_refused(model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ray: got 0; it must be at least 1"):
        experiments.layers(model, corpus, ray=0)
    with pytest.raises(ValueError, match="workers: got 2 together with ray"):
        experiments.layers(model, corpus, ray=2, workers=2)
    with pytest.raises(TypeError, match="corpus: got list with ray"):
        experiments.layers(model, ["w5"], ray=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"ray is not installed; ray=2 needs it: .*cone_kernels\[ray\]"):
        experiments.layers(model, corpus, ray=2)
