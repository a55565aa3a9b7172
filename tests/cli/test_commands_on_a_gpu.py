"""Every command that runs a model with --device cuda, on the stand-in: the numbers of --device cpu."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from cone_kernels.cli import main
from cone_kernels.runs import token_budget
from tests.support.encoding_folders import dense, save_encoder
from tests.support.stand_in_gpu import stand_in_gpu
from tests.support.tiny_checkpoints import WORDS, word_tokenizer
from tests.support.tiny_models import HIDDEN, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")

# Two shards of two batches each: on the GPU their sentences are padded, on the CPU a batch has one length. Few of
# them, and models of two layers: the stand-in takes its time for every operation, however many tokens it is of.
SAME = ("--token-budget", "150", "--shard-size", "30", "--threads", "1")
# What tells of the run and not of the model.
OF_THE_RUN = {"manifest", "vectors_file", "file", "seconds", "device", "device_name"}
# `make test-slow` has those that do the work of another one with less of it.
COMMANDS = [
    pytest.param(["layers"], marks=pytest.mark.slow),
    ["layers", "--second-moment", "--rogue", "3"],
    ["layers", "--pooling", "model"],
    pytest.param(["pooling"], marks=pytest.mark.slow),
    ["pooling", "--pooling", "all"],
    ["axis", "--k", "2", "--top", "2", "--tokens", "3"],
    pytest.param(["center", "--method", "mean"], marks=pytest.mark.slow),
    pytest.param(["center", "--method", "all-but-the-top", "--components", "2"], marks=pytest.mark.slow),
    ["center", "--method", "whitening", "--shrinkage", "0.2"],
    ["rotation", "--k", "2"],
    ["tokens"],
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("models")
    for name, seed in (("plain", 0), ("model-1", 2)):
        tiny_model("bert", seed=seed, num_hidden_layers=2).save_pretrained(base / name)
        word_tokenizer().save_pretrained(base / name)
    then = [dense(HIDDEN, HIDDEN), ("Normalize", {})]
    # Not "cls": of embeddings that are all alike, what the layers say of their errors is rounding.
    return [save_encoder(base / "model-0", base / "plain", "max", then=then, dim=HIDDEN), base / "model-1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n".join(" ".join(WORDS[(i * 7 + j * 3) % 90] for j in range(1 + i * 5 % 9)) for i in range(60)))
    return file


@pytest.fixture(scope="module")
def saved(folders: list[Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The states of both models on the stand-in; no test changes them."""
    threads = torch.get_num_threads()
    states = [tmp_path_factory.mktemp("saved") / folder.name for folder in folders]
    with stand_in_gpu():
        for folder, state in zip(folders, states, strict=True):
            save_state(folder, corpus, "cuda", state)
    yield states
    torch.set_num_threads(threads)


@pytest.fixture
def gpu() -> Iterator[None]:
    with stand_in_gpu():
        yield


def cone(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def save_state(folder: Path, corpus: Path, device: str, state: Path) -> None:
    save = ("--second-moment", "--save-state", state)
    cone("layers", "--model", folder, "--corpus", corpus, *SAME, "--device", device, *save)


def without_the_run(value: Any) -> Any:
    """A result without what tells of the run."""
    if isinstance(value, dict):
        return {name: without_the_run(one) for name, one in value.items() if name not in OF_THE_RUN}
    return [without_the_run(one) for one in value] if isinstance(value, list) else value


# Correlations of ranks along drawn directions: of two words that all but tie either may come first.
OF_RANKS = {"random": 1e-3}


def about(value: Any, absolute: float = 1e-6) -> Any:
    """A result whose numbers may differ by float32's rounding: torch has other attention for tensors of a GPU."""
    if isinstance(value, dict):
        return {name: about(one, OF_RANKS.get(name, absolute)) for name, one in value.items()}
    if isinstance(value, list):
        return [about(one, absolute) for one in value]
    return pytest.approx(value, rel=1e-5, abs=absolute) if isinstance(value, float) else value


def result(command: list[str], device: str, folders: list[Path], corpus: Path) -> Any:
    models = [part for folder in folders for part in ("--model", folder)]
    return without_the_run(
        json.loads(cone(*command, *models, "--corpus", corpus, *SAME, "--device", device, "--json", "-").stdout)
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_numbers_are_those_of_the_cpu(command: list[str], folders: list[Path], corpus: Path) -> None:
    models = folders if command[0] == "rotation" else folders[:1]
    wanted = result(command, "cpu", models, corpus)
    with stand_in_gpu() as work:
        got = result(command, "cuda", models, corpus)
    assert work.launches["pool_moments"] > 1
    assert got == about(wanted)


def test_16_bits_and_batches_as_large_as_pays(
    folders: list[Path], corpus: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_budget, "_LARGEST", 2048)  # a CPU takes long for what a GPU would try
    options = ("--dtype", "bfloat16", "--token-budget", "auto", "--device", "cuda")
    found = json.loads(cone("layers", "--model", folders[0], "--corpus", corpus, *options, "--json", "-").stdout)
    wanted = result(["layers"], "cpu", folders[:1], corpus)
    for got, one in zip(found["layers"], wanted["layers"], strict=True):
        assert got["sentence"]["anisotropy"] == pytest.approx(one["sentence"]["anisotropy"], abs=0.02)


def test_all_experiments_in_one_run(folders: list[Path], corpus: Path, tmp_path: Path) -> None:
    models = [part for folder in folders for part in ("--model", folder)]
    with stand_in_gpu():
        options = (*SAME, "--pooling", "all", "--device", "cuda")
        cone("run", *models, "--corpus", corpus, *options, "--out", tmp_path / "gpu")
    cone("run", *models, "--corpus", corpus, *SAME, "--pooling", "all", "--device", "cpu", "--out", tmp_path / "cpu")
    names = sorted(file.name for file in (tmp_path / "cpu").iterdir())
    assert sorted(file.name for file in (tmp_path / "gpu").iterdir()) == names
    assert "report.html" in names
    got, wanted = (json.loads((tmp_path / device / "results.json").read_text()) for device in ("gpu", "cpu"))
    assert list(wanted["models"][0]) == ["layers", "pooling", "axis"]
    assert without_the_run(got) == about(without_the_run(wanted))


def test_a_saved_state_is_compared_and_fitted_anywhere(
    folders: list[Path], corpus: Path, saved: list[Path], tmp_path: Path
) -> None:
    on_the_cpu = [tmp_path / folder.name for folder in folders]
    for folder, state in zip(folders, on_the_cpu, strict=True):
        save_state(folder, corpus, "cpu", state)
    found = []
    for states in (saved, on_the_cpu):
        fit = ("center", "--state", states[0], "--method", "whitening", "--shrinkage", "0.2")
        compared, fitted = (json.loads(cone(*one, "--json", "-").stdout) for one in (("compare", *states), fit))
        found.append([compared["layers"], fitted["before"], fitted["after"]])
    assert found[0] == about(found[1])


def test_a_run_goes_on_from_its_checkpoint(
    folders: list[Path], corpus: Path, saved: list[Path], tmp_path: Path, gpu: None
) -> None:
    run = ("layers", "--second-moment", "--model", folders[0], *SAME, "--device", "cuda", "--corpus", corpus)
    checkpoint = ("--checkpoint", tmp_path / "checkpoint", "--checkpoint-every", "0")
    cone(*run, *checkpoint)
    cone(*run, *checkpoint, "--resume", "--save-state", tmp_path / "resumed")
    assert (tmp_path / "resumed").read_bytes() == saved[0].read_bytes()
