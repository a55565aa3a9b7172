"""Kept sentence vectors: in corpus order, as the model gives them, whatever the batches and however often run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cone_kernels.experiments import measure
from cone_kernels.models import load_model
from cone_kernels.runs.runner import run
from cone_kernels.runs.sentence_vectors import SentenceVectors, used_rows
from cone_kernels.runs.vector_keeper import VectorKeeper, layer_number
from cone_kernels.state.moments import Moments
from tests.support.tiny_checkpoints import save_checkpoint

TEXTS = [" ".join(f"w{4 + (i * 7 + j) % 90}" for j in range(1 + i % 3 * 4)) for i in range(40)]  # three lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


def whole(vectors: SentenceVectors, rows: int = 7) -> torch.Tensor:
    return torch.cat([block for _, block in vectors.blocks(rows)])


def test_blocks_give_the_rows_back() -> None:
    rows = torch.randn(20, 5)
    vectors = SentenceVectors.from_rows(rows)
    vectors.append(rows[:3] * 2)
    assert (len(vectors), vectors.dim, vectors.dtype) == (23, 5, torch.float32)
    assert [(first, len(block)) for first, block in vectors.blocks(8)] == [(0, 8), (8, 8), (16, 7)]
    assert torch.equal(whole(vectors), torch.cat([rows, rows[:3] * 2]))
    # Reading stops nobody from adding more.
    vectors.append(rows[:1])
    assert torch.equal(whole(vectors)[-1], rows[0])


def test_rows_that_are_not_finite_are_nan() -> None:
    rows = torch.ones(3, 2, dtype=torch.float64)
    rows[1, 0] = torch.inf
    found = whole(SentenceVectors.from_rows(rows))
    assert found.dtype == torch.float64
    assert found.isnan().all(1).tolist() == [False, True, False]


def test_the_rows_that_are_used_are_those_that_a_state_counts() -> None:
    """Also at the ends of float64, where the square of a length is no number or below the least normal one."""
    lengths = torch.tensor([1.0, 0.0, torch.nan, torch.inf, 1e200, 1e150, 1e-150, 1e-160], dtype=torch.float64)
    rows = torch.nn.functional.pad(lengths[:, None], (0, 2))
    status = Moments.empty("sentence", [0], 3).update(rows)
    assert used_rows(rows).tolist() == (status[0] == 0).tolist() == [True, *[False] * 4, True, True, False]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"dtype: got torch\.float16"):
        SentenceVectors(3, torch.float16)
    with pytest.raises(ValueError, match=r"rows: got shape \(2, 4\) and torch.float32; it must be \(n, 3\)"):
        SentenceVectors(3).append(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="rows: got 0"):
        next(SentenceVectors.from_rows(torch.zeros(2, 4)).blocks(0))
    for layer in (4, -5):
        with pytest.raises(ValueError, match=f"layer: got {layer}; it must be from 0 to 3, or from -4 to -1"):
            layer_number(layer, 4)
    assert [layer_number(layer, 4) for layer in (0, 3, -1, -4)] == [0, 3, 3, 0]


def test_run_keeps_the_vectors_of_the_layers_asked_for(folder: Path) -> None:
    measured = measure(folder, [*TEXTS, "nothing"], keep_vectors=(1, -1), token_budget=24)
    loaded = load_model(folder)
    assert sorted(measured.vectors) == [1, 3]
    for index, text in enumerate(TEXTS):
        with torch.no_grad():
            output = loaded.model(**loaded.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        for layer in (1, 3):
            mean = output.hidden_states[layer][0].double().mean(0)
            kept = whole(measured.vectors[layer])
            torch.testing.assert_close(kept[index].double(), mean, atol=1e-6, rtol=1e-5)
    assert len(measured.vectors[1]) == 41
    assert measured.sentences is not None
    assert list(measured.sentences)[3] == TEXTS[3]


def test_shards_and_batches_do_not_change_the_order(folder: Path) -> None:
    loaded = load_model(folder)
    one = run(loaded, TEXTS, keep_vectors=[-1], token_budget=1)
    for shard_size, budget in ((3, 8), (16, 64), (100, 4096)):
        found = run(loaded, TEXTS, keep_vectors=[-1], shard_size=shard_size, token_budget=budget)
        torch.testing.assert_close(whole(found.vectors[3]), whole(one.vectors[3]), atol=1e-5, rtol=1e-5)


def test_a_shard_that_is_run_again_counts_once(folder: Path) -> None:
    loaded = load_model(folder)
    expected = whole(run(loaded, TEXTS, keep_vectors=[-1], token_budget=16).vectors[3])

    forward: Any = loaded.model.forward

    def short_of_memory(*args: Any, **inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("no memory")
        return forward(*args, **inputs)

    loaded.model.forward = short_of_memory
    found = run(loaded, TEXTS, keep_vectors=[-1], shard_size=30, token_budget=64)
    assert found.out_of_memory > 0
    torch.testing.assert_close(whole(found.vectors[3]), expected, atol=1e-5, rtol=1e-5)


def test_a_layer_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="layer: got 9; it must be from 0 to 3"):
        measure(folder, TEXTS, keep_vectors=[9])


def test_keeper_forgets_a_shard_that_begins_again() -> None:
    keeper = VectorKeeper([-1])
    keeper.begin_shard(10, 3)
    keeper.take(1, 2, torch.tensor([11, 12]), torch.ones(2, 4))
    keeper.begin_shard(10, 3)
    keeper.take(1, 2, torch.tensor([12, 10]), torch.full((2, 4), 2.0))
    keeper.take(0, 2, torch.tensor([11]), torch.ones(1, 4))
    keeper.end_shard()
    assert whole(keeper.vectors[1])[:, 0].nan_to_num(-1).tolist() == [2, -1, 2]
