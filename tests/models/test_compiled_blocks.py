"""Blocks under torch.compile: the same layers to rounding, compiled code really running, hooks still firing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from cone_kernels.models import ModelError, load_model
from cone_kernels.models.compiled_blocks import compile_blocks
from cone_kernels.probe.calibration import calibrating
from cone_kernels.runs.runner import run
from tests.support.tiny_checkpoints import save_checkpoint, sentences
from tests.support.tiny_models import LAYERS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_run_compiled_is_the_run(tmp_path: Path, architecture: str) -> None:
    save_checkpoint(tmp_path, architecture)
    texts = sentences(60)
    expected = run(load_model(tmp_path, device="cpu"), texts)
    torch._dynamo.reset()
    counters.clear()
    loaded = load_model(tmp_path, device="cpu", torch_compile=True)
    found = run(loaded, texts)
    assert loaded.info["compiled"]
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["unimplemented"].get("Dynamo recompile limit exceeded")
    for level in ("sentence", "token"):
        got, wanted = getattr(found.state, level), getattr(expected.state, level)
        assert torch.equal(got.count, wanted.count)
        torch.testing.assert_close(got.unit_sum, wanted.unit_sum, rtol=1e-5, atol=1e-5)
    assert run(loaded, texts).state.fingerprint() == found.state.fingerprint()


def test_every_block_is_compiled_once_and_its_hooks_fire() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4)]) for _ in range(2))
            self.inner = nn.Sequential(nn.Linear(4, 4))
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(LAYERS))

    model = Model()
    assert compile_blocks(model) == 2 + LAYERS
    seen = []
    model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    out = model.layers[0](torch.ones(2, 4))
    assert seen[0] is out


def test_layers_are_looked_for_in_blocks_as_they_were_written(tmp_path: Path) -> None:
    """Else the hooks of that one forward, within the blocks, would become part of the compiled code."""
    save_checkpoint(tmp_path)
    loaded = load_model(tmp_path, device="cpu", torch_compile=True)
    ran: list[tuple[bool, bool]] = []
    for block in loaded.model.encoder.layer:  # type: ignore[union-attr]
        compiled = block.forward
        block.register_forward_pre_hook(
            lambda module, args, compiled=compiled: ran.append((calibrating.get(), module.forward is compiled))
        )
    run(loaded, ["w4 w5"])
    assert sorted(ran) == [(False, True)] * LAYERS + [(True, False)] * LAYERS


def test_a_model_without_blocks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path)
    monkeypatch.setattr("cone_kernels.models.loading.compile_blocks", lambda model: 0)
    with pytest.raises(ModelError, match="torch_compile: BertModel has no list of blocks to compile"):
        load_model(tmp_path, device="cpu", torch_compile=True)
    assert compile_blocks(nn.Linear(2, 2)) == 0


def test_a_run_compiled_is_another_run(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model")
    checkpoint, texts = tmp_path / "run.ckpt", sentences(5)
    run(load_model(tmp_path / "model", device="cpu"), texts, checkpoint=checkpoint)
    loaded = load_model(tmp_path / "model", device="cpu", torch_compile=True)
    with pytest.raises(ValueError, match=r"model.compiled \(False and True\)"):
        run(loaded, texts, checkpoint=checkpoint, resume=True)


def test_attention_is_what_was_asked_for(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    assert load_model(tmp_path, device="cpu", attention="eager").info["attention"] == "eager"
    with pytest.raises(ModelError, match="none of the kind"):
        load_model(tmp_path, device="cpu", attention="none of the kind")
