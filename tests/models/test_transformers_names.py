"""That the names of transformers still hold, and that a cache is known whatever its argument is called."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from cone_kernels.models import transformers_names as names
from cone_kernels.models.transformers_names import filled_cache
from cone_kernels.probe.cone_probe import ConeProbe
from tests.support.places import ROOT
from tests.support.tiny_models import PAD, ToyModel, tiny_batch, tiny_model

REFUSED = "got a cache with earlier tokens"


def generate(model: nn.Module, **options: Any) -> Tensor:
    return model.generate(**tiny_batch("left"), **{"max_new_tokens": 3, "do_sample": False, **options})


@pytest.mark.parametrize(
    ("architecture", "model_class", "part", "tokens"),
    [
        ("llama", "LlamaForCausalLM", "", 25),
        ("qwen3", "Qwen3ForCausalLM", "", 25),
        ("gemma3", "Gemma3ForCausalLM", "", 25),
        ("gpt2", "GPT2LMHeadModel", "", 25),
        ("mamba", "MambaForCausalLM", "", 25),
        ("bert", "BertLMHeadModel", "", 25),
        ("t5", "T5ForConditionalGeneration", "decoder", 5),
        ("bart", "BartForConditionalGeneration", "model.decoder", 5),
    ],
)
def test_generation_counts_the_prompt_and_refuses_the_cache(
    architecture: str, model_class: str, part: str, tokens: int
) -> None:
    model = tiny_model(architecture, model_class=model_class)
    probe = ConeProbe(model.get_submodule(part))
    with probe, pytest.raises(ValueError, match=REFUSED) as refusal:
        generate(model)
    assert str(refusal.value).partition(":")[0] in names.CACHES
    assert probe.n_sentences == 5
    assert probe.state.token.count[0].sum() == tokens


@pytest.mark.parametrize("options", [{"use_cache": False, "max_new_tokens": 2}, {"max_new_tokens": 1}])
def test_generation_that_takes_in_whole_sentences_is_counted(options: dict[str, Any]) -> None:
    model = tiny_model("llama", model_class="LlamaForCausalLM")
    with ConeProbe(model) as probe:
        generate(model, **options)
    n_forwards = options["max_new_tokens"]
    assert probe.n_sentences == 5 * n_forwards
    assert probe.state.token.count[0].sum() == 25 * n_forwards + 5 * (n_forwards - 1)


class WithMemory(ToyModel):
    """A model that takes a cache under a name that no release of transformers has."""

    def forward(self, input_ids: Tensor, what_came_before: Any = None, **options: Any) -> Any:
        return super().forward(input_ids=input_ids, **options)


def cache_of(model_class: str = "LlamaForCausalLM", architecture: str = "llama") -> Any:
    model = tiny_model(architecture, model_class=model_class)
    output = model(**tiny_batch(), use_cache=True)
    return next(output[name] for name in names.CACHES if output.get(name) is not None)


@pytest.mark.parametrize("by_position", [False, True])
def test_a_cache_under_a_name_that_nobody_knows_is_refused(by_position: bool) -> None:
    model, ids, cache = WithMemory(), torch.full((3, 4), 7), cache_of()
    with ConeProbe(model) as probe:
        model(ids, what_came_before=transformers.DynamicCache())
        with pytest.raises(ValueError, match=f"what_came_before: {REFUSED}"):
            model(ids, cache) if by_position else model(ids, what_came_before=cache)
    assert probe.n_sentences == 3


def test_caches_are_known_by_what_they_hold() -> None:
    config = tiny_model("llama").config
    filled = cache_of()
    assert filled_cache({"x": filled}) == "x"
    assert filled_cache({"x": cache_of("MambaForCausalLM", "mamba")}) == "x"
    assert filled_cache({"x": transformers.EncoderDecoderCache(filled, transformers.DynamicCache())}) == "x"
    room = transformers.StaticCache(config=config, max_cache_len=8)
    assert filled_cache({"x": room}) is None
    room.update(torch.ones(2, 2, 3, 8), torch.ones(2, 2, 3, 8), 0)
    assert filled_cache({"x": room}) == "x"


def test_caches_that_are_plain_tuples_are_known_by_their_names() -> None:
    pairs = ((torch.ones(2, 2, 3, 8), torch.ones(2, 2, 3, 8)),)
    assert filled_cache({"input_ids": torch.ones(2, 3), "past_key_values": pairs}) == "past_key_values"
    assert filled_cache({"past_key_values": ((torch.ones(2, 2, 0, 8),) * 2,)}) is None
    assert filled_cache({"encoder_outputs": pairs, "input_ids": torch.ones(2, 3)}) is None


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "mamba", "t5"])
def test_the_arguments_are_those_of_the_installed_release(architecture: str) -> None:
    model_class = type(tiny_model(architecture))
    accepted = set(inspect.signature(model_class.forward).parameters)
    caches = accepted & set(names.CACHES)
    assert caches, f"{model_class.__name__}.forward takes no cache by a name in transformers_names.CACHES: {accepted}"
    assert set(names.TOKENS) <= accepted
    assert names.ATTENTION_MASK in accepted


def test_flattened_batches_are_told_as_the_installed_release_tells_them() -> None:
    collate = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    batch = collate([{"input_ids": [2, 7, 3]}, {"input_ids": [2, 3]}])
    assert {*names.STARTS, *names.LONGEST, names.POSITIONS} <= set(batch)
    assert batch[names.STARTS[0]].tolist() == [0, 3, 5]
    assert int(batch[names.LONGEST[0]]) == 3


def test_the_chosen_attention_can_be_read() -> None:
    assert getattr(tiny_model("bert").config, names.ATTENTION_CHOSEN) in ("sdpa", "eager")


def test_the_padding_token_of_a_model_and_of_its_part_that_reads_texts() -> None:
    model = tiny_model("bert")
    assert names.padding_token(model) == PAD
    model.config.pad_token_id = None
    assert names.padding_token(model) is None
    towers = tiny_model("bert")
    towers.config = transformers.CLIPConfig(text_config={"pad_token_id": 7})
    assert names.padding_token(towers) == 7
    assert names.padding_token(ToyModel()) is None


def test_names_that_may_change_stand_in_one_place() -> None:
    may_change = {*names.CACHES[1:3], *names.STARTS, *names.LONGEST, names.ATTENTION_CHOSEN, *names.DECODER_TOKENS[:2]}
    for path in (ROOT / "cone_kernels").rglob("*.py"):
        if path.name == "transformers_names.py":
            continue
        source = path.read_text()
        # Whether a name is a string of its own is asked only where its letters stand at all.
        if any(name in source for name in may_change):
            strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
            assert not strings & may_change, path


def test_adapters_of_peft_are_told_and_a_plain_model_has_none() -> None:
    model = tiny_model("bert")
    assert names.adapter_layers(model) == []
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=["query"])
    adapted = peft.get_peft_model(model, config)
    adapted.add_adapter("other", config)
    layers = names.adapter_layers(adapted)
    assert len(layers) == 3
    before = names.adapters_in_use(layers)
    with adapted.disable_adapter():
        off = names.adapters_in_use(layers)
    adapted.set_adapter("other")
    assert len({before, off, names.adapters_in_use(layers)}) == 3
    adapted.set_adapter("default")
    assert names.adapters_in_use(layers) == before


def test_a_cache_is_told_before_it_is_filled() -> None:
    ids = torch.ones(2, 3)
    assert names.takes_cache({"input_ids": ids, "x": transformers.DynamicCache()})
    assert names.takes_cache({"past_key_values": ()})
    assert not names.takes_cache({"input_ids": ids, "past_key_values": None, "use_cache": False})
