"""What watching costs a training step on the CPU: off, at the default rate, at every step; of two models."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from cone_kernels import ConeProbe
from cone_kernels.integrations.watch import ConeWatch

ROUNDS = 25
DEFAULT_RATE = inspect.signature(ConeWatch).parameters["every"].default


@dataclass(frozen=True)
class Shape:
    """A BERT and its batch.

    Attributes:
        layers, hidden, heads: of the model.
        batch, tokens: sentences, and the longest of them.
        most_every_step: what a step may cost that is watched, in bare steps.
    """

    layers: int
    hidden: int
    heads: int
    batch: int
    tokens: int
    most_every_step: float


SHAPES = {
    "MiniLM": Shape(6, 384, 12, 16, 48, most_every_step=1.01),
    "BERT-Small": Shape(4, 512, 8, 4, 8, most_every_step=1.10),
}


class Job:
    """Training steps of one model, forward, backward and AdamW, on one batch."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        settings = {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "hidden_size": shape.hidden}
        config = transformers.BertConfig(**settings, intermediate_size=4 * shape.hidden, vocab_size=8192)
        self.model = transformers.BertForMaskedLM(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        ids = torch.randint(4, 8192, (shape.batch, shape.tokens))
        lengths = torch.randint(shape.tokens // 2, shape.tokens + 1, (shape.batch, 1))
        mask = (torch.arange(shape.tokens) < lengths).long()
        self.batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}

    def step(self) -> None:
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class TimedProbe(ConeProbe):
    """Adds up the processor time of its own hooks: no difference of two long times, so exact on a busy machine too."""

    own_seconds = 0.0

    def _see(self, *arguments: Any) -> None:
        start = time.process_time()
        super()._see(*arguments)
        self.own_seconds += time.process_time() - start


@pytest.mark.parametrize("name", SHAPES)
def test_cost_of_a_step(benchmark: Any, report: Callable[..., None], name: str) -> None:
    """Steps of each kind in turn on one thread, the least processor time of each: what others disturb least."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    shape = SHAPES[name]
    job = Job(shape)
    probe = TimedProbe(job.model)
    with probe:
        job.step()
    assert probe.state.layers == tuple(range(shape.layers + 1))
    assert int(probe.state.sentence.count[0].sum()) == shape.batch

    # Attached throughout, as in a job: where the layers are is found once.
    probe.attach()
    job.step()

    def counted() -> None:
        probe.resume()
        job.step()

    def paused() -> None:
        probe.pause()
        job.step()

    def bare() -> None:
        watched = job.model.__dict__.pop("forward")
        job.step()
        job.model.forward = watched

    kinds = {"bare": bare, "paused": paused, "counted": counted}
    probe.own_seconds = 0.0
    rounds = [{name: _processor_seconds(step) for name, step in kinds.items()} for _ in range(ROUNDS)]
    seconds = {name: min(times[name] for times in rounds) for name in kinds}
    own_seconds = probe.own_seconds / ROUNDS
    probe.detach()
    benchmark.pedantic(job.step, rounds=2)
    torch.set_num_threads(before)
    averaged = (seconds["counted"] + (DEFAULT_RATE - 1) * seconds["paused"]) / DEFAULT_RATE
    report(
        tokens=shape.batch * shape.tokens,
        bare_step_seconds=seconds["bare"],
        times_bare_step_off=seconds["paused"] / seconds["bare"],
        times_bare_step_every_step=seconds["counted"] / seconds["bare"],
        target_times_bare_step_every_step=shape.most_every_step,
        own_time_of_a_counted_step=own_seconds / seconds["bare"],
        default_rate=DEFAULT_RATE,
        own_time_at_the_default_rate=own_seconds / seconds["bare"] / DEFAULT_RATE,
        times_bare_step_at_the_default_rate=averaged / seconds["bare"],
        target_times_bare_step_at_the_default_rate=1.01,
    )


def _processor_seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start
