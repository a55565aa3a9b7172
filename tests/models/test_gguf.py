"""GGUF files by path and by hub id. What transformers reads them with is not installed; a stand-in is in its place."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from click.testing import CliRunner

from cone_kernels import experiments
from cone_kernels.cli import main
from cone_kernels.models import ModelError, load_model
from cone_kernels.models import transformer as module
from cone_kernels.state import ConeState
from tests.support.tiny_checkpoints import WORDS, save_checkpoint, word_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = [" ".join(WORDS[(i * 7 + j) % 90] for j in range(1 + i % 5)) for i in range(30)]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each class of transformers that was asked for a GGUF file, and the file; it gives a checkpoint in its place."""
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint)
    calls: list[tuple[str, str]] = []

    def stand_in(name: str) -> None:
        kind = getattr(transformers, name)
        real = kind.from_pretrained

        def from_pretrained(location: str, *args: Any, gguf_file: str | None = None, **options: Any) -> Any:
            if gguf_file is not None:
                calls.append((name, str(Path(location, gguf_file))))
                location = str(checkpoint)
            return real(location, *args, **options)

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)

    for name in ("AutoConfig", "AutoTokenizer", "AutoModel"):
        stand_in(name)
    real = importlib.util.find_spec
    needed = {package: real("json") for package in ("gguf", "accelerate")}
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name, *of: needed.get(name) or real(name, *of))
    return calls


@pytest.mark.parametrize("by_folder", [False, True])
def test_config_tokenizer_and_weights_are_asked_of_the_file(
    by_folder: bool, asked: list[tuple[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    file = folder / "tiny-Q8_0.gguf"
    file.write_bytes(b"GGUF")
    result = experiments.layers(folder if by_folder else file, TEXTS, device="cpu", threads=1)
    assert asked == [(name, str(file)) for name in ("AutoConfig", "AutoTokenizer", "AutoModel")]
    assert result.model["architecture"] == "BertModel"
    assert result.model["weights_sha256"] == hashlib.sha256(b"GGUF").hexdigest()
    wanted = experiments.layers(tmp_path / "checkpoint", TEXTS, device="cpu", threads=1)
    assert torch.equal(result.state.sentence.unit_sum, wanted.state.sentence.unit_sum)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a repository with two files in the cache of the hub's client, which has no network."""
    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--tiny-GGUF" / "snapshots" / COMMIT
    (snapshot / "more").mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    (snapshot / "tiny-Q4_0.gguf").write_bytes(b"GGUF of four bits")
    (snapshot / "more" / "tiny-Q8_0.gguf").write_bytes(b"GGUF of eight bits")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("name", ["tiny-Q4_0.gguf", "more/tiny-Q8_0.gguf"])
def test_a_file_of_a_hub_id(name: str, repository: Path, asked: list[tuple[str, str]], tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    options: dict[str, Any] = {"gguf_file": name, "threads": 1, "device": "cpu"}
    result = experiments.layers("someone/tiny-GGUF", TEXTS, save_state=state, **options)
    assert asked == [(kind, str(repository / name)) for kind in ("AutoConfig", "AutoTokenizer", "AutoModel")]
    about = {key: result.model[key] for key in ("name", "revision", "gguf_file", "weights_sha256")}
    sha256 = hashlib.sha256((repository / name).read_bytes()).hexdigest()
    file = Path(name).name
    assert about == {
        "name": "someone/tiny-GGUF", "revision": COMMIT, "gguf_file": file, "weights_sha256": sha256,
    }  # fmt: skip
    assert ConeState.load(state).info["model"]["gguf_file"] == file
    wanted = experiments.layers(tmp_path / "checkpoint", TEXTS, device="cpu", threads=1)
    assert torch.equal(result.state.sentence.unit_sum, wanted.state.sentence.unit_sum)
    assert "gguf_file" not in wanted.model


def test_commands_take_the_file_of_a_hub_id(repository: Path, asked: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    given = ["--model", "someone/tiny-GGUF", "--gguf-file", "tiny-Q4_0.gguf", "--device", "cpu", "--threads", "1"]
    given += ["--corpus", str(tmp_path / "texts.txt")]
    done = CliRunner().invoke(main, ["layers", *given, "--json", str(tmp_path / "layers.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "layers.json").read_text())["model"]["gguf_file"] == "tiny-Q4_0.gguf"
    assert {file for _, file in asked} == {str(repository / "tiny-Q4_0.gguf")}


def test_one_file_of_a_folder_with_several(repository: Path, asked: list[tuple[str, str]]) -> None:
    (repository / "tiny-Q2_K.gguf").write_bytes(b"GGUF of two bits")
    with pytest.raises(
        ModelError, match=r"give one of them: tiny-Q2_K\.gguf, tiny-Q4_0\.gguf, by its path or as gguf_file"
    ):
        load_model(repository)
    loaded = load_model(repository, "cpu", gguf_file="tiny-Q2_K.gguf")
    assert loaded.info["weights_sha256"] == hashlib.sha256(b"GGUF of two bits").hexdigest()
    assert loaded.info["revision"] is None
    assert {file for _, file in asked} == {str(repository / "tiny-Q2_K.gguf")}


def test_what_no_gguf_file_goes_with(repository: Path, asked: list[tuple[str, str]], tmp_path: Path) -> None:
    folder, file = tmp_path / "checkpoint", repository / "tiny-Q4_0.gguf"
    for model, name, said in (
        (
            "someone/tiny-GGUF",
            "none.gguf",
            "gguf_file: got 'none.gguf'; there is no such file in the hub id 'someone/ti",
        ),
        (
            "someone/other",
            "none.gguf",
            "gguf_file: got 'none.gguf'; there is no such file in the hub id 'someone/other'",
        ),
        ("someone/tiny-GGUF", "tiny.bin", "gguf_file: got 'tiny.bin'; it must end in .gguf"),
        (folder, "none.gguf", "gguf_file: got 'none.gguf'; there is no such file in the folder '.*checkpoint'$"),
        (file, "tiny-Q4_0.gguf", "gguf_file: got .* with the file .*; it must be left out, for the file is the model"),
        (
            "someone/tiny-GGUF",
            None,
            r"cannot be loaded: .*HF_HUB_OFFLINE is set.; of GGUF files one must be named: gguf_file .--gguf-file",
        ),
    ):
        with pytest.raises(ModelError, match=said):
            load_model(model, "cpu", gguf_file=name)
    live = transformers.AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"gguf_file: got 'x\.gguf' with a model that is in memory already"):
        experiments.layers(live, TEXTS, tokenizer=word_tokenizer(), gguf_file="x.gguf")


def test_a_folder_with_other_weights_beside_is_read_as_before(asked: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "checkpoint" / "also.gguf").write_bytes(b"")
    assert type(load_model(tmp_path / "checkpoint", "cpu").model).__name__ == "BertModel"
    assert asked == []


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_what_is_to_be_installed_is_said_in_one_line(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda package: None if package == missing else found)
    said = rf"tiny.gguf is a GGUF file; it needs the package {missing}, which is not installed: pip install {missing}$"
    with pytest.raises(ModelError, match=said):
        load_model(file)


def test_a_file_of_onnx_is_refused_with_the_way_round(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"ONNX weights, which this tool does not run; .* `cone vectors`, .* `cone rows`"
    ):
        load_model(tmp_path / "model.onnx")
