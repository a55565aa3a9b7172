"""The short forward by which layers are looked for: what it is called with, what it leaves, what it records."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from cone_kernels.probe.calibration import (
    Event,
    Recording,
    _classes_before_sharding,
    _on_host,
    _quiet_forward,
    _short_call,
    as_tuple,
    calibrating,
    record_forward,
)
from tests.support.tiny_models import ToyModel

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(4, 24).reshape(2, 10)
ONES = torch.ones(2, 10, dtype=torch.int64)


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules())


class Takes(nn.Module):
    """Has a signature and a configuration, and does nothing."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)

    def forward(self, output_hidden_states: bool = False, **rest: Any) -> None: ...


class TakesReturnDict(Takes):
    def forward(self, output_hidden_states: bool = False, return_dict: bool = True, **rest: Any) -> None: ...


class TakesAny(Takes):
    def forward(self, **rest: Any) -> None: ...


class TakesNoMore(Takes):
    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> None: ...


def plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in kwargs.items()}


HIDDEN_STATES = {"output_hidden_states": True}


@pytest.mark.parametrize(
    ("model", "arguments", "wanted"),
    [
        (Takes(), {"input_ids": IDS}, {"input_ids": [[4, 5, 6, 7, 8, 9, 10, 11]]}),
        (TakesNoMore(), {"input_ids": IDS[:, :3]}, {"input_ids": [[4, 5, 6]]}),
        (TakesAny(), {"input_ids": IDS[:, :3]}, {"input_ids": [[4, 5, 6]]}),
        # The tokens that count; with them a mask, where the call has one of any shape.
        (
            Takes(),
            {"input_ids": IDS, "attention_mask": (IDS > 5).long()},
            {"input_ids": [[6, 7, 8, 9, 10, 11, 12, 13]], "attention_mask": [[1] * 8]},
        ),
        (
            Takes(),
            {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 10, 10)},
            {"input_ids": [[4, 5, 6, 7, 8, 9, 10, 11]], "attention_mask": [[1] * 8]},
        ),
        # Of one token (B, T, D) and (T, B, D) look alike.
        (Takes(), {"input_ids": IDS[:, :1]}, {"input_ids": [[4, 4]]}),
        (
            Takes(),
            {"input_ids": IDS, "attention_mask": (IDS == 6).long()},
            {"input_ids": [[6, 6]], "attention_mask": [[1, 1]]},
        ),
        (Takes(), {"inputs_embeds": IDS[:, :2, None]}, {"inputs_embeds": [[[4], [5]]]}),
        (
            Takes(),
            {"inputs_embeds": IDS[..., None], "attention_mask": (IDS > 11).long()},
            {"inputs_embeds": [[[12], [13]]], "attention_mask": [[1, 1]]},
        ),
        (TakesReturnDict(), {"input_ids": IDS[:, :2]}, {"input_ids": [[4, 5]], "return_dict": True}),
        (Takes(return_dict=False), {"input_ids": IDS[:, :2]}, {"input_ids": [[4, 5]], "return_dict": True}),
        (Takes(return_dict=True), {"input_ids": IDS[:, :2]}, {"input_ids": [[4, 5]]}),
        (TakesNoMore(return_dict=False), {"input_ids": IDS[:, :2]}, {"input_ids": [[4, 5]]}),
        # What the decoder takes, of an encoder-decoder model alone.
        (Takes(), {"input_ids": IDS[:, :2], "labels": IDS}, {"input_ids": [[4, 5]]}),
        (
            Takes(is_encoder_decoder=True),
            {"input_ids": IDS[:, :2], "labels": IDS, "decoder_input_ids": IDS[:, :3], "decoder_inputs_embeds": None},
            {
                "input_ids": [[4, 5]],
                "labels": [[4, 5, 6, 7, 8, 9, 10, 11]],
                "decoder_input_ids": [[4, 5, 6]],
            },
        ),
    ],
)
def test_the_call_on_the_first_tokens(model: nn.Module, arguments: dict[str, Any], wanted: dict[str, Any]) -> None:
    kwargs, n_tokens = _short_call(model, arguments)
    assert plain(kwargs) == {**wanted, **HIDDEN_STATES}
    assert n_tokens == len(next(iter(wanted.values()))[0])


