"""Every sentence is run once, unpadded, in its own group, whatever the batches and whatever runs out of memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cone_kernels import metrics
from cone_kernels.corpora import Corpus
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.runner import run
from cone_kernels.runs.shard_runner import length_batches
from tests.support.moment_cases import GROUP_OF
from tests.support.tiny_checkpoints import THREE_LENGTHS, save_checkpoint, sentences

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return load_model(folder)


def group_sums(loaded: LoadedModel, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentence and token level Σ u by layer and jackknife group, (L, 64, d) each, one sentence at a time."""
    sums = torch.zeros(2, loaded.info["n_layers"] + 1, 64, loaded.info["hidden_size"], dtype=torch.float64)
    for index, text in enumerate(texts):
        inputs = loaded.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = loaded.model(**inputs, output_hidden_states=True).hidden_states
        hidden = torch.cat(states).double()  # (L, T, D)
        for level, rows in enumerate((hidden.mean(1, keepdim=True), hidden)):
            sums[level, :, GROUP_OF[index]] += (rows / rows.norm(dim=2, keepdim=True)).sum(1)
    return sums[0], sums[1]


TEXTS = sentences(150, THREE_LENGTHS)


@pytest.fixture(scope="module")
def sums(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    return group_sums(loaded, TEXTS)


@pytest.mark.parametrize(
    "options", [{}, {"token_budget": 1}, {"batch_size": 3}, {"shard_size": 10}, {"shard_size": 64, "token_budget": 20}]
)
def test_sums_are_those_of_one_sentence_at_a_time(
    loaded: LoadedModel, sums: tuple[torch.Tensor, torch.Tensor], options: dict[str, Any]
) -> None:
    state = run(loaded, TEXTS, **options).state
    for layer in (0, 3):
        sentence, token = (level[layer] for level in sums)
        torch.testing.assert_close(state.sentence.unit_sum[layer], sentence, rtol=0, atol=2e-6)
        torch.testing.assert_close(state.token.unit_sum[layer], token, rtol=0, atol=2e-6)
    assert state.sentence.count[0].tolist() == [GROUP_OF[:150].count(group) for group in range(64)]


def test_the_same_run_gives_the_same_bits(loaded: LoadedModel) -> None:
    texts = sentences(100, THREE_LENGTHS)
    first, second = run(loaded, texts, shard_size=40), run(loaded, texts, shard_size=40)
    assert first.state.fingerprint() == second.state.fingerprint()


def test_no_batch_carries_padding(loaded: LoadedModel) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    hook = loaded.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    texts = sentences(60)
    with hook:
        result = run(loaded, texts, token_budget=30)
    batches = [kwargs for kwargs in seen if "output_hidden_states" not in kwargs]
    assert len(batches) == result.batches
    assert all(bool((kwargs["attention_mask"] == 1).all()) for kwargs in batches)
    assert all(kwargs["input_ids"].numel() <= 30 for kwargs in batches)
    rows = [row.tolist() for kwargs in batches for row in kwargs["input_ids"]]
    assert sorted(rows) == sorted(loaded.tokenizer(texts)["input_ids"])
    assert result.tokens == sum(map(len, rows))


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 40), st.none() | st.integers(1, 5))
def test_length_batches_cover_every_sentence_once(lengths: list[int], budget: int, size: int | None) -> None:
    batches = list(length_batches(lengths, budget, size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    longest = [lengths[batch[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        length = lengths[batch[0]]
        assert {lengths[index] for index in batch} == {length}
        assert len(batch) == 1 or len(batch) * length <= budget
        assert size is None or len(batch) <= size
        assert batch == sorted(batch)


@contextmanager
def memory_for(loaded: LoadedModel, tokens: int, error: Callable[[], Exception]) -> Iterator[list[int]]:
    """Raises inside the second block, after the first layers are in the sums, where a batch has more tokens."""
    failed: list[int] = []

    def refuse(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].shape[:2].numel() > tokens:
            failed.append(args[0].shape[:2].numel())
            raise error()

    with loaded.model.get_submodule("encoder.layer.1").register_forward_pre_hook(refuse):
        yield failed


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_and_counts_nothing_twice(
    loaded: LoadedModel, error: Callable[[], Exception]
) -> None:
    texts = sentences(45, THREE_LENGTHS)
    with memory_for(loaded, 16, error) as failed:
        result = run(loaded, texts, token_budget=400)
    assert result.out_of_memory == len(failed) >= 2
    assert result.token_budget <= 16
    # One shard, so the run that succeeded is the one with the final budget from the start, to the last bit.
    undisturbed = run(loaded, texts, token_budget=result.token_budget)
    assert undisturbed.out_of_memory == 0
    assert result.state.fingerprint() == undisturbed.state.fingerprint()
    assert (result.sentences, result.tokens) == (45, undisturbed.tokens)


def test_out_of_memory_in_a_later_shard_keeps_the_earlier_ones(loaded: LoadedModel) -> None:
    texts = [*sentences(20, (1, 2, 3)), *sentences(20, THREE_LENGTHS)]
    reports: list[Progress] = []
    with memory_for(loaded, 25, lambda: torch.OutOfMemoryError()):
        result = run(loaded, texts, token_budget=25, shard_size=20)
        assert result.out_of_memory == 0
        result = run(loaded, texts, token_budget=60, batch_size=5, shard_size=20, progress=reports.append)
    assert result.out_of_memory > 0
    wanted = run(loaded, texts)
    assert torch.equal(result.state.sentence.count, wanted.state.sentence.count)
    assert torch.equal(result.state.token.count, wanted.state.token.count)
    torch.testing.assert_close(
        metrics.anisotropy(result.state.token), metrics.anisotropy(wanted.state.token), rtol=0, atol=1e-7
    )
    assert reports[-1] == Progress(40, wanted.tokens, 40)


def test_out_of_memory_after_some_batches_counts_nothing_twice(loaded: LoadedModel) -> None:
    calls: list[int] = []

    def refuse_the_fourth(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append(len(args[0]))
        if len(calls) == 4:
            raise torch.OutOfMemoryError

    texts, reports = sentences(45, THREE_LENGTHS), list[Progress]()
    with loaded.model.get_submodule("encoder.layer.1").register_forward_pre_hook(refuse_the_fourth):
        result = run(loaded, texts, token_budget=60, progress=reports.append)
    undisturbed = run(loaded, texts, token_budget=result.token_budget)
    assert result.out_of_memory == 1
    assert result.token_budget < 60
    assert result.state.fingerprint() == undisturbed.state.fingerprint()
    assert (result.sentences, result.tokens) == (undisturbed.sentences, undisturbed.tokens)
    assert reports[-1] == Progress(45, undisturbed.tokens, 45)


def test_a_sentence_that_does_not_fit_alone_is_named(loaded: LoadedModel) -> None:
    texts = [*sentences(20, (1, 2, 3)), "w5 " * 30]
    with (
        memory_for(loaded, 20, lambda: torch.OutOfMemoryError()),
        pytest.raises(RuntimeError, match=r"out of memory on sentence 20 alone \(32 tokens\)"),
    ):
        run(loaded, texts)


def test_other_errors_are_not_taken_for_memory(loaded: LoadedModel) -> None:
    with (
        memory_for(loaded, 1, lambda: RuntimeError("mat1 and mat2 cannot be multiplied")),
        pytest.raises(RuntimeError, match="mat1 and mat2"),
    ):
        run(loaded, sentences(5))


def test_truncated_sentences_are_cut_and_counted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, model_max_length=6)
    loaded = load_model(tmp_path)
    texts = ["w5", "w5 w6 w7 w8", "w5 w6 w7 w8 w9", "w5 w6 w7 w8 w9 w10 w11"]
    result = run(loaded, texts)
    assert result.truncated == 2
    assert result.tokens == 3 + 6 + 6 + 6
    cut = run(loaded, ["w5", *["w5 w6 w7 w8"] * 3])
    assert torch.equal(result.state.token.unit_sum, cut.state.token.unit_sum)


def test_words_that_the_tokenizer_does_not_know_are_counted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    loaded = load_model(tmp_path)
    result = run(loaded, ["w5 foreign w6", "w7 w8", "foreign words"], shard_size=2)
    assert (result.unknown_tokens, result.tokens) == (3, 5 + 4 + 4)
    # A tokenizer of bytes knows all words; what ends its texts is no word that it does not know.
    loaded.tokenizer.unk_token = loaded.tokenizer.eos_token
    assert run(loaded, ["w5 w6"]).unknown_tokens == 0


@pytest.mark.parametrize("texts", [["w5 w6", "nothing", "w7"], ["nothing"]])
def test_a_sentence_without_tokens_is_counted_and_in_no_sum(tmp_path: Path, texts: list[str]) -> None:
    save_checkpoint(tmp_path, "gpt2", special=False, pad=False)
    result = run(load_model(tmp_path), texts)
    assert result.no_token == 1
    assert result.state.sentence.n_empty[0].sum() == 1
    assert result.sentences == len(texts)
    assert result.state.sentence.count[0].sum() == len(texts) - 1
    assert result.state.token.count[0].sum() == result.tokens == (3 if len(texts) == 3 else 0)


@pytest.mark.parametrize("architecture", ["roberta", "llama", "t5", "distilbert", "xlnet"])
def test_models_of_other_kinds(tmp_path: Path, architecture: str) -> None:
    model_class = {"t5": "T5ForConditionalGeneration"}.get(architecture)
    save_checkpoint(tmp_path, architecture, model_class=model_class)
    loaded = load_model(tmp_path)
    texts = sentences(20, THREE_LENGTHS)
    state = run(loaded, texts).state
    sentence, token = group_sums(loaded, texts)
    torch.testing.assert_close(state.sentence.unit_sum[3], sentence[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(state.token.unit_sum[3], token[3], rtol=0, atol=1e-6)


def test_states_of_one_model_merge_wherever_its_files_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name)
    save_checkpoint(tmp_path / "c", seed=1)
    a, b, c = (run(load_model(tmp_path / name), sentences(5, (1,))).state for name in "abc")
    assert a.merge(b).sentence.count[0].sum() == 10
    with pytest.raises(ValueError, match="weights_sha256"):
        a.merge(c)


def test_progress_tells_what_is_expected(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n".join(dict.fromkeys(sentences(50))))
    corpus, reports = Corpus(file, limit=30), list[Progress]()
    result = run(loaded, corpus, token_budget=20, progress=reports.append)
    assert [report.sentences for report in reports] == sorted({report.sentences for report in reports})
    assert {report.expected for report in reports} == {30}
    assert (reports[-1].sentences, reports[-1].tokens) == (30, result.tokens)
    assert len(reports) == result.batches


def test_the_backend_that_ran_is_named(loaded: LoadedModel) -> None:
    assert set(run(loaded, sentences(3)).backends.values()) == {"cpu"}
    result = run(loaded, sentences(3), backend="reference")
    assert result.backends["pool_moments"] == "reference"
    assert set(result.backends.values()) == {"reference"}


@pytest.mark.parametrize("name", ["token_budget", "batch_size", "shard_size", "threads"])
def test_options_are_checked(loaded: LoadedModel, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got 0; it must be at least 1"):
        run(loaded, ["w5"], **{name: 0})


def test_no_sentence_at_all_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="there is no sentence to run"):
        run(loaded, [])


def test_why_there_is_no_sentence_is_said(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{\n{"text": "a cat"},\n{"text": ["a", "dog"]}\n\n')
    message = (
        "corpus: there is no sentence to run: 1 empty, 2 malformed record, 1 missing field; "
        f"{file}:1: dropped, not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); "
        f"{file}:2: dropped, not JSON: Extra data: line 1 column 18 (char 17); "
        f"{file}:3: dropped, field 'text' is ['a', 'dog'], no string"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(loaded, Corpus(file))
