"""States of several gloo processes against the state of one; samplers against what they repeat."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, DistributedSampler

from cone_kernels import metrics
from cone_kernels.distributed import ShardSampler, all_reduce, padding_repeats
from cone_kernels.integrations.accelerate import repeated_samples
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.state.cone_state import ConeState
from tests.support.gloo_ranks import run_ranks
from tests.support.recording_probe import probed
from tests.support.tiny_models import LAYERS, tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCES = 23
OPTIONS = {"second_moment": True, "poolings": ("max",)}


def sentences() -> dict[str, torch.Tensor]:
    return tiny_batch(sentences=SENTENCES, seed=3)


def state_of_one_process() -> ConeState:
    return probed(tiny_model("bert"), sentences(), **OPTIONS)


def sums(state: ConeState) -> dict[str, torch.Tensor]:
    parts = {"sentence": state.sentence, "token": state.token, **state.poolings}
    return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.sums.items()}


def reduced_over_shards(empty_ranks: tuple[int, ...]) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    ranks = [rank for rank in range(dist.get_world_size()) if rank not in empty_ranks]
    state = None
    if dist.get_rank() in ranks:
        shard = list(ShardSampler(SENTENCES, rank=ranks.index(dist.get_rank()), world_size=len(ranks)))
        model = tiny_model("bert")
        with ConeProbe(model, **OPTIONS) as probe, torch.no_grad():
            for ids in (shard[:5], shard[5:]):
                probe.next_batch(sentence_ids=ids)
                model(**{name: value[ids] for name, value in sentences().items()})
        state = probe.state
        state.first_left_out[:, 0] = dist.get_rank() + 1
    before = state and state.fingerprint()
    total = all_reduce(state)
    assert before == (state and state.fingerprint())
    return sums(total), total.first_left_out, total.info


@pytest.mark.parametrize(("world_size", "empty_ranks"), [(2, ()), (3, ()), (3, (0,)), (3, (0, 2))])
def test_all_reduce_is_the_state_of_one_process(world_size: int, empty_ranks: tuple[int, ...]) -> None:
    answers = run_ranks(reduced_over_shards, world_size, empty_ranks)
    wanted = state_of_one_process()
    seen = [rank + 1 for rank in range(world_size) if rank not in empty_ranks]
    for got, left_out, info in answers:
        assert info == wanted.info
        assert left_out[0, : len(seen)].tolist() == seen
        assert set(got) == set(sums(wanted))
        for name, value in sums(wanted).items():
            assert torch.equal(got[name], answers[0][0][name])  # the same bits on every rank
            if value.dtype == torch.int64:
                assert torch.equal(got[name], value), name
            else:
                # Sums over other batches: as far apart as float64 sums of float32 partial sums are.
                torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-6)


def reduced(kinds: tuple[str, ...]) -> str:
    kind = kinds[dist.get_rank()]
    options = {"layers": range(3), "dim": 8} | ({"dim": 4} if kind == "narrow" else {})
    try:
        all_reduce(None if kind == "none" else ConeState.empty(**options, info={"model": kind}))
    except ValueError as error:
        return str(error)
    return "reduced"


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("none", "a", "b"), "ConeState of ranks 1 and 2 differ in info"),
        (("narrow", "narrow", "a"), "ConeState of ranks 0 and 2 differ in info"),
        (("none", "none"), "state: got None on every rank"),
    ],
)
def test_states_that_differ_are_refused_on_every_rank(kinds: tuple[str, ...], message: str) -> None:
    for answer in run_ranks(reduced, len(kinds), kinds):
        assert message in answer


@pytest.mark.parametrize(("length", "world_size"), [(7, 3), (8, 2), (1, 3), (0, 2)])
def test_shards_hold_every_sample_once(length: int, world_size: int) -> None:
    shards = [ShardSampler(range(length), rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for shard in shards for index in shard) == list(range(length))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]


@pytest.mark.parametrize(
    "arguments", [{"data": 3, "rank": 2, "world_size": 2}, {"data": -1, "rank": 0, "world_size": 1}]
)
def test_shards_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"(rank|data): got"):
        ShardSampler(**arguments)


@pytest.mark.parametrize(("length", "world_size", "batch_size"), [(7, 3, 2), (10, 4, 2), (2, 4, 2), (8, 2, 3)])
def test_repeats_of_a_distributed_sampler(length: int, world_size: int, batch_size: int) -> None:
    counted = []
    for rank in range(world_size):
        sampler = DistributedSampler(range(length), num_replicas=world_size, rank=rank, shuffle=True, seed=4)
        first = 0
        for batch in DataLoader(range(length), batch_size=batch_size, sampler=sampler):
            repeats = padding_repeats(first, len(batch), length, rank=rank, world_size=world_size)
            counted += batch[~repeats].tolist()
            first += len(batch)
    assert sorted(counted) == list(range(length))


def accelerated(even_batches: bool, dispatch_batches: bool) -> tuple[list[int], list[float]]:
    """A training loop under Accelerate: sentences counted over all ranks, by layer, and the curve."""
    how = DataLoaderConfiguration(even_batches=even_batches, dispatch_batches=dispatch_batches)
    accelerator = Accelerator(cpu=True, dataloader_config=how)
    assert accelerator.num_processes == dist.get_world_size()
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    rows = [{name: value[row] for name, value in sentences().items()} for row in range(SENTENCES)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    head = torch.nn.Linear(32, 1)
    prepared, head, optimizer, loader = accelerator.prepare(model, head, optimizer, DataLoader(rows, batch_size=5))
    rounds = 0
    with ConeProbe(prepared) as probe:
        for inputs in loader:
            probe.next_batch(repeats=repeated_samples(len(inputs["input_ids"])))
            # DDP would wait for the ranks that have no batch left.
            hidden = (prepared if even_batches else accelerator.unwrap_model(prepared))(**inputs)
            accelerator.backward(hidden.last_hidden_state.mean() + hidden.pooler_output.mean())
            optimizer.step()
            optimizer.zero_grad()
            rounds += 1
    total = all_reduce(probe.state)
    return [rounds, *total.sentence.count.sum(1).tolist()], metrics.anisotropy(total.sentence).tolist()


def test_repeats_are_told_of_a_whole_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = SimpleNamespace(
        active_dataloader=SimpleNamespace(total_batch_size=8), end_of_dataloader=True, remainder=5
    )
    monkeypatch.setattr("accelerate.state.GradientState", lambda: loading)
    monkeypatch.setattr("accelerate.state.PartialState", lambda: SimpleNamespace(num_processes=2, process_index=1))
    repeats = repeated_samples(4)
    assert repeats is not None
    assert repeats.tolist() == [False, True, True, True]
    for other_size in (2, 3, 5, 8):  # a part of a batch, or several put together: which are repeats is not known
        assert repeated_samples(other_size) is None


def test_one_process_repeats_nothing() -> None:
    """However many rows the model makes of a sample: here two, of batches of four samples and a last one of two."""
    loader = Accelerator(cpu=True).prepare(DataLoader(range(10), batch_size=4))
    for batch in loader:
        assert repeated_samples(len(batch)) is None
        assert repeated_samples(2 * len(batch)) is None


@pytest.mark.parametrize(
    ("even_batches", "dispatch_batches", "rounds"),
    [
        (True, False, [3, 3]),
        (False, False, [3, 2]),
        (True, False, [2, 2, 2]),
        (False, False, [2, 2, 1]),
        (True, True, [2, 2, 2]),
    ],
)
def test_a_loop_under_accelerate(even_batches: bool, dispatch_batches: bool, rounds: list[int]) -> None:
    wanted = metrics.anisotropy(state_of_one_process().sentence)
    answers = run_ranks(accelerated, len(rounds), even_batches, dispatch_batches)
    assert [counts[0] for counts, _ in answers] == rounds
    for (_, *counts), curve in answers:
        assert counts == [SENTENCES] * (LAYERS + 1)
        torch.testing.assert_close(torch.tensor(curve, dtype=torch.float64), wanted, rtol=0, atol=1e-7)
