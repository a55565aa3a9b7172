"""Baselines: the architecture with random weights, and the model on tokens in random order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from cone_kernels import load_model
from cone_kernels.cli import main
from cone_kernels.experiments import compare, layers
from cone_kernels.models import baseline as baselines
from cone_kernels.models.baseline import baseline_of
from cone_kernels.models.loaded import LoadedModel
from cone_kernels.models.output import Output
from cone_kernels.models.source import ModelError
from cone_kernels.runs.encoded_shard import EncodedShard
from tests.support.tiny_checkpoints import save_checkpoint

SENTENCES = [f"w{4 + i % 90} w{4 + i * i % 83} w{4 + i * 7 % 71}" + " w9" * (i % 3) for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


def test_random_weights_are_others_of_the_same_architecture(folder: Path) -> None:
    loaded = load_model(folder)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    torch.manual_seed(3)
    made, again = (baseline_of(loaded, "random-weights") for _ in range(2))
    drawn_next = torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == drawn_next
    assert type(made.model) is type(loaded.model)
    assert not made.model.training
    for name, value in made.model.state_dict().items():
        assert value.shape == before[name].shape
        assert value.dtype == before[name].dtype
        assert torch.equal(value, again.model.state_dict()[name])
        assert torch.equal(loaded.model.state_dict()[name], before[name])
    weight = "embeddings.word_embeddings.weight"
    assert not torch.equal(made.model.state_dict()[weight], before[weight])
    # As the architecture draws them before training.
    assert float(made.model.state_dict()[weight].std()) == pytest.approx(loaded.model.config.initializer_range, rel=0.1)
    assert (made.info["baseline"], made.info["weights_sha256"]) == ("random-weights", None)
    assert "baseline" not in loaded.info


def test_shuffled_tokens_are_the_same_tokens_in_sentences_of_the_same_lengths(folder: Path) -> None:
    loaded = load_model(folder)
    plain = EncodedShard.of(loaded, SENTENCES)
    shuffled, again = (EncodedShard.of(baseline_of(loaded, "shuffled-tokens"), SENTENCES) for _ in range(2))
    ids, others = plain.columns["input_ids"], shuffled.columns["input_ids"]
    assert plain.lengths == shuffled.lengths
    assert Counter(ids.tolist()) == Counter(others.tolist())
    assert (others == again.columns["input_ids"]).all()
    special = EncodedShard.of(loaded, SENTENCES, special_tokens=True).special
    assert special is not None
    assert (ids[special == 1] == others[special == 1]).all()
    assert (ids != others)[special == 0].mean() > 0.7
    # Another shard has another order.
    later = EncodedShard.of(baseline_of(loaded, "shuffled-tokens"), SENTENCES, 60)
    assert (later.columns["input_ids"] != others).any()


def test_special_tokens_that_are_asked_for_stay(folder: Path) -> None:
    loaded = load_model(folder)
    plain = EncodedShard.of(loaded, SENTENCES, special_tokens=True)
    shuffled = EncodedShard.of(baseline_of(loaded, "shuffled-tokens"), SENTENCES, special_tokens=True)
    assert plain.special is not None
    assert shuffled.special is not None
    assert (plain.special == shuffled.special).all()
    assert EncodedShard.of(baseline_of(loaded, "shuffled-tokens"), SENTENCES).special is None


def test_an_experiment_on_a_baseline_says_so_and_is_compared(folder: Path, tmp_path: Path) -> None:
    model = layers(folder, SENTENCES)
    for kind in ("random-weights", "shuffled-tokens"):
        found = layers(folder, SENTENCES, baseline=kind)
        assert found.model["baseline"] == found.state.info["model"]["baseline"] == kind
        assert found.summary()[0].startswith("This is a baseline: ")
        assert found.layers[-1].sentence.anisotropy != model.layers[-1].sentence.anisotropy
        assert compare(model.state, found.state).layers[0].sentence.difference == pytest.approx(
            found.layers[0].sentence.anisotropy - model.layers[0].sentence.anisotropy, abs=1e-12
        )
    assert "baseline" not in model.model
    # A model that is in memory already has baselines too.
    loaded = load_model(folder)
    assert layers(loaded, SENTENCES, baseline="random-weights").model["baseline"] == "random-weights"
    (tmp_path / "s.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    arguments = ["layers", "--model", str(folder), "--corpus", str(tmp_path / "s.txt"), "--baseline", "random-weights"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0
    assert "the same architecture with random weights, in place of the model" in " ".join(shown.output.split())


def test_what_cannot_be_made_says_why(folder: Path) -> None:
    loaded = load_model(folder)
    with pytest.raises(ValueError, match="baseline: got 'zero'; it must be one of random-weights, shuffled-tokens"):
        baseline_of(loaded, "zero")

    class Odd(type(loaded.model)):  # type: ignore[misc]
        def __init__(self, config: object) -> None:
            raise TypeError("two arguments")

    loaded.model.__class__ = Odd
    with pytest.raises(ModelError, match="baseline: Odd cannot be made with random weights: two arguments"):
        baseline_of(loaded, "random-weights")


class OneWeight(nn.Module):
    """An architecture of one weight, made of its configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.linear = config, nn.Linear(1, 1)
        for error in config.errors:
            raise error


