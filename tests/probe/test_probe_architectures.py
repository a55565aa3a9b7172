"""The probe reads what Hugging Face's hidden_states tuple holds, bit for bit, whatever the architecture."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from cone_kernels.probe.cone_probe import ConeProbe
from tests.support.recording_probe import RecordingProbe, assert_statistics_of
from tests.support.tiny_models import ARCHITECTURES, LAYERS, ToyModel, tiny_batch, tiny_model

PROBED = sorted(set(ARCHITECTURES) - {"squeezebert"})
# Where the last entry of hidden_states follows a norm after the last block, that norm's name.
FINAL_NORM = {
    "bloom": "ln_f",
    "eurobert": "norm",
    "falcon": "ln_f",
    "gemma": "norm",
    "gemma2": "norm",
    "gemma3": "norm",
    "gpt-neo": "ln_f",
    "gpt-neox": "final_layer_norm",
    "gpt2": "ln_f",
    "gptj": "ln_f",
    "llama": "norm",
    "mamba": "norm_f",
    "mistral": "norm",
    "mixtral": "norm",
    "modernbert": "final_norm",
    "mt5-encoder": "encoder.final_layer_norm",
    "olmo2": "norm",
    "opt": "decoder.final_layer_norm",
    "phi": "final_layernorm",
    "phi3": "norm",
    "qwen2": "norm",
    "qwen3": "norm",
    "roberta-prelayernorm": "LayerNorm",
    "stablelm": "norm",
    "t5": "encoder.final_layer_norm",
    "t5-encoder": "encoder.final_layer_norm",
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models() -> Callable[[str], nn.Module]:
    """A model of each architecture, made once; a probe that is gone has changed nothing of it."""
    return functools.cache(tiny_model)


@pytest.fixture
def model(models: Callable[[str], nn.Module], architecture: str) -> Iterator[nn.Module]:
    """That of the case's architecture; a test may put it into training mode."""
    yield models(architecture)
    models(architecture).eval()


def batch_for(model: nn.Module, padding: str, seed: int = 1) -> dict[str, Tensor]:
    batch = tiny_batch(padding, seed=seed)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    return batch


def tuple_of(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    states: tuple[Tensor, ...] = output.get("hidden_states") or output["encoder_hidden_states"]
    return states


@pytest.fixture(scope="module")
def probes(models: Callable[[str], nn.Module]) -> Callable[[str, str], RecordingProbe]:
    """What a probe has seen of an architecture's model with padding on one side, in the batches of two seeds."""

    @functools.cache
    def probe_of(architecture: str, padding: str) -> RecordingProbe:
        model = models(architecture)
        with RecordingProbe(model) as probe, torch.no_grad():
            for seed in (1, 2):
                model(**batch_for(model, padding, seed))
        return probe

    return probe_of


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("architecture", PROBED)
def test_layers_are_those_of_the_tuple(
    model: nn.Module, probes: Callable[[str, str], RecordingProbe], architecture: str, padding: str
) -> None:
    probe = probes(architecture, padding)
    batches = [batch_for(model, padding, seed) for seed in (1, 2)]
    wanted = [tuple_of(model, batch) for batch in batches]
    assert sorted(probe.added) == list(range(len(wanted[0])))
    assert len(wanted[0]) > LAYERS
    for layer, added in probe.added.items():
        for got, states in zip(added, wanted, strict=True):
            assert torch.equal(got, states[layer])
    masks = [batch["attention_mask"] for batch in batches]
    assert_statistics_of(probe.state, list(zip(wanted, masks, strict=True)))


@pytest.mark.parametrize("architecture", PROBED)
def test_layers_in_training_follow_dropout(model: nn.Module) -> None:
    # Calibration runs in eval mode, where dropout returns its input; the layers must be the ones after it.
    model.train()
    batch = batch_for(model, "right")
    torch.manual_seed(5)
    with RecordingProbe(model) as probe:
        output = model(**batch)[0]
    torch.manual_seed(5)
    assert torch.equal(output, model(**batch)[0])
    torch.manual_seed(5)
    for layer, state in enumerate(tuple_of(model, batch)):
        assert torch.equal(probe.added[layer][0], state)


@pytest.mark.parametrize("architecture", PROBED)
def test_final_norm_is_told(probes: Callable[[str, str], RecordingProbe], architecture: str) -> None:
    probe = probes(architecture, "right")
    norm = FINAL_NORM.get(architecture)
    assert probe.final_norm is (norm is not None)
    assert probe.state.info["final_norm"] is probe.final_norm
    if norm is not None:
        assert probe.layer_names[-1] == f"{norm} (final norm applied)"
    else:
        assert "final norm" not in probe.layer_names[-1]


@pytest.mark.parametrize("architecture", PROBED)
def test_before_final_norm(model: nn.Module, architecture: str) -> None:
    batch = batch_for(model, "right")
    with RecordingProbe(model, before_final_norm=True) as probe, torch.no_grad():
        model(**batch)
    assert probe.final_norm is False
    states = tuple_of(model, batch)
    last = len(states) - 1
    for layer in range(last):
        assert torch.equal(probe.added[layer][0], states[layer])
    if architecture in FINAL_NORM:
        assert not torch.equal(probe.added[last][0], states[last])
        with torch.no_grad():
            normed = model.get_submodule(FINAL_NORM[architecture])(probe.added[last][0])
        assert torch.equal(normed, states[last])
    else:
        assert torch.equal(probe.added[last][0], states[last])


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("bert", ("embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2")),
        ("albert", ("embeddings", *["encoder.albert_layer_groups.0"] * 3)),
        ("gpt2", ("embeddings", "h.0", "h.1", "ln_f (final norm applied)")),
        ("llama", ("embeddings", "layers.0", "layers.1", "norm (final norm applied)")),
        ("mamba", ("layers.0", "layers.1", "layers.2", "norm_f (final norm applied)")),
        ("bart", ("embeddings", "encoder.layers.0", "encoder.layers.1", "encoder.layers.2")),
        (
            "xlm",
            (
                "embeddings",
                "input of attentions.1",
                "input of attentions.2",
                "output of the model",
            ),
        ),
    ],
)
def test_layer_names(probes: Callable[[str, str], RecordingProbe], architecture: str, names: tuple[str, ...]) -> None:
    assert probes(architecture, "right").layer_names == names


