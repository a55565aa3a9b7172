"""Forwards that stop, probes used again, and models that cannot be probed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.gathered import Skipped
from tests.support.recording_probe import probed, same
from tests.support.tiny_models import ToyModel, tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def breaks_down(model: nn.Module) -> dict[str, bool]:
    """Makes the second block fail while the switch that is returned is on."""
    broken = {"now": False}

    def break_down(module: nn.Module, args: Any) -> None:
        if broken["now"]:
            raise MemoryError("no room")

    model.encoder.layer[1].register_forward_pre_hook(break_down)  # type: ignore[union-attr]
    return broken


def test_a_forward_that_stops_half_way_is_in_no_sum() -> None:
    model = tiny_model("bert")
    wanted = probed(model, tiny_batch(seed=2))
    broken = breaks_down(model)
    with ConeProbe(model) as probe, torch.no_grad():
        model(**tiny_batch(seed=2))
        broken["now"] = True
        with pytest.raises(MemoryError):
            model(**tiny_batch())
        broken["now"] = False
        assert same(probe.state, wanted)
        model(**tiny_batch())
    assert same(probe.state, probed(model, tiny_batch(seed=2), tiny_batch()))


def test_one_whose_layers_were_added_is_not_passed_over() -> None:
    model = tiny_model("bert")
    broken = breaks_down(model)
    with ConeProbe(model) as probe:  # with gradients, where layers do not wait
        model(**tiny_batch(seed=2))
        broken["now"] = True
        with pytest.raises(MemoryError):
            model(**tiny_batch())
        broken["now"] = False
        for use in (lambda: probe.state, lambda: model(**tiny_batch())):
            with pytest.raises(RuntimeError, match=r"stopped after layers \[0, 1\] had been added.*reset\(\)"):
                use()
        probe.reset()
        with pytest.raises(RuntimeError, match="no forward of BertModel has been seen"):
            _ = probe.state
        model(**tiny_batch())
        model(**tiny_batch(seed=2))
    assert same(probe.state, probed(model, tiny_batch(), tiny_batch(seed=2)))


def test_two_probes_on_one_model() -> None:
    model = tiny_model("llama")
    with ConeProbe(model) as outer, torch.no_grad():
        model(**tiny_batch())
        with ConeProbe(model, before_final_norm=True) as inner:
            model(**tiny_batch(seed=2))
        model(**tiny_batch(seed=3))
    assert same(outer.state, probed(model, *(tiny_batch(seed=seed) for seed in (1, 2, 3))))
    assert same(inner.state, probed(model, tiny_batch(seed=2), before_final_norm=True))


def test_probes_left_in_any_order() -> None:
    model = tiny_model("bert")
    model.forward = model.forward  # as accelerate leaves it: an attribute of the instance
    own = model.forward
    first, second, third = (ConeProbe(model) for _ in range(3))
    for probe in (first, second, third):
        probe.__enter__()
    for seed, left in enumerate((second, third, first)):
        model(**tiny_batch(seed=seed))
        left.__exit__(None, None, None)
    assert model.__dict__["forward"] is own
    batches = [tiny_batch(seed=seed) for seed in range(3)]
    assert same(second.state, probed(model, *batches[:1]))
    assert same(third.state, probed(model, *batches[:2]))
    assert same(first.state, probed(model, *batches))


def test_a_forward_wrapped_by_others_while_probed_runs_plainly_afterwards() -> None:
    model = tiny_model("bert")
    with ConeProbe(model) as probe, torch.no_grad():
        watched = model.forward
        model.forward = lambda *args, **kwargs: watched(*args, **kwargs)
        model(**tiny_batch())
    model(**tiny_batch(seed=2))
    assert same(probe.state, probed(tiny_model("bert"), tiny_batch()))


def test_a_probe_used_again_goes_on() -> None:
    model = tiny_model("bert")
    with ConeProbe(model) as probe:
        model(**tiny_batch())
        with pytest.raises(RuntimeError, match="already attached"):
            probe.__enter__()
    model(**tiny_batch(seed=3))  # outside: not seen
    with probe:
        model(**tiny_batch(seed=2))
    assert same(probe.state, probed(model, tiny_batch(), tiny_batch(seed=2)))


def test_a_model_inside_a_larger_one() -> None:
    classifier = tiny_model("bert", model_class="BertForSequenceClassification")
    with ConeProbe(classifier.bert) as probe, torch.no_grad():
        classifier(**tiny_batch())
    assert probe.layer_names[0] == "embeddings"
    assert same(probe.state, probed(classifier.bert, tiny_batch()))


def test_skipped_blocks_are_found_out() -> None:
    model = tiny_model("bart", encoder_layerdrop=1.0).train()
    with pytest.raises(RuntimeError, match="BartModel: no hook fired for any layer"), ConeProbe(model):
        model(**tiny_batch())
    model = ToyModel()
    with ConeProbe(model), torch.no_grad():
        model(**tiny_batch())
        last = model.blocks[2]
        model.blocks[2] = nn.Identity()
        with pytest.raises(RuntimeError, match=r"hook firing for layers 3 \(blocks.2\).*call reset\(\)"):
            model(**tiny_batch())
        model.blocks[2] = last
        with pytest.raises(RuntimeError, match=r"stopped after layers \[0, 1, 2\]"):
            model(**tiny_batch())


def test_a_module_that_runs_more_often_than_at_first_is_found_out() -> None:
    model = ToyModel()
    with ConeProbe(model), torch.no_grad():
        model(**tiny_batch())
        model.blocks.append(model.blocks[0])
        with pytest.raises(RuntimeError, match=r"'blocks.0' ran 2 times in this forward and 1 times in the first"):
            model(**tiny_batch())


def test_a_probe_that_saw_nothing_says_so() -> None:
    model = tiny_model("bert")
    probe = ConeProbe(model)
    for name in ("state", "layer_names", "final_norm"):
        with pytest.raises(RuntimeError, match=f"{name}: .*BertModel"):
            getattr(probe, name)
    with pytest.raises(RuntimeError, match=r"saw no forward of BertModel.*_orig_mod"), probe:
        model.encoder(torch.zeros(1, 2, 32))
    with pytest.raises(KeyError), probe:
        raise KeyError


def test_compiled_models_are_refused() -> None:
    model = tiny_model("bert")
    with pytest.raises(RuntimeError, match=r"BertModel|OptimizedModule.*torch.compile.*model._orig_mod"):
        ConeProbe(torch.compile(model, backend="eager"))
    model.encoder.compile(backend="eager")
    around = r"a part of BertModel around its submodule 'encoder.layer.\d' was compiled in place"
    with pytest.raises(RuntimeError, match=around), ConeProbe(model):
        model(**tiny_batch())
    model = tiny_model("bert")
    probe = ConeProbe(model)
    model.compile(backend="eager")
    with pytest.raises(RuntimeError, match="BertModel was compiled in place"), probe:
        pass


def test_a_compiled_twin_called_in_place_of_the_model_is_found_out() -> None:
    model = ToyModel()
    compiled = torch.compile(model, backend="eager")
    compiled(**tiny_batch())
    with (
        pytest.raises(RuntimeError, match=r"the probe saw no forward of ToyModel.*model\._orig_mod"),
        ConeProbe(model),
    ):
        compiled(**tiny_batch())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_what_is_no_hugging_face_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model: got str; it must be a torch\.nn\.Module"):
        ConeProbe("bert")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="scripted"):
        ConeProbe(torch.jit.script(nn.Linear(2, 2)))

    class NoSwitch(nn.Embedding):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(input_ids)

    class NoStates(NoSwitch):
        def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> Tensor:
            return super().forward(input_ids)

    class Fails(NoSwitch):
        def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> Tensor:
            raise KeyError("position_ids")

    ids = tiny_batch()["input_ids"]
    for model, wanted in (
        (NoSwitch(100, 4), "NoSwitch.forward takes no output_hidden_states"),
        (NoStates(100, 4), "NoStates cannot be probed.*returned Tensor without hidden_states"),
        (Fails(100, 4), "Fails cannot be probed: a calibration forward on 7 tokens.*KeyError: 'position_ids'"),
    ):
        with pytest.raises(RuntimeError, match=wanted), ConeProbe(model):
            model(ids)


def test_data_parallel_over_devices_is_refused() -> None:
    parallel = nn.DataParallel(tiny_model("bert"))
    parallel.device_ids = [0, 1]
    with pytest.raises(RuntimeError, match="DataParallel over 2 devices"):
        ConeProbe(parallel)


def test_no_tokens() -> None:
    model = tiny_model("t5")
    encoded = SimpleNamespace(last_hidden_state=torch.zeros(2, 3, 32))
    with ConeProbe(model), pytest.raises(ValueError, match="input_ids or inputs_embeds: got none"):
        model(encoder_outputs=encoded, decoder_input_ids=torch.zeros(2, 3, dtype=torch.int64))


def test_sixteen_reasons_are_told_apart_and_each_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    skipped = Skipped("a forward is not counted")
    for letter in "abcdefghijklmnopqr":
        for number in (1, 22):
            skipped.note(ValueError(f"{letter}: got {number}"))
    assert skipped.counts == {**{f"{letter}: got #": 2 for letter in "abcdefghijklmnop"}, "other": 4}
    assert len(caplog.records) == 17
    skipped.note(ValueError("a: got 3"), lost=5)  # what is lost is said each time
    assert "a: got 3; 5 sentences that were in the same sums are lost with it" in caplog.text


def test_layers_that_are_chosen_are_gathered_and_each_is_chosen_once() -> None:
    model = tiny_model("bert")
    with ConeProbe(model, layers=[1, -1]) as probe, torch.no_grad():
        model(**tiny_batch())
    every = probed(model, tiny_batch())
    last = every.layers[-1]
    assert list(probe.state.layers) == [1, last]
    assert probe.state.sentence.unit_sum.equal(every.sentence.unit_sum[[1, last]])
    for layers in ([], [1, 1]):
        with pytest.raises(ValueError, match=r"layers: got \[.*\]; it must be one layer or more, each once"):
            ConeProbe(model, layers=layers)