@pytest.mark.parametrize(
    ("model", "arguments", "wanted"),
    [
        (Takes(), {"pixel_values": ONES}, {"pixel_values": [[1] * 10]}),
        (TakesReturnDict(), {"pixel_values": ONES}, {"pixel_values": [[1] * 10], "return_dict": True}),
        (
            Takes(),
            {
                "pixel_values": torch.zeros(2, 1, 1, 1),
                "spatial_shapes": torch.tensor([[3, 4], [5, 6]]),
                "lengths": torch.tensor([3, 4]),
                "of_three": torch.zeros(3, 1),
                "temperature": torch.tensor(2.0),
                "interpolate_pos_encoding": True,
                "size": 7,
                "scale": 0.5,
                "kind": "image",
                "nothing": None,
                "several": [1],
                "output_attentions": True,
            },
            {
                "pixel_values": [[[[0.0]]]],
                "spatial_shapes": [[3, 4]],
                "lengths": [3],
                "interpolate_pos_encoding": True,
                "size": 7,
                "scale": 0.5,
                "kind": "image",
            },
        ),
        # The padding of a wave goes with the rest of it; that of other inputs stays.
        (
            Takes(),
            {"input_values": IDS, "attention_mask": 0 * ONES, "speaker": torch.tensor([2, 3])},
            {"input_values": [list(range(4, 14))], "attention_mask": [[1] * 10], "speaker": [2]},
        ),
        (
            Takes(),
            {"input_features": ONES[..., None], "attention_mask": 0 * ONES},
            {"input_features": [[[1]] * 10], "attention_mask": [[0] * 10]},
        ),
    ],
)
def test_the_call_on_the_first_image_or_sound(
    model: nn.Module, arguments: dict[str, Any], wanted: dict[str, Any]
) -> None:
    kwargs, n_tokens = _short_call(model, arguments)
    assert plain(kwargs) == {**wanted, **HIDDEN_STATES}
    assert n_tokens is None


def test_two_seconds_of_a_wave_are_enough() -> None:
    waves = torch.zeros(1, 40_000)
    kwargs, _ = _short_call(Takes(), {"input_values": waves, "attention_mask": waves, "labels": waves[:, :9]})
    sizes = {name: tuple(value.shape) for name, value in kwargs.items() if isinstance(value, Tensor)}
    assert sizes == {"input_values": (1, 32_768), "attention_mask": (1, 32_768), "labels": (1, 9)}
    kwargs, _ = _short_call(Takes(), {"input_features": waves[..., None]})
    assert kwargs["input_features"].shape == (1, 40_000, 1)  # frames are all taken


@pytest.mark.parametrize("name", ["input_ids", "pixel_values"])
def test_inference_tensors_are_cloned_into_plain_ones(name: str) -> None:
    with torch.inference_mode():
        kwargs, _ = _short_call(Takes(), {name: ONES.clone(), "attention_mask": ONES.clone()})
    assert not any(value.is_inference() for value in kwargs.values() if isinstance(value, Tensor))


def test_models_that_show_no_layers_of_their_own_are_refused() -> None:
    class OfIds(nn.Module):
        def forward(self, input_ids: Tensor) -> None: ...

    with pytest.raises(RuntimeError) as refused:
        _short_call(OfIds(), {"input_ids": IDS})
    assert str(refused.value) == (
        "model: OfIds.forward takes no output_hidden_states, by which the probe finds the layers; probe the Hugging "
        "Face model inside it (of a SentenceTransformer: model[0].auto_model)"
    )
    towers = Takes()
    towers.get_text_features = towers.get_image_features = None
    assert _short_call(towers, {"input_ids": IDS})[1] == 8  # of no towers
    towers = Takes()
    towers.text_model = towers.vision_model = nn.Identity()
    assert _short_call(towers, {"input_ids": IDS})[1] == 8  # it takes more than the modules
    towers.get_text_features = None  # type: ignore[assignment]
    assert _short_call(towers, {"input_ids": IDS})[1] == 8
    towers.get_image_features = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError) as refused:
        _short_call(towers, {"input_ids": IDS})
    assert str(refused.value) == (
        "model: Takes has a tower of texts and one of images, each with layers of its own; probe one of them, "
        "model.text_model or model.vision_model"
    )


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"input_ids": IDS[:, :4]}, "4 tokens of the first row, with ['input_ids', 'output_hidden_states']"),
        (
            {"pixel_values": IDS, "return_loss": False},
            "the first row, with ['output_hidden_states', 'pixel_values', 'return_loss']",
        ),
    ],
)
def test_a_calibration_that_fails_says_what_it_was(arguments: dict[str, Any], what: str) -> None:
    model = Takes()

    def fail(**_: Any) -> None:
        raise KeyError("weights")

    with pytest.raises(RuntimeError) as refused:
        record_forward(model, arguments, modules_of(model), fail)
    assert str(refused.value) == (
        f"model: Takes cannot be probed: a calibration forward on {what}, failed with KeyError: 'weights'"
    )

    def fill_up(**_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):  # which callers look for
        record_forward(model, arguments, modules_of(model), fill_up)