@pytest.mark.parametrize(
    ("architecture", "head", "extra"),
    [
        ("llama", "LlamaForCausalLM", {}),
        ("bert", "BertForSequenceClassification", {}),
        ("roberta", "RobertaForMaskedLM", {}),
        ("opt", "OPTForCausalLM", {}),
        ("t5", "T5ForConditionalGeneration", {"labels": True}),
    ],
)
def test_models_with_a_head(architecture: str, head: str, extra: dict[str, bool]) -> None:
    model = tiny_model(architecture, model_class=head)
    batch = tiny_batch("left")
    if extra:
        batch["labels"] = batch["input_ids"][:, :4].contiguous()
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**batch)
    states = tuple_of(model, batch)
    for layer, state in enumerate(states):
        assert torch.equal(probe.added[layer][0], state)
    assert_statistics_of(probe.state, [(states, batch["attention_mask"])])


def test_a_layer_no_submodule_returns_is_refused() -> None:
    # SqueezeBERT permutes (B, C, T) to (B, T, C) outside any submodule.
    model = tiny_model("squeezebert")
    with pytest.raises(RuntimeError, match="layer 1 of the hidden_states of SqueezeBertModel"), ConeProbe(model):
        model(**tiny_batch())


def test_layers_of_different_width_are_refused_by_name() -> None:
    model = tiny_model("opt", word_embed_proj_dim=16)
    with pytest.raises(RuntimeError, match=r"differ in width \(0: 32, 1: 32, 2: 32, 3: 16\)"), ConeProbe(model):
        model(**tiny_batch())


@pytest.mark.parametrize("architecture", ["longformer", "led"])
@pytest.mark.parametrize("tokens", [16, 17, 31])
def test_what_a_model_pads_inside_is_left_out_at_any_length(model: nn.Module, tokens: int) -> None:
    batch = tiny_batch("right", tokens=tokens)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    with RecordingProbe(model, poolings=["last", "max"]) as probe, torch.no_grad():
        model(**batch)
    states = tuple_of(model, batch)
    assert states[0].shape[1] == tokens
    for layer, state in enumerate(states):
        assert torch.equal(probe.added[layer][0], state)
    assert_statistics_of(probe.state, [(states, batch["attention_mask"])])


def test_padding_of_the_models_own_in_another_place_is_refused() -> None:
    class PadsBefore(ToyModel):
        def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
            return nn.functional.pad(hidden, (0, 0, 3, 0))

        def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
            return hidden[:, 3:]

    model = PadsBefore()
    refused = "layer 1 of the hidden_states of PadsBefore cannot be probed"
    with pytest.raises(RuntimeError, match=refused), ConeProbe(model), torch.no_grad():
        model(**tiny_batch())
