"""The budget that a trial finds: doubled as long as it pays and fits, and kept for the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cone_kernels import experiments
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs import token_budget
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.runner import run
from cone_kernels.runs.token_budget import find_token_budget
from tests.support.tiny_checkpoints import THREE_LENGTHS, save_checkpoint, sentences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder, device="cpu")


class Clock:
    """Stands in for the clock: a forward of N tokens takes `fixed` + N seconds, up to `memory` tokens."""

    def __init__(self, fixed: float, memory: int = 1 << 30) -> None:
        self.fixed, self.memory, self.tried = fixed, memory, set[int]()

    def seconds(self, loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> float:
        tokens = inputs["input_ids"].numel()
        self.tried.add(tokens)
        if tokens > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.fixed + tokens


@pytest.mark.parametrize(
    ("clock", "found"),
    [
        (Clock(0), 1 << 10),  # nothing is gained
        (Clock(1 << 12), 1 << 17),  # (4096 + N) / N falls by 3 % for the last time from 65536 to 131072
        (Clock(1 << 30), 1 << 18),  # always gains: the largest
        (Clock(1 << 30, memory=5000), 1 << 12),
    ],
)
def test_doubled_as_long_as_it_pays(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, clock: Clock, found: int
) -> None:
    monkeypatch.setattr(token_budget, "_seconds", clock.seconds)
    encoded = EncodedShard.of(loaded, ["w4 w5"] * 3)  # four tokens with the special ones
    assert find_token_budget(loaded, encoded) == found
    assert max(clock.tried) <= 2 * found


def test_other_errors_are_not_taken_for_memory(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(token_budget, "_seconds", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        find_token_budget(loaded, EncodedShard.of(loaded, ["w4"]))


def test_a_run_takes_what_the_trial_finds(
    loaded: LoadedModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(45, THREE_LENGTHS)
    monkeypatch.setattr("cone_kernels.runs.shard_runner.find_token_budget", lambda loaded, encoded: 40)
    expected = run(loaded, texts, token_budget=40, shard_size=16)
    found = run(loaded, texts, token_budget="auto", shard_size=16, checkpoint=tmp_path / "run.ckpt")
    assert (found.token_budget, found.sentences, found.batches) == (40, 45, expected.batches)
    assert found.state.fingerprint() == expected.state.fingerprint()
    assert experiments.layers(folder, texts, token_budget="auto", device="cpu").manifest["token_budget"] == 40
    # What is resumed goes on with the budget it had.
    monkeypatch.setattr("cone_kernels.runs.shard_runner.find_token_budget", lambda loaded, encoded: 7)
    again = run(loaded, texts, token_budget="auto", shard_size=16, checkpoint=tmp_path / "run.ckpt", resume=True)
    assert again.token_budget == 40


def test_the_trial_counts_no_sentence(loaded: LoadedModel) -> None:
    texts = sentences(30)
    found = run(loaded, texts, token_budget="auto")
    assert found.state.sentence.count[0].sum() == found.sentences == 30
    assert found.token_budget in [1 << power for power in range(10, 19)]


def test_several_processes_need_a_number(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="token_budget: got 'auto' with shard '0/2'"):
        run(loaded, sentences(3), token_budget="auto", shard="0/2")
