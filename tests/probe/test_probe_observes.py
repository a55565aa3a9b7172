"""A probe that skips what it cannot count: the job goes on, and so does the model, whatever happened in a forward."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import logging
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from cone_kernels.probe.cone_probe import ConeProbe
from tests.probe.test_probe import hooks_of
from tests.support.recording_probe import probed, same
from tests.support.tiny_models import ToyModel, tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def outputs(model: nn.Module, batch: dict[str, Tensor] | None = None) -> Tensor:
    with torch.no_grad():
        return model(**(batch or tiny_batch()))["last_hidden_state"]


@pytest.mark.parametrize(
    ("architecture", "model_class", "n_sentences"),
    [
        ("t5", "T5ForConditionalGeneration", 0),
        ("bart", "BartForConditionalGeneration", 0),
        ("llama", "LlamaForCausalLM", 5),
        ("gpt2", "GPT2LMHeadModel", 5),
    ],
)
def test_generation_goes_on(
    architecture: str, model_class: str, n_sentences: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(architecture, model_class=model_class)
    options = {"max_new_tokens": 4, "do_sample": False}
    wanted = model.generate(**tiny_batch("left"), **options)
    with caplog.at_level(logging.WARNING), ConeProbe(model, errors="skip") as probe:
        assert torch.equal(model.generate(**tiny_batch("left"), **options), wanted)
    # Of a decoder the prompts are whole sentences; of an encoder-decoder model only the encoder takes those in.
    assert probe.n_sentences == n_sentences
    assert [count for reason, count in probe.skipped.items() if "got a cache with earlier tokens" in reason] == [3]
    assert [count for reason, count in probe.skipped.items() if "got none" in reason] == [1] * (n_sentences == 0)
    said = [re.sub(r"\d+", "#", record.message) for record in caplog.records if "is not counted" in record.message]
    assert [message.partition("is not counted: ")[2] for message in said] == [
        f"{why} (said once)" for why in probe.skipped
    ]


def test_a_batch_that_ran_out_of_memory_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("bert")
    full = {"now": False}

    def run_out(*_: Any) -> None:
        if full["now"]:
            raise torch.OutOfMemoryError("no room for 12 bytes")

    model.encoder.layer[1].register_forward_pre_hook(run_out)  # type: ignore[union-attr]
    with ConeProbe(model, errors="skip") as probe:  # with gradients, where layers do not wait
        model(**tiny_batch())
        full["now"] = True
        with pytest.raises(torch.OutOfMemoryError):
            model(**tiny_batch())
        full["now"] = False
        assert probe.n_sentences == 0
        assert "5 sentences that were in the same sums are lost with it" in caplog.text
        model(**tiny_batch(seed=2))
        with torch.no_grad():  # where they wait, only what was running is lost
            full["now"] = True
            with pytest.raises(torch.OutOfMemoryError):
                model(**tiny_batch())
            full["now"] = False
        model(**tiny_batch(seed=3))
    assert same(probe.state, probed(model, tiny_batch(seed=2), tiny_batch(seed=3)))
    assert probe.skipped == {"no room for # bytes": 2}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_a_model_interrupted_in_a_forward_is_what_it_was(error: type[BaseException]) -> None:
    model = tiny_model("bert")
    before, wanted = hooks_of(model), outputs(model)
    probe = ConeProbe(model, errors="skip").attach()
    for layer in model.encoder.layer:  # type: ignore[union-attr]
        with (
            layer.register_forward_hook(lambda *_: (_ for _ in ()).throw(error())),
            contextlib.suppress(error),
        ):
            model(**tiny_batch())
    assert torch.equal(outputs(model), wanted)
    assert probe.n_sentences == 5
    probe.detach()
    assert hooks_of(model) == before
    assert torch.equal(outputs(model), wanted)


@pytest.mark.parametrize(
    "batch",
    [
        {"attention_mask": torch.ones(5, 7)},
        {"attention_mask": torch.full((5, 7), 2)},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1]] * 5)},
    ],
    ids=["float mask", "mask of twos", "packed rows"],
)
def test_batches_that_cannot_be_counted_go_through(batch: dict[str, Tensor]) -> None:
    model = tiny_model("bert")
    ids = tiny_batch()["input_ids"]
    wanted = outputs(model, {"input_ids": ids, **batch})
    with ConeProbe(model, errors="skip") as probe:
        assert torch.equal(outputs(model, {"input_ids": ids, **batch}), wanted)
    assert probe.n_sentences == 0
    assert sum(probe.skipped.values()) == 1
    with ConeProbe(model), pytest.raises(ValueError, match=next(iter(batch))):
        outputs(model, {"input_ids": ids, **batch})


def test_what_goes_wrong_in_the_probe_itself_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert")
    wanted = outputs(model)
    for name in ("_begin_forward", "_take_in", "_end_forward", "_find_layers", "_add_held"):

        def fail(*_: Any, name: str = name, **options: Any) -> None:
            raise AssertionError(name)

        probe = ConeProbe(model, errors="skip").attach()
        with monkeypatch.context() as patch:
            patch.setattr(ConeProbe, name, fail)
            assert torch.equal(outputs(model), wanted)
        probe.detach()
        assert set(probe.skipped) == {name}

    class NoStates(nn.Embedding):
        def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> Tensor:
            return super().forward(input_ids)

    plain = NoStates(100, 4)
    with ConeProbe(plain, errors="skip") as probe:
        assert plain(tiny_batch()["input_ids"]).shape == (5, 7, 4)
    assert "without hidden_states" in next(iter(probe.skipped))


def test_skipping_and_strict_exclude_each_other() -> None:
    for options in ({"errors": "skip", "strict": True}, {"errors": "ignore"}):
        with pytest.raises(ValueError, match="errors: got"):
            ConeProbe(tiny_model("bert"), **options)


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_probed_model_is_a_plain_one(way: str) -> None:
    model = tiny_model("bert")
    before = hooks_of(model)
    with ConeProbe(model) as first, ConeProbe(model) as second, torch.no_grad():
        model(**tiny_batch())
        twin = COPIES[way](model)
        assert vars(twin).keys() == vars(tiny_model("bert")).keys()
        assert hooks_of(twin) == before
        assert torch.equal(outputs(twin), outputs(model))
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        assert not torch.equal(outputs(twin), outputs(model))
        assert first.n_sentences == second.n_sentences == 15
        assert torch.equal(outputs(COPIES[way](twin)), outputs(twin))
    # Calibration leaves nothing that pickle refuses.
    assert hooks_of(model) == before
    assert vars(model).keys() == vars(tiny_model("bert")).keys()
    assert torch.equal(outputs(COPIES[way](model)), outputs(model))


def test_a_shallow_copy_and_one_that_goes_by_the_attributes() -> None:
    model = tiny_model("bert")
    with ConeProbe(model) as probe:
        for twin in (copy.copy(model), type(model).__new__(type(model))):
            if not vars(twin):
                vars(twin).update(copy.deepcopy(vars(model), {id(model): twin}))
            outputs(model)
            n = probe.n_sentences
            assert torch.equal(outputs(twin), outputs(model))
            assert probe.n_sentences == n + 5


@pytest.mark.parametrize("own_forward", [False, True])
def test_a_model_that_was_probed_is_let_go(own_forward: bool) -> None:
    model = tiny_model("bert")
    if own_forward:
        forward = model.forward
        model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with ConeProbe(model) as probe:
        outputs(model)
    there = weakref.ref(model)
    del model, probe
    forward = None
    gc.collect()
    assert there() is None


def test_hidden_states_can_still_be_asked_for() -> None:
    model = tiny_model("bert")
    with ConeProbe(model), torch.no_grad():
        model(**tiny_batch())
        assert model(**tiny_batch(), output_hidden_states=True).hidden_states is not None
    asked = tiny_model("bert")
    with torch.no_grad():
        wanted = asked(**tiny_batch(), output_hidden_states=True).hidden_states
        got = model(**tiny_batch(), output_hidden_states=True).hidden_states
        probed(asked, tiny_batch())
        again = asked(**tiny_batch(), output_hidden_states=True).hidden_states
    assert hooks_of(model) == hooks_of(asked)
    for states in (got, again):
        assert all(torch.equal(a, b) for a, b in zip(states, wanted, strict=True))


@pytest.mark.parametrize("probe_first", [False, True])
def test_accelerate_prepares_and_unwraps(probe_first: bool) -> None:
    results = []
    for watched in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        model = tiny_model("bert")
        probe = ConeProbe(model, errors="skip")
        if watched and probe_first:
            probe.attach()
        prepared = accelerator.prepare(model)
        if watched and not probe_first:
            probe.attach()
        found = [outputs(prepared)]
        assert probe.n_sentences == (5 if watched else 0)
        kept = accelerator.unwrap_model(prepared)
        found.append(outputs(kept))
        plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        found += [outputs(plain), outputs(copy.deepcopy(plain)), outputs(pickle.loads(pickle.dumps(plain)))]
        probe.detach()
        found.append(outputs(plain))
        assert probe.skipped == {}
        results.append(found)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_forwards_of_the_instance_keep_their_signature_and_are_copied() -> None:
    model = ToyModel()
    plain = model.forward
    model.forward = lambda input_ids, attention_mask=None: plain(input_ids, attention_mask, True)  # type: ignore[method-assign]
    own = model.forward
    with ConeProbe(model, errors="skip"):
        assert list(model.state_dict()) == list(ToyModel().state_dict())
        assert copy.deepcopy(model).__dict__["forward"] is own
        assert "hidden_states" in model(tiny_batch()["input_ids"])
    assert model.__dict__["forward"] is own


@pytest.mark.parametrize("when", ["while probed", "afterwards"])
def test_a_model_is_compiled_as_before(when: str) -> None:
    torch._dynamo.reset()
    model = ToyModel()
    wanted = outputs(model)
    probe = ConeProbe(model, errors="skip").attach()
    outputs(model)
    if when == "afterwards":
        probe.detach()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(outputs(compiled), wanted)
    assert torch.equal(outputs(compiled), wanted)
    assert probe.n_sentences == 5
    probe.detach()
    assert torch.equal(outputs(compiled), wanted)
    assert torch.equal(outputs(model), wanted)
