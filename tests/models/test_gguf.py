"""GGUF files by path, which transformers reads with a package that the tests do without: a stand-in is in its place."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cone_kernels import experiments
from cone_kernels.models import ModelError, load_model
from cone_kernels.models import transformer as module
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

TEXTS = [" ".join(WORDS[(i * 7 + j) % 90] for j in range(1 + i % 5)) for i in range(30)]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each class of transformers that was asked for a GGUF file, and the file; it gives a checkpoint in its place."""
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, "qwen2")
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
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda package: found)
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
    assert result.model["architecture"] == "Qwen2Model"
    assert result.model["weights_sha256"] == hashlib.sha256(b"GGUF").hexdigest()
    wanted = experiments.layers(tmp_path / "checkpoint", TEXTS, device="cpu", threads=1)
    assert torch.equal(result.state.sentence.unit_sum, wanted.state.sentence.unit_sum)


def test_a_folder_with_other_weights_beside_is_read_as_before(asked: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "checkpoint" / "also.gguf").write_bytes(b"")
    assert type(load_model(tmp_path / "checkpoint", "cpu").model).__name__ == "Qwen2Model"
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
