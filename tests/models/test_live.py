"""Models in memory: the same numbers as those of their folders, and nothing of them is changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from torch import nn

from cone_kernels import experiments
from cone_kernels.models import ModelError, load_model
from cone_kernels.models.live import live_model
from tests.support.encoding_folders import dense, save_tiny_encoder
from tests.support.tiny_checkpoints import WORDS, save_checkpoint, word_tokenizer
from tests.support.tiny_models import tiny_model

TEXTS = [" ".join(WORDS[(i * 7 + j * 3) % 90] for j in range(1 + i % 3 * 4)) for i in range(40)]  # three lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"prompts": {"say": "w80 w81 "}, "default_prompt_name": "say", "truncate_dim": 12}
    modules = [dense(32, 16), ("LayerNorm", {"dimension": 16}), ("Normalize", {})]
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny", then=modules, settings=settings)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def numbers(result: Any) -> Any:
    """A result without what tells of files and times."""
    found = result.to_dict()
    for name in ("manifest", "model", "corpus"):
        del found[name]
    if found["output"]:
        found["output"].pop("weights_sha256", None)
    return found


def test_a_sentence_transformer_gives_the_numbers_of_its_folder(folder: Path, encoder: Any) -> None:
    options: dict[str, Any] = {"second_moment": True}
    assert numbers(experiments.layers(encoder, TEXTS, **options)) == numbers(
        experiments.layers(folder, TEXTS, device="cpu", **options)
    )
    live = live_model(encoder)
    assert (live.prompt, live.max_length) == ("w80 w81 ", load_model(folder).max_length)
    assert {key: value for key, value in live.info["output"].items() if key != "weights_sha256"} == {
        "modules": ["Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"],
        "pooling": "cls",
        "dim": 12,
    }
    other = {"prompt": "", "truncate_dim": 5}
    assert numbers(experiments.layers(encoder, TEXTS, **other)) == numbers(
        experiments.layers(folder, TEXTS, device="cpu", **other)
    )


def test_a_module_of_one_s_own_is_in_the_output(encoder: Any) -> None:
    from sentence_transformers import SentenceTransformer

    class Doubled(nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features | {"sentence_embedding": 2 * features["sentence_embedding"]}

    found = experiments.layers(SentenceTransformer(modules=[*encoder, Doubled()], device="cpu"), TEXTS)
    assert found.output is not None
    assert found.output.sentence is not None
    assert found.output.sentence.mean_norm == pytest.approx(2, abs=1e-6)
    assert found.output.about["modules"][-1] == "Doubled"


def test_a_module_that_asks_for_more_than_vectors_leaves_the_output_unmeasured(encoder: Any) -> None:
    from sentence_transformers import SentenceTransformer

    class OfTokens(nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features | {"sentence_embedding": features["token_embeddings"].sum(1)}

    found = experiments.layers(SentenceTransformer(modules=[*encoder, OfTokens()], device="cpu"), TEXTS)
    assert found.output is not None
    assert "its module OfTokens does not map sentence vectors alone (KeyError" in found.output.about["reason"]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_of_transformers_is_measured_and_left_as_it_was(tmp_path: Path, training: bool) -> None:
    model = save_checkpoint(tmp_path)
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = experiments.layers(model, TEXTS, tokenizer=word_tokenizer())
    assert numbers(found) == numbers(experiments.layers(tmp_path, TEXTS, device="cpu"))
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # transformers leaves hooks of its own where hidden states were once asked for.
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert not [hook for hook in hooks if "cone_kernels" in hook.__module__]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ModelError, "tokenizer: got none; it must be given with a model that is in memory already"),
        (
            {"tokenizer": word_tokenizer(), "device": "cpu"},
            ValueError,
            "device: got 'cpu' with a model that is in memory",
        ),
        (
            {"tokenizer": word_tokenizer(), "prompt_name": "say"},
            ModelError,
            "prompt_name: got 'say'; it must be one of",
        ),
        ({"tokenizer": word_tokenizer(), "truncate_dim": 3}, ModelError, "truncate_dim: got 3; it must be None"),
    ],
)
def test_what_does_not_go_with_a_model_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        experiments.layers(save_checkpoint(tmp_path), TEXTS, **options)


def test_models_of_other_weights_are_told_apart(encoder: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    other = copy.deepcopy(encoder)
    other[2].linear.weight.data *= -3
    turned = copy.deepcopy(encoder)
    turned[0].auto_model.embeddings.word_embeddings.weight.data *= 1.1
    first = experiments.layers(encoder, TEXTS)
    assert first.state.merge(experiments.layers(copy.deepcopy(encoder), TEXTS).state).fingerprint()
    for model in (other, turned):
        assert isinstance(model, SentenceTransformer)
        with pytest.raises(ValueError, match="info differ in model"):
            first.state.merge(experiments.layers(model, TEXTS).state)


def test_other_models_of_sentence_transformers_are_refused(folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    plain = str(folder.with_name("tiny-plain"))
    with pytest.raises(TypeError, match="model: got CrossEncoder; it must be a folder"):
        experiments.layers(CrossEncoder(plain, num_labels=1), TEXTS)


def test_settings_that_change_tokens_leave_the_output_unmeasured(encoder: Any) -> None:
    model = copy.deepcopy(encoder)
    model[0].processing_kwargs = {"text": {"max_length": 4}}
    found = experiments.layers(model, TEXTS)
    assert found.output is not None
    assert "it sets processing_kwargs.text" in found.output.about["reason"]


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartModel"])
def test_of_an_encoder_decoder_in_memory_the_encoder_is_taken(tmp_path: Path, name: str) -> None:
    whole = save_checkpoint(tmp_path, "t5" if name.startswith("T5") else "bart", model_class=name)
    found = experiments.layers(whole, TEXTS, tokenizer=word_tokenizer())
    of_folder = experiments.layers(tmp_path, TEXTS, device="cpu")
    for row, wanted in zip(found.layers, of_folder.layers, strict=True):
        assert row.sentence.anisotropy == pytest.approx(wanted.sentence.anisotropy, abs=1e-6)


def test_other_things_are_refused(folder: Path, encoder: Any) -> None:
    with pytest.raises(TypeError, match="model: got Linear; it must be a folder, a hub id, what load_model returned"):
        experiments.layers(nn.Linear(2, 2), TEXTS)
    with pytest.raises(ModelError, match="tokenizer: got one with a SentenceTransformer; it must be None"):
        experiments.layers(encoder, TEXTS, tokenizer=word_tokenizer())
    with pytest.raises(ValueError, match=r"tokenizer: got .* with a folder or a hub id, which has its own"):
        experiments.layers(folder, TEXTS, tokenizer=word_tokenizer())
    with pytest.raises(TypeError, match="model: got SentenceTransformer with workers; it must be a path or an id"):
        experiments.layers(encoder, TEXTS, workers=2)


def test_a_data_set_of_hugging_face_is_a_corpus(folder: Path) -> None:
    rows = {"id": list(range(len(TEXTS))), "premise": TEXTS, "hypothesis": [text[::-1] for text in TEXTS]}
    data = datasets.Dataset.from_dict(rows)
    wanted = numbers(experiments.layers(folder, TEXTS))
    assert numbers(experiments.layers(folder, data, field="premise")) == wanted
    assert numbers(experiments.layers(folder, data.to_iterable_dataset(), field=["premise"])) == wanted
    both = experiments.layers(folder, data)
    assert list(both.corpus["fields"]) == ["premise", "hypothesis"]
    assert experiments.axis(folder, data.to_iterable_dataset(), field=["premise"]).sentences == len(TEXTS)
    lost = experiments.layers(folder, [{"text": "w5"}, {"text": 3}, {"id": 1}, {"text": "w6 w7"}])
    assert lost.corpus["dropped"]["missing_field"] == 2
    assert lost.corpus["sentences"] == 2


def test_an_adapter_is_loaded_with_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    plain = save_checkpoint(base)
    config = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)
    tuned = peft.get_peft_model(plain, config)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(adapter)
    loaded = load_model(adapter, "cpu")
    ids = torch.tensor([[2, 4, 5, 3]])
    with torch.inference_mode():
        wanted = tuned.eval()(input_ids=ids).last_hidden_state
        assert torch.allclose(loaded.model(input_ids=ids).last_hidden_state, wanted, atol=1e-6)
        assert not torch.allclose(load_model(base, "cpu").model(input_ids=ids)[0], wanted, atol=1e-3)
    assert loaded.tokenizer("w5")["input_ids"] == [2, 5, 3]
    hashes = {load_model(folder, "cpu").info["weights_sha256"] for folder in (base, adapter)}
    assert len(hashes) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match="is an adapter; it needs the package peft, which is not installed: pip install peft"
    ):
        load_model(adapter, "cpu")


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_of_a_model_of_images_and_texts_the_tower_of_texts_is_taken(tmp_path: Path, family: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = {**sizes, "vocab_size": 100, "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3}
    config = getattr(transformers, f"{family}Config")(
        text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}
    )
    whole = getattr(transformers, f"{family}Model")(config).eval()
    whole.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    found = experiments.layers(tmp_path, TEXTS, device="cpu")
    assert found.model["architecture"] == f"{family}TextModel"
    hidden = []
    with torch.inference_mode():
        for words in TEXTS:
            inputs = word_tokenizer()(words, return_tensors="pt")
            given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            states = whole.text_model(**given, output_hidden_states=True).hidden_states
            hidden.append(torch.stack([state.mean(1)[0] for state in states[:-1]]))
    unit = nn.functional.normalize(torch.stack(hidden, 1).double(), dim=-1)  # (L - 1, n, d)
    n = unit.shape[1]
    wanted = (unit.sum(1).square().sum(-1) - n) / (n * (n - 1))
    got = [row.sentence.anisotropy for row in found.layers[:-1]]
    assert got == pytest.approx(wanted.tolist(), abs=1e-6)


def test_another_models_tokenizer_is_refused() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=1000, **sizes))
    with pytest.raises(ModelError, match=r"of BertModel knows 100 tokens of a vocabulary of 1,000"):
        live_model(model, tokenizer=word_tokenizer())


class Packed(nn.Module):
    """Keeps its weights as torch's quantized modules do: a tuple in its state dict, and their dtype beside it."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.quantize_per_tensor(weight, 0.5, 0, torch.qint8)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "_packed_params"] = (self.weight, torch.ones(2))
        destination[prefix + "dtype"] = torch.qint8


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_quantized_have_a_sha256_of_their_values() -> None:
    model = tiny_model("bert")
    found = []
    for weight in ([1.0, 2.0], [1.0, 2.1], [1.0, 4.0]):
        model.pooler = Packed(torch.tensor(weight))
        found.append(live_model(model, word_tokenizer()).info["weights_sha256"])
    assert found[0] == found[1] != found[2]  # in steps of a half 2.0 and 2.1 are one


def test_a_model_of_peft_is_measured_with_its_adapter_as_it_is_switched() -> None:
    import peft

    def measured(model: Any) -> float:
        return float(
            experiments.layers(model, TEXTS, tokenizer=word_tokenizer(), threads=1).layers[-1].sentence.anisotropy
        )

    model = tiny_model("bert")
    before = measured(model)
    lora = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)
    tuned = peft.get_peft_model(model, lora).eval()
    merged = copy.deepcopy(tuned).merge_and_unload()
    assert measured(tuned) == pytest.approx(measured(merged), abs=1e-6) != pytest.approx(before, abs=1e-3)
    with tuned.disable_adapter():
        assert measured(tuned) == before
    prompt = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="FEATURE_EXTRACTION")
    with pytest.raises(ModelError, match="model: got a PeftModelForFeatureExtraction that learns a prompt"):
        measured(peft.get_peft_model(tiny_model("bert"), prompt))