def loaded_one(*errors: Exception, compiled: bool = False, **attributes: Any) -> LoadedModel:
    model = OneWeight(SimpleNamespace(errors=[])).double()
    model.config.errors = list(errors)
    info = {"name": "one", "compiled": compiled, "weights_sha256": "ab", "output": "as it was"}
    return LoadedModel(model, None, None, (), info, **attributes)


def test_random_weights_are_on_the_model_s_device_and_of_its_type() -> None:
    loaded = loaded_one()
    made = baseline_of(loaded, "random-weights")
    assert {(weight.device, weight.dtype) for weight in made.model.parameters()} == {(loaded.device, torch.float64)}
    assert not any(module.training for module in made.model.modules())
    assert made.model.config is not loaded.model.config


@pytest.mark.parametrize("compiled", [True, False])
def test_random_weights_are_compiled_where_the_model_is(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(baselines, "compile_blocks", seen.append)
    made = baseline_of(loaded_one(compiled=compiled), "random-weights")
    assert seen == [made.model] * compiled
    baseline_of(loaded_one(compiled=compiled), "shuffled-tokens")
    assert len(seen) == compiled


def test_modules_with_weights_of_their_own_give_no_output_of_random_ones() -> None:
    plain = Output(("Transformer", "Pooling"), ("mean",), (), 1)
    dense = Output(("Transformer", "Pooling", "Dense"), ("mean",), (), 1, weights_sha256="cd")
    for output, baseline, wanted in (
        (None, "random-weights", None),
        (plain, "random-weights", plain),
        (dense, "shuffled-tokens", dense),
    ):
        found = baseline_of(loaded_one(output=output), baseline)
        assert (found.output, found.info["output"]) == (wanted, "as it was")
    found = baseline_of(loaded_one(output=dense), "random-weights")
    assert found.output is None
    assert found.info["output"] == {
        "modules": ["Transformer", "Pooling", "Dense"],
        "reason": "modules after the transformer have weights of their own, and those of this baseline are random",
    }


def test_images_have_no_order_of_tokens() -> None:
    of_images = loaded_one(image_processor=object())
    with pytest.raises(ValueError, match="baseline") as refused:
        baseline_of(of_images, "shuffled-tokens")
    assert str(refused.value) == "baseline: got 'shuffled-tokens' for a model of images; it must be random-weights"
    assert baseline_of(of_images, "random-weights").image_processor is of_images.image_processor


@pytest.mark.parametrize(
    ("error", "why"), [(KeyError(), "KeyError"), (ValueError("no such width\nin its configuration"), "no such width")]
)
def test_an_architecture_that_cannot_be_made_says_why_in_a_line(error: Exception, why: str) -> None:
    with pytest.raises(ModelError) as refused:
        baseline_of(loaded_one(error), "random-weights")
    assert str(refused.value) == f"baseline: OneWeight cannot be made with random weights: {why}"
