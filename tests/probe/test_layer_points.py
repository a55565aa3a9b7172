"""Layers whose memory changes, is copied, packed or shrinks: read where it is right, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels.probe.cone_probe import ConeProbe
from tests.support.recording_probe import RecordingProbe, assert_statistics_of, hidden_states
from tests.support.tiny_models import ToyModel, tiny_batch

pytestmark = pytest.mark.usefixtures("one_thread")


class AddsInPlace(ToyModel):
    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden.add_(1.0)  # the last block's output changes after its hook: no submodule sees the final value


class AddsInPlaceUnseen(ToyModel):
    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        hidden.data.add_(1.0)  # does not count as a change for autograd
        return hidden


class MasksInPlace(ToyModel):
    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden.mul_(1.0)  # changes no number of the calibration, as a mask of ones does not


@pytest.mark.parametrize("kind", [AddsInPlace, AddsInPlaceUnseen, MasksInPlace])
def test_values_written_in_place_are_read_where_they_are_final(kind: type[ToyModel]) -> None:
    model = kind()
    batch = tiny_batch()
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**batch)
    states = hidden_states(model, batch)
    assert all(torch.equal(probe.added[layer][0], state) for layer, state in enumerate(states))
    assert probe.layer_names == ("embeddings", "input of blocks.1", "input of blocks.2", "output of the model")


class HidesLast(AddsInPlace):
    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        output = super().forward(input_ids, *args, **kwargs)
        return {"logits": output["last_hidden_state"].sum(-1, keepdim=True)} | {
            name: value for name, value in output.items() if name == "hidden_states"
        }


def test_a_value_that_is_final_nowhere_is_refused() -> None:
    model = HidesLast()
    with pytest.raises(RuntimeError, match="layer 3 of the hidden_states of HidesLast"), ConeProbe(model):
        model(**tiny_batch(), output_hidden_states=False)


class Copies(ToyModel):
    def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden.clone()


def test_a_tuple_of_copies_is_matched_by_value() -> None:
    model = Copies()
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
    for layer, state in enumerate(hidden_states(model, tiny_batch())):
        assert torch.equal(probe.added[layer][0], state)
    assert probe.layer_names == ("embeddings", "blocks.0", "blocks.1", "output of the model")


class Unpads(ToyModel):
    """Blocks run on the tokens under the mask alone, (N, D); the tuple is padded again."""

    def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[mask.bool()]

    def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
        padded = hidden.new_zeros(*mask.shape, hidden.shape[-1])
        padded[mask.bool()] = hidden
        return padded


@pytest.mark.parametrize("padding", ["left", "right"])
def test_packed_hidden_states(padding: str) -> None:
    model = Unpads()
    batch = tiny_batch(padding)
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**batch)
    assert probe.added[2][0].shape == (int(batch["attention_mask"].sum()), 8)
    assert_statistics_of(probe.state, [(hidden_states(model, batch), batch["attention_mask"])])


def test_packed_rows_that_do_not_fit_the_mask_are_refused() -> None:
    model = Unpads()
    batch = tiny_batch()
    n = int(batch["attention_mask"].sum())
    with ConeProbe(model) as probe, torch.no_grad():
        probe.next_batch(mask=torch.ones(5, 7, dtype=torch.int64))
        with pytest.raises(ValueError, match=rf"got hidden states of shape \({n}, 8\); it must be \(35, D\)"):
            model(**batch)


class Shrinks(ToyModel):
    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden[:, ::2].contiguous() if index == 1 else hidden


def test_layers_with_fewer_vectors_than_tokens_are_refused() -> None:
    model = Shrinks()
    with (
        pytest.raises(RuntimeError, match=r"layer 2 .* has shape \(1, 4, 8\) for a batch of \(1, 7\)"),
        ConeProbe(model),
    ):
        model(**tiny_batch())
