"""torchrun: ranks share the shards, and rank 0 alone shows and writes what a single process would."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch.distributed import HashStore  # type: ignore[attr-defined]

from cone_kernels import ConeState, experiments
from cone_kernels.runs.sharing import ranks as ranks_of_torchrun
from tests.runs.sharing.test_shared_vectors import assert_same
from tests.support.encoding_folders import dense, save_tiny_encoder
from tests.support.tiny_checkpoints import WORDS, save_checkpoint
from tests.support.torchrun import torchrun


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sentence-transformers, so that the model's own output is shared out too."""
    return save_tiny_encoder(tmp_path_factory.mktemp("bert") / "model", then=[dense(32, 16), ("Normalize", {})])


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("another")
    save_checkpoint(folder, seed=1)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"{a} {b}\n" for a in WORDS[:20] for b in WORDS[:12]))
    return file


@pytest.mark.parametrize(("restarts", "checkpoint"), [("2", "c"), ("0", "c"), (None, "c"), ("2", None)])
def test_ranks_that_torchrun_starts_again_go_on_from_their_checkpoints(
    monkeypatch: pytest.MonkeyPatch, restarts: str | None, checkpoint: str | None
) -> None:
    given: list[dict[str, Any]] = []

    def measure_part(**keywords: Any) -> None:
        given.append(keywords)
        raise InterruptedError

    monkeypatch.setattr(ranks_of_torchrun, "process_group", lambda: nullcontext(HashStore()))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(ranks_of_torchrun, "measure_part", measure_part)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    if restarts is not None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    with pytest.raises(InterruptedError):
        ranks_of_torchrun.measure_by_ranks("model", ["a"], {}, None, {"checkpoint": checkpoint, "distributed": True})
    assert bool(given[0].get("resume")) == (restarts == "2" and checkpoint is not None)


def test_a_rank_is_on_its_own_gpu_before_anything_runs(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []

    def shared_run(*_: object) -> None:
        assert chosen == [3]
        raise InterruptedError

    monkeypatch.setenv("LOCAL_RANK", "7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(ranks_of_torchrun, "process_group", nullcontext)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 7)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    monkeypatch.setattr(ranks_of_torchrun, "SharedRun", shared_run)
    with pytest.raises(InterruptedError):
        ranks_of_torchrun.measure_by_ranks("model", corpus, {}, None, {})


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_give_the_bits_of_one_process(
    model: Path, another: Path, corpus: Path, tmp_path: Path, ranks: int
) -> None:
    """Of one experiment with its state, and of a run of two models, one after the other in the same processes."""
    options = ["--shard-size", "32", "--threads", "1", "--distributed"]
    layers = ["layers", "--model", model, "--corpus", corpus, *options, "--second-moment"]
    layers += ["--save-state", tmp_path / "state", "--checkpoint", tmp_path / "c", "--json", "-"]
    whole = ["run", "--model", model, "--model", another, "--corpus", corpus, *options, "--k", "2"]
    whole += ["--out", tmp_path / "run", "--checkpoint", tmp_path / "r", "--json", "-"]
    done = torchrun(ranks, layers, whole)
    assert done.returncode == 0, done.stderr
    of_layers, of_run = documents(done.stdout)  # rank 0 alone prints

    one = experiments.layers(model, corpus, shard_size=32, threads=1, second_moment=True)
    assert ConeState.load(tmp_path / "state").fingerprint() == one.state.fingerprint()
    assert of_layers["layers"] == one.to_dict()["layers"]
    assert of_layers["corpus"] == one.corpus
    assert of_layers["manifest"]["options"]["distributed"] == ranks
    assert {file.name for file in tmp_path.glob("c.*")} == {f"c.{rank}-of-{ranks}" for rank in range(ranks)}

    alone = experiments.run([model, another], corpus, tmp_path / "alone", k=2, shard_size=32, threads=1)
    assert_same(of_run, tmp_path / "run", (alone.to_dict(), tmp_path / "alone"))
    assert {file.name for file in tmp_path.glob("r.*")} == {
        f"r.model-{number}.{rank}-of-{ranks}{suffix}"
        for number in (0, 1)
        for rank in range(ranks)
        for suffix in ("", ".layer-output" if number == 0 else ".layer-3")
    }


def documents(text: str) -> list[Any]:
    """The JSON documents that follow one another in a text."""
    found, rest = [], text.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].lstrip()
    return found


@pytest.mark.slow
def test_ranks_that_would_not_share_are_refused(model: Path, corpus: Path) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    axis = ["-m", "cone_kernels", "axis", "--model", model, "--corpus", corpus, "--no-distributed"]
    done = subprocess.run([*program, *axis], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "each would do all of it with --no-distributed" in done.stderr


def test_ranks_need_torchrun(model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="distributed: got True outside of torchrun"):
        experiments.layers(model, corpus, distributed=True)
    with pytest.raises(ValueError, match="distributed: got True together with workers, shard"):
        experiments.layers(model, corpus, distributed=True, workers=2, shard="0/2")
