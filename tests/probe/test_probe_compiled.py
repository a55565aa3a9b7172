"""Blocks that are compiled, each for itself, before or after a probe comes to the model: their layers are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from cone_kernels.probe.cone_probe import ConeProbe
from tests.probe.test_probe import hooks_of
from tests.support.recording_probe import RecordingProbe, hidden_states
from tests.support.tiny_models import tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compile_in_place(model: nn.Module) -> None:
    for block in model.encoder.layer:  # type: ignore[union-attr]
        block.compile(backend="eager")


def compile_forwards(model: nn.Module) -> None:
    for block in model.encoder.layer:  # type: ignore[union-attr]
        block.forward = torch.compile(block.forward, backend="eager")


def replace_blocks(model: nn.Module) -> None:
    layers = model.encoder.layer
    for at, block in enumerate(layers):  # type: ignore[arg-type]
        layers[at] = torch.compile(block, backend="eager")  # type: ignore[index, operator]


@pytest.mark.parametrize("how", [compile_in_place, compile_forwards, replace_blocks])
@pytest.mark.parametrize(
    ("when", "training"),
    [
        ("before the probe", False),
        ("before a forward", True),
        pytest.param("before the probe", True, marks=pytest.mark.slow),
        pytest.param("between forwards", False, marks=pytest.mark.slow),
    ],
)
def test_layers_of_compiled_blocks(how: Callable[[nn.Module], None], when: str, training: bool) -> None:
    settings = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain = tiny_model("bert", **settings).train(training)
    batches = [tiny_batch(seed=seed) for seed in (1, 2, 3)]
    wanted = [hidden_states(plain, batch) for batch in batches]
    model = tiny_model("bert", **settings).train(training)
    before = [hooks for name, *hooks in hooks_of(model)]
    if when == "before the probe":
        how(model)
    probe = RecordingProbe(model).attach()
    if when == "before a forward":
        how(model)
    outputs = []
    for at, batch in enumerate(batches):
        if when == "between forwards" and at == 1:
            how(model)
            probe.detach()
            probe.attach()
        outputs.append(model(**batch).last_hidden_state)
    probe.detach()
    for at, states in enumerate(wanted):
        assert torch.equal(outputs[at], states[-1])
        for layer, state in enumerate(states):
            assert torch.equal(probe.added[layer][at], state), (at, layer)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    if how is compile_in_place:
        assert [hooks for name, *hooks in hooks_of(model)] == before


def test_a_block_compiled_in_place_between_two_forwards_is_seen_all_the_same() -> None:
    model = tiny_model("bert", num_hidden_layers=2)
    batch = tiny_batch()
    wanted = hidden_states(tiny_model("bert", num_hidden_layers=2), batch)
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**batch)
        compile_in_place(model)
        compiled = [block._compiled_call_impl for block in model.encoder.layer]  # type: ignore[union-attr]
        for _ in range(2):
            model(**batch)
            assert [block._compiled_call_impl for block in model.encoder.layer] == compiled  # type: ignore[union-attr]
    for layer, state in enumerate(wanted):
        assert all(torch.equal(added, state) for added in probe.added[layer])
        assert len(probe.added[layer]) == 3


@pytest.mark.parametrize("in_place", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_part_compiled_around_its_blocks_cannot_be_seen_into(in_place: bool) -> None:
    model = tiny_model("bert", num_hidden_layers=2)
    wanted = hidden_states(model, tiny_batch())[-1]
    if in_place:
        model.encoder.compile(backend="eager")  # type: ignore[operator]
    else:
        model.encoder = torch.compile(model.encoder, backend="eager")
    with ConeProbe(model, errors="skip") as probe, torch.no_grad():
        assert torch.equal(model(**tiny_batch()).last_hidden_state, wanted)
    assert probe.n_sentences == 0
    (reason,) = probe.skipped
    assert "a part of BertModel around its submodule 'encoder." in reason
