"""Packed batches give the sums that sentences give one by one, where attention keeps them apart, else are refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from cone_kernels import experiments, metrics
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.names import pooling_names
from cone_kernels.runs.batches import packed_batches
from cone_kernels.runs.runner import run
from tests.support.encoding_folders import dense, save_encoder
from tests.support.tiny_checkpoints import save_checkpoint, sentences

pytestmark = pytest.mark.usefixtures("one_thread")

FLASH, MIXING = "flash_of_the_tests", "flash_that_mixes"
TEXTS = [*sentences(60), "nothing", "w7", "nothing"]
FEW = [*TEXTS[:25], *TEXTS[60:]]  # to be run one by one


def by_sentence(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What flash attention computes from (B, heads, T, D), sentence by sentence where it is told where they begin."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    starts = options.get("cu_seq_lens_q")
    bounds = [0, query.shape[2]] if starts is None else starts.tolist()
    if starts is not None:
        assert torch.equal(starts, options["cu_seq_lens_k"])
        assert options["max_length_q"] == options["max_length_k"] == max(starts.diff())
    causal = bool(getattr(module, "is_causal", False))
    parts = [
        scaled_dot_product_attention(
            *(rows[:, :, start:stop] for rows in (query, key, value)), is_causal=causal, scale=options.get("scaling")
        )
        for start, stop in itertools.pairwise(bounds)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def mixing(*args: Any, **options: Any) -> tuple[Tensor, None]:
    """As where an attention is not told, or does not ask, where sentences begin."""
    return by_sentence(*args, **{**options, "cu_seq_lens_q": None})


@pytest.fixture(autouse=True)
def attentions() -> None:
    for name, function in ((FLASH, by_sentence), (MIXING, mixing)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, flash_attention_mask)


def loaded_with(folder: Path, architecture: str, attention: str = FLASH) -> LoadedModel:
    save_checkpoint(folder, architecture)
    return with_attention(folder, attention)


def with_attention(folder: Path, attention: str) -> LoadedModel:
    loaded = load_model(folder, device="cpu")
    # Asked for by its name, transformers would look for a flash attention of that name on the hub.
    loaded.model.config._attn_implementation_internal = attention
    return replace(loaded, info={**loaded.info, "attention": attention})


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama", "qwen3", "opt"]
)
def test_sums_are_those_of_one_sentence_at_a_time(tmp_path: Path, architecture: str) -> None:
    loaded = loaded_with(tmp_path, architecture)
    options: dict[str, Any] = {"poolings": "all", "second_moment": True, "unit_second_moment": True}
    packed = run(loaded, FEW, packed=True, token_budget=50, shard_size=20, **options)
    alone = run(loaded, FEW, batch_size=1, **options)
    assert (packed.tokens, packed.no_token) == (alone.tokens, alone.no_token)
    assert packed.batches < alone.batches / 3
    found, wanted = ([ran.state.token, *map(ran.state.pooled, pooling_names("all"))] for ran in (packed, alone))
    for got, expected in zip(found, wanted, strict=True):
        assert got.fields == expected.fields
        for name in expected.fields:
            torch.testing.assert_close(got.sums[name], expected.sums[name], rtol=2e-5, atol=2e-5)


def test_the_model_s_own_output_is_that_of_one_sentence_at_a_time(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "plain", special=False)  # so that "nothing" has no token
    modules = [dense(96, 8), ("Normalize", {})]
    loaded = with_attention(
        save_encoder(tmp_path / "model", tmp_path / "plain", ["cls", "max", "lasttoken"], then=modules, dim=32), FLASH
    )
    packed = run(loaded, FEW, packed=True, token_budget=50, shard_size=20, keep_vectors=["output"])
    alone = run(loaded, FEW, batch_size=1, keep_vectors=["output"])
    assert packed.batches < alone.batches / 3
    found, wanted = (ran.vectors["output"].read(0, len(FEW)) for ran in (packed, alone))
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5, equal_nan=True)
    assert found.isnan().all(1).nonzero()[:, 0].tolist() == [25, 27]
    assert packed.state.output is not None
    counts = {name: int(packed.state.output.sums[name].sum()) for name in ("count", "n_empty", "n_nonfinite")}
    assert counts == {"count": 26, "n_empty": 2, "n_nonfinite": 0}


def test_batches_are_full_whatever_the_lengths(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path, "bert")
    seen = []
    handle = loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    with handle:
        ran = run(loaded, TEXTS, packed=True, token_budget=64)
    batches = [shape for shape in seen if shape[1] > 40]
    assert all(shape[0] == 1 and shape[1] <= 64 for shape in batches)
    assert sum(shape[1] for shape in batches) >= 0.9 * ran.tokens


@pytest.mark.parametrize(
    ("architecture", "attention", "words"),
    [
        ("bert", "sdpa", "packed: got True with attention 'sdpa', which does not keep packed sentences apart"),
        ("bert", MIXING, "packed: BertModel mixes the sentences of a packed batch: .* off by"),
        ("xlnet", FLASH, "packed: got True, but XLNetModel.forward takes no position_ids"),
    ],
)
def test_what_would_mix_sentences_is_refused(tmp_path: Path, architecture: str, attention: str, words: str) -> None:
    loaded = loaded_with(tmp_path, architecture, attention)
    with pytest.raises(ValueError, match=words):
        run(loaded, TEXTS, packed=True)


def test_experiments_pack(tmp_path: Path) -> None:
    found = experiments.layers(loaded_with(tmp_path, "bert"), TEXTS, packed=True)
    wanted = experiments.layers(tmp_path, TEXTS, device="cpu")
    assert found.manifest["options"]["packed"]
    assert found.model["attention"] == FLASH
    torch.testing.assert_close(
        metrics.anisotropy(found.state.sentence), metrics.anisotropy(wanted.state.sentence), rtol=0, atol=1e-6
    )


@given(
    lengths=st.lists(st.integers(0, 12), max_size=60),
    budget=st.integers(1, 40),
    size=st.none() | st.integers(1, 9),
)
def test_packed_batches_cover_every_sentence_once(lengths: list[int], budget: int, size: int | None) -> None:
    batches = list(packed_batches(lengths, budget, size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget
        assert size is None or len(batch) <= size
        assert all(lengths[index] == 0 for index in batch) or all(lengths[index] > 0 for index in batch)
