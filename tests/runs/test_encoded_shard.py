"""Token ids that follow each other in one array give the inputs that lists of them, one a sentence, give."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from cone_kernels.models import LoadedModel, load_model
from cone_kernels.models.transformers_names import LONGEST, encodes_as_library
from cone_kernels.runs import encoded_shard
from cone_kernels.runs.encoded_shard import EncodedShard
from tests.support.stand_in_gpu import stand_in_gpu
from tests.support.tiny_checkpoints import WORDS, save_checkpoint

TEXTS = [" ".join(WORDS[(i * 7 + j * 3) % 90] for j in range(i * 5 % 9)) for i in range(40)] + [
    "",
    " ".join(WORDS[:70]),
]
BATCHES = [[0], [7, 3, 3, 41], list(range(len(TEXTS))), list(reversed(range(len(TEXTS))))]


class AsksNotItsLibrary(transformers.PreTrainedTokenizerFast):
    """Words become token types, as in tokenizers that do more than to ask the library."""

    def _encode_plus(self, text: list[str], **options: Any) -> Any:
        found = super()._encode_plus(text, **options)
        found["token_type_ids"] = [[token % 2 for token in ids] for ids in found["input_ids"]]
        return found


@pytest.fixture(scope="module", params=["library", "library, with a prompt", "cut on the left", "own class"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model that takes token types."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder)
    loaded = load_model(str(folder), device="cpu")
    tokenizer = loaded.tokenizer
    if request.param == "own class":
        tokenizer = AsksNotItsLibrary.from_pretrained(folder)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.truncation_side = "left" if "left" in request.param else "right"
    prompt = "w5 w6 " if "prompt" in request.param else ""
    assert encodes_as_library(tokenizer) == (request.param != "own class")
    return replace(
        loaded, tokenizer=tokenizer, prompt=prompt, max_length=20, input_names=tuple(tokenizer.model_input_names)
    )


@pytest.fixture(scope="module")
def wanted(loaded: LoadedModel) -> Any:
    """What transformers makes of the sentences: lists."""
    texts = [loaded.prompt + text for text in TEXTS]
    options = {"truncation": True, "max_length": 20, "return_special_tokens_mask": True}
    return loaded.tokenizer(texts, **options)


def padded(column: list[list[int]], batch: list[int], length: int, pad: int) -> torch.Tensor:
    return torch.tensor([column[i] + [pad] * (length - len(column[i])) for i in batch])


def test_what_the_tokenizer_gives(loaded: LoadedModel, wanted: Any) -> None:
    shard = EncodedShard.of(loaded, TEXTS, 5, special_tokens=True)
    assert shard.lengths == [len(ids) for ids in wanted["input_ids"]]
    assert (shard.first_id, shard.truncated, max(shard.lengths)) == (5, 1, 20)
    assert list(shard.columns) == ["input_ids", "token_type_ids"]
    for name, column in {**shard.columns, "special_tokens_mask": shard.special}.items():
        assert column is not None
        assert column.dtype == "int64"
        assert column.tolist() == list(itertools.chain.from_iterable(wanted[name]))
    assert EncodedShard.of(loaded, TEXTS).special is None


def test_sentences_are_tokenized_some_at_a_time_as_all_at_once(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EncodedShard.of(loaded, TEXTS, special_tokens=True)
    monkeypatch.setattr(encoded_shard, "_BLOCK_CHARACTERS", 60)
    blocks = list(encoded_shard.text_blocks(TEXTS))
    assert list(itertools.chain.from_iterable(blocks)) == TEXTS
    assert len(blocks) > 5
    assert all(len(block) == 1 or sum(map(len, block)) <= 60 for block in blocks)
    parts = EncodedShard.of(loaded, TEXTS, special_tokens=True)
    assert (parts.lengths, parts.truncated, parts.unknown) == (whole.lengths, whole.truncated, whole.unknown)
    for name in whole.columns:
        assert parts.columns[name].tolist() == whole.columns[name].tolist()
    assert parts.special is not None
    assert parts.special.tolist() == whole.special.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", [5, 20, 69, 70, 71, 72, 73, 74, 75, None])
def test_only_sentences_that_lose_tokens_count_as_cut(loaded: LoadedModel, limit: int | None) -> None:
    cut = replace(loaded, max_length=limit)
    whole = [len(ids) for ids in loaded.tokenizer([loaded.prompt + text for text in TEXTS]).input_ids]
    wanted = 0 if limit is None else sum(length > limit for length in whole)
    assert EncodedShard.of(cut, TEXTS).truncated == wanted


def test_a_sentence_is_tokenized_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    call = type(loaded.tokenizer).__call__

    def noted(tokenizer: Any, texts: list[str], **options: Any) -> Any:
        seen.append(max(map(len, texts)))
        return call(tokenizer, texts, **options)

    monkeypatch.setattr(type(loaded.tokenizer), "__call__", noted)
    EncodedShard.of(loaded, [TEXTS[-1]])
    # The library is called apart from transformers, once; here only a short beginning sets it up.
    assert not encodes_as_library(loaded.tokenizer) or max(seen) <= 100 + len(loaded.prompt)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_padded(loaded: LoadedModel, wanted: Any, batch: list[int]) -> None:
    shard = EncodedShard.of(loaded, TEXTS, special_tokens=True)
    longest = max(shard.lengths[i] for i in batch)
    for length in (longest, longest + 3):
        pads = {"input_ids": loaded.tokenizer.pad_token_id, "token_type_ids": 0, "attention_mask": 0}
        inputs = shard.padded_inputs(batch, loaded, length)
        assert set(inputs) == set(pads)
        for name, pad in pads.items():
            right = padded(wanted[name], batch, length, pad)
            assert (inputs[name].dtype, inputs[name].is_contiguous()) == (torch.int64, True)
            assert torch.equal(inputs[name], right), name
        assert torch.equal(shard.token_mask(batch, length), padded(wanted["attention_mask"], batch, length, 0).bool())
        special = shard.special_rows(batch, length)
        assert special is not None
        assert torch.equal(special, padded(wanted["special_tokens_mask"], batch, length, 0))
    assert shard.padded_inputs(batch, loaded)["input_ids"].shape[1] == longest


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_packed(loaded: LoadedModel, wanted: Any, batch: list[int]) -> None:
    shard = EncodedShard.of(loaded, TEXTS, special_tokens=True)
    inputs = shard.packed_inputs(batch, loaded)
    lengths = [shard.lengths[i] for i in batch]
    for name in ("input_ids", "token_type_ids"):
        assert inputs[name].tolist() == [[token for i in batch for token in wanted[name][i]]]
    assert inputs["position_ids"].tolist() == [[place for length in lengths for place in range(length)]]
    starts = [sum(lengths[:at]) for at in range(len(lengths) + 1)]
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert inputs[name].tolist() == starts
        assert inputs[name].dtype == torch.int32
    assert inputs["max_length_q"] == inputs["max_length_k"] == max(lengths)
    special = shard.packed_special(batch)
    assert special is not None
    assert special.tolist() == [[token for i in batch for token in wanted["special_tokens_mask"][i]]]


def test_beginnings_of_a_sentence(loaded: LoadedModel) -> None:
    shard = EncodedShard.of(loaded, TEXTS)
    cut = shard.beginnings(7, [4, 2, 1])
    ids = shard.padded_inputs([7], loaded)["input_ids"][0].tolist()
    pad = loaded.tokenizer.pad_token_id
    assert cut.lengths == [4, 2, 1]
    assert cut.padded_inputs([0, 1, 2], loaded)["input_ids"].tolist() == [
        ids[:4],
        [*ids[:2], pad, pad],
        [ids[0], pad, pad, pad],
    ]


def test_sentences_without_a_token(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    loaded.tokenizer.backend_tokenizer.post_processor = None
    shard = EncodedShard.of(loaded, ["", "w4 w5", ""], special_tokens=True)
    assert shard.lengths == [0, 2, 0]
    inputs = shard.padded_inputs([0, 2], loaded)
    pad = loaded.tokenizer.pad_token_id
    assert {name: row.tolist() for name, row in inputs.items()} == {
        "input_ids": [[pad], [pad]],
        "attention_mask": [[1], [1]],
    }
    assert shard.counted([0, 2], inputs).tolist() == [[False], [False]]
    assert shard.token_mask([0, 2], 1).tolist() == [[False], [False]]
    none = EncodedShard.of(loaded, ["", ""])
    assert none.padded_inputs([1], loaded, 3)["input_ids"].tolist() == [[pad] * 3]


def test_they_cross_to_a_gpu_by_one_copy(loaded: LoadedModel) -> None:
    shard, batch = EncodedShard.of(loaded, TEXTS), [4, 2, 3]
    with stand_in_gpu() as work:
        there = SimpleNamespace(
            tokenizer=loaded.tokenizer,
            input_names=loaded.input_names,
            device=torch.device("cuda:0"),
            model=torch.nn.Identity(),
        )
        here = SimpleNamespace(**{**vars(there), "device": torch.device("cpu")})
        work.launches.clear()
        inputs = shard.padded_inputs(batch, there)
        assert work.launches == {"aten._to_copy": 1}
        mask = shard.counted(batch, inputs)
        assert work.launches == {"aten._to_copy": 2}  # the second from int64 to bool, on the GPU
        row = shard.packed_inputs(batch, there)
        assert work.launches == {"aten._to_copy": 4}
        assert not work.waits
        for found, wanted in (
            (inputs, shard.padded_inputs(batch, here)),
            (row, shard.packed_inputs(batch, here)),
        ):
            assert list(found) == list(wanted)
            for name, value in wanted.items():
                assert name in LONGEST or (found[name].is_cuda and found[name].tolist() == value.tolist())
        assert mask.tolist() == shard.token_mask(batch, inputs["input_ids"].shape[1]).tolist()


def test_a_tokenizer_that_others_use_meanwhile_is_set_up_again_or_refused(
    loaded: LoadedModel, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up, library = encoded_shard._is_set_up, loaded.tokenizer.backend_tokenizer
    others = iter([library.no_truncation, None, lambda: library.enable_padding(length=99)])

    def before_others(model: LoadedModel) -> bool:
        ready = set_up(model)
        if (change := next(others, None)) is not None:
            change()
        return ready

    monkeypatch.setattr(encoded_shard, "_is_set_up", before_others)
    assert EncodedShard.of(loaded, TEXTS).lengths == [len(ids) for ids in wanted["input_ids"]]
    monkeypatch.setattr(encoded_shard, "_is_set_up", lambda _: False)
    # A tokenizer with a class of its own is asked in transformers' way.
    asks_library = encodes_as_library(loaded.tokenizer)
    refused = pytest.raises(RuntimeError, match="it must not be used by another thread meanwhile")
    with refused if asks_library else nullcontext():
        EncodedShard.of(loaded, TEXTS)