@pytest.mark.parametrize("fails", [False, True])
def test_a_quiet_forward_leaves_everything_as_it_was(fails: bool) -> None:
    model = ToyModel().train()
    model.blocks[1].eval()
    model.blocks[0].asked = False  # type: ignore[assignment]
    kept = model.blocks[0].register_forward_hook(lambda *_: None)
    flags = [module.training for module in model.modules()]
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    inside: list[Any] = []

    def work() -> None:
        with torch.inference_mode(), _quiet_forward(model):
            inside.append((calibrating.get(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            inside.append({module.training for module in model.modules()})
            torch.rand(9)
            for module in model.blocks:
                module.register_forward_hook(lambda *_: None)
                module.register_forward_hook(lambda *_: None, with_kwargs=True, always_call=True)
                module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
                module.left_behind = True  # type: ignore[assignment]
            model.blocks[0].asked = True  # type: ignore[assignment]
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            work()
    else:
        work()
    assert inside == [(True, False, False), {False}]
    assert not calibrating.get()
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.rand(3), wanted)
    for at, module in enumerate(model.blocks):
        assert list(module._forward_hooks) == [kept.id] * (at == 0)
        for rest in (
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
            module._forward_pre_hooks,
            module._forward_pre_hooks_with_kwargs,
        ):
            assert not rest
        assert "left_behind" not in vars(module)
    assert model.blocks[0].asked is False


def test_the_random_state_of_each_device_of_a_model_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ["cuda:1", "cpu", "meta", "cuda:0", "xpu:0", "cuda:1"]
    weights, buffers = (
        [SimpleNamespace(device=torch.device(place)) for place in some] for some in (places[:3], places[3:])
    )
    model = ToyModel()
    monkeypatch.setattr(model, "parameters", lambda: iter(weights))
    monkeypatch.setattr(model, "buffers", lambda: iter(buffers))
    aside: list[tuple[str, set[str]]] = []

    def fork_rng(devices: list[torch.device], device_type: str = "cpu") -> nullcontext[None]:
        aside.append((device_type, set(map(str, devices))))
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with _quiet_forward(model):
        assert aside == [("cpu", set()), ("cuda", {"cuda:0", "cuda:1"}), ("xpu", {"xpu:0"})]


def test_what_is_on_the_cpu_is_not_copied() -> None:
    rows = torch.ones(3, 2)
    assert _on_host({5: rows})[5] is rows


@pytest.mark.parametrize("fails", [False, True])
def test_a_sharded_model_has_the_class_it_was_written_as_meanwhile(fails: bool) -> None:
    model = ToyModel()
    sharded = type("FSDPToyModel", (FSDPModule, ToyModel), {})
    model.__class__ = sharded
    try:
        with _classes_before_sharding(model):
            assert type(model) is ToyModel
            assert type(model.blocks[0]) is nn.Linear
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert type(model) is sharded


def test_a_quiet_forward_runs_a_model_as_it_was_written() -> None:
    """Without what is sharded, or compiled in place."""
    model = ToyModel()
    model.__class__ = sharded = type("FSDPToyModel", (FSDPModule, ToyModel), {})
    vars(model.blocks[0])["_compiled_call_impl"] = compiled = model.blocks[0].forward
    with _quiet_forward(model):
        assert type(model) is ToyModel
        assert vars(model.blocks[0])["_compiled_call_impl"] is None
    assert type(model) is sharded
    assert vars(model.blocks[0])["_compiled_call_impl"] is compiled


class ReturnsMore(nn.Linear):
    """A block that takes and returns more than its layer."""

    def forward(self, given: tuple[Any, ...], *, beside: Any) -> Any:  # type: ignore[override]
        return super().forward(given[0]), torch.zeros(()), torch.zeros(5), [torch.zeros(1, 2, 8)], "name"


def test_layers_are_looked_for_among_tensors_of_floats_with_rows() -> None:
    """In what a module takes up to three levels deep, in what it returns in one."""
    block, hidden = ReturnsMore(8, 8), torch.ones(1, 2, 8)
    endless: list[Any] = [torch.ones(1, 3, 8)]
    endless.append(endless)
    beside = {"ids": torch.ones(1, 2, dtype=torch.int64), "scale": torch.ones(()), "vector": torch.ones(8)}
    beside["packed"] = torch.ones(6, 9)
    three, four = {"deep": torch.ones(1, 4, 8)}, {"deeper": [torch.ones(1, 5, 8)]}

    def forward(**_: Any) -> Any:
        return {
            "hidden": block((hidden, "text"), beside=beside | three | four)[0],
            "more": block((endless[0], endless), beside=0)[0],
        }

    recording, _, _ = record_forward(Takes(), {"input_ids": IDS}, {"": block, "block": block}, forward)
    found = [(event.module, event.kind, event.call, event.path, event.tensor.shape[1]) for event in recording.events]
    assert found == [
        ("block", "input", 0, (0, 0, 0), 2),
        ("block", "input", 0, (1, "beside", "packed"), 9),
        ("block", "input", 0, (1, "beside", "deep"), 4),
        ("block", "output", 0, (0,), 2),
        ("block", "input", 1, (0, 0, 0), 3),
        ("block", "output", 1, (0,), 3),
        ("", "output", 0, (0,), 2),
    ]
    assert recording.calls == {"block": 2, "": 1}
    assert [event.started for event in recording.events] == [2, 2, 2, 2, 7, 7, 1]
    assert [event.seen for event in recording.events] == [3, 4, 5, 6, 8, 9, 10]


def test_the_first_value_of_an_output_is_its_hidden_states() -> None:
    first, second = torch.ones(1), torch.ones(2)
    assert as_tuple({"last_hidden_state": first, "pooler_output": second}) == (first,)
    assert as_tuple((first, second)) == (first, second)
    assert as_tuple(first) is first


def event(tensor: Tensor) -> Event:
    return Event("blocks.0", "output", 0, (), 0, 0, tensor, tensor, 0)


def test_a_tensor_that_begins_with_another() -> None:
    whole = torch.zeros(2, 6, 8)
    assert event(whole[:1]).begins_with(whole[:1, :5])
    for other in (
        whole[:1],  # nothing comes after
        whole[:1, 1:5],
        whole[:1, :5].clone(),
        whole[:1, :5, :4],
        whole[:, :5],
        whole[0, :5],
        whole[:1, :5].double(),
    ):
        assert not event(whole[:1]).begins_with(other)
    assert not event(whole[0]).begins_with(whole[0, :, :5])
    halves = torch.zeros(1, 6, 8, dtype=torch.float16)
    assert not event(halves).begins_with(halves.view(torch.bfloat16)[:, :5])
    assert not event(whole[0]).begins_with(whole[:1, :5])
    assert not event(whole[:1, ::2]).begins_with(whole[:1, :2])
    assert not event(whole[:1, :5]).begins_with(whole[:1])


def test_what_was_kept_is_told_by_how_often_torch_wrote_and_by_the_numbers() -> None:
    recording = Recording()

    def kept(change: str) -> tuple[bool, bool]:
        tensor = torch.ones(1, 3, 2)
        tensor[0, 0, 0] = torch.nan
        seen = recording.add("m", "output", 0, (), recording.tick(), tensor)
        if change == "written":
            tensor.add_(0)
        elif change == "written behind torch's back":
            tensor.data[0, 2, 1] = 5
        elif change == "no number":
            tensor.data[0, 2, 1] = torch.nan
        recording.fetch([tensor])
        return recording.was_kept(seen, tensor), recording.has_value_of(seen, tensor)

    assert kept("nothing") == (True, True)
    assert kept("written") == (False, True)
    assert kept("written behind torch's back") == (False, False)
    assert kept("no number") == (False, False)
    other = torch.ones(1, 4, 2)
    recording.fetch([other])
    assert not recording.has_value_of(recording.events[0], other)


def test_of_many_rows_some_are_compared() -> None:
    for n, step in ((3, 1), (64, 1), (127, 1), (128, 2), (1000, 15)):
        rows = torch.arange(2.0 * n).reshape(1, n, 2)
        assert torch.equal(Recording().add("m", "output", 0, (), 0, rows).value, rows[0, ::step])
