"""A probed model that several threads call: each forward is counted whole, and none of them fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from cone_kernels.probe.cone_probe import ConeProbe
from tests.support.tiny_models import tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def forward(model: nn.Module, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        model(**batch)


def test_four_threads_of_forwards() -> None:
    model, batch = tiny_model("bert"), tiny_batch()
    with ConeProbe(model) as wanted:
        forward(model, batch)
    with ConeProbe(model) as probe, ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(forward, model, batch) for _ in range(24)]:
            done.result()
    for name in ("count", "n_zero", "n_nonfinite", "n_empty"):
        assert torch.equal(probe.state.sentence.sums[name].sum(-1), 24 * wanted.state.sentence.sums[name].sum(-1))
    torch.testing.assert_close(probe.state.sentence.sum, 24 * wanted.state.sentence.sum, rtol=1e-6, atol=1e-6)


def test_a_layer_that_another_thread_runs_is_not_taken_in() -> None:
    model, batch = tiny_model("bert"), tiny_batch()
    embeddings = model.get_input_embeddings()
    others: list[threading.Thread] = []

    def of_another_thread(module: nn.Module, given: object) -> None:
        if not others:  # once, while the probe's hooks are on the layers
            others.append(threading.Thread(target=lambda: run_layers(model)))
            others[0].start()
            others[0].join()

    with ConeProbe(model) as wanted:
        forward(model, batch)
    with ConeProbe(model) as probe:
        forward(model, batch)
        hook = embeddings.register_forward_pre_hook(of_another_thread)
        forward(model, batch)
        hook.remove()
    assert len(others) == 1
    assert torch.equal(probe.state.token.norm_sum, 2 * wanted.state.token.norm_sum)


def run_layers(model: nn.Module) -> None:
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer(torch.ones(2, 3, model.config.hidden_size))
