"""Layers whose memory changes, is copied, packed or shrinks: read where it is right, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cone_kernels.probe.calibration import Path, _same_memory
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.layer_points import LayerPoint
from tests.support.recording_probe import RecordingProbe, assert_statistics_of, hidden_states
from tests.support.tiny_models import ToyModel, tiny_batch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_same_memory() -> None:
    """Of whole tensors it begins alike and has as many rows; of others rows and steps are those too."""
    whole = torch.zeros(4, 6, 8)
    assert _same_memory(whole, whole.view(1, 4, 6, 8))
    assert not _same_memory(whole, whole[:2])
    assert not _same_memory(whole, whole.clone())
    turned = whole.transpose(0, 1)  # (6, 4, 8)
    assert _same_memory(turned, whole.transpose(0, 1))
    assert not _same_memory(turned, whole)
    assert not _same_memory(turned, whole.view(4, 3, 2, 8).transpose(0, 1))
    square = torch.zeros(4, 4, 8)
    assert not _same_memory(square, square.transpose(0, 1))


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


class TurnsBlocks(ToyModel):
    """The embeddings are (B, T, D), and what the blocks take and return is (T, B, D)."""

    def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
        self.embedded = hidden
        return hidden

    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden.transpose(0, 1).contiguous() if index == 0 else hidden

    def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden if hidden is self.embedded else hidden.transpose(0, 1)


def test_layers_that_are_turned_are_told_from_others_of_the_same_shape() -> None:
    model = TurnsBlocks().eval()
    batch = tiny_batch(sentences=5, tokens=5)  # (B, T, D) and (T, B, D) are of one shape and have one layout
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**batch)
    for layer, state in enumerate(hidden_states(model, batch)):
        assert torch.equal(probe.added[layer][0], state)


class Attends(ToyModel):
    """Blocks return a tuple with their attentions where these are asked for, and a tensor elsewhere."""

    class Block(nn.Linear):
        attends = False

        def forward(self, hidden: Tensor) -> Any:
            made = super().forward(hidden)
            return (made, made.mean(-1)) if self.attends else made

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(8, 8) for _ in range(3))

    def after_block(self, index: int, hidden: Any) -> Tensor:
        return hidden[0] if isinstance(hidden, tuple) else hidden

    def forward(self, *arguments: Any, output_attentions: bool = False, **options: Any) -> dict[str, Any]:
        for block in self.blocks:
            block.attends = output_attentions
        return super().forward(*arguments, **options)


@pytest.mark.parametrize("first", [False, True])
def test_blocks_may_return_a_tuple_in_one_forward_and_a_tensor_in_the_next(first: bool) -> None:
    model = Attends()
    batch = tiny_batch()
    with RecordingProbe(model) as probe, torch.no_grad():
        for attentions in (first, not first):
            model(**batch, output_attentions=attentions)
    for layer, state in enumerate(hidden_states(model, batch)):
        assert [torch.equal(added, state) for added in probe.added[layer]] == [True, True]


def test_a_tensor_stands_for_a_tuple_that_began_with_it_and_the_other_way_round() -> None:
    layer = torch.ones(1, 2, 3)
    for path in ((), (0,)):
        point = LayerPoint(layer=2, name="blocks.1", module="blocks.1", kind="output", call=0, path=path)
        assert point.tensor_in(layer) is layer
        assert point.tensor_in((layer, torch.zeros(()))) is layer


@pytest.mark.parametrize("path", [(1,), ("hidden_states", 0)])
def test_a_tensor_in_place_of_what_held_the_layer_is_refused(path: Path) -> None:
    point = LayerPoint(layer=2, name="blocks.1", module="blocks.1", kind="output", call=0, path=path)
    with pytest.raises(RuntimeError, match=r"layer 2 \(blocks.1\): output .* is NoneType in this forward"):
        point.tensor_in(torch.zeros(()))


class Holes(ToyModel):
    """Blocks whose outputs are not numbers in dimension 0; `fills` puts zeros there before the next one."""

    fills = False

    class Block(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            made = super().forward(hidden.nan_to_num(0.0))
            made[..., 0] = torch.nan
            return made

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(8, 8) for _ in range(3))

    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden.nan_to_num(0.0) if self.fills else hidden

    def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden.clone()


@pytest.mark.parametrize("fills", [False, True])
def test_what_is_no_number_is_matched_with_its_like_alone(fills: bool) -> None:
    model = Holes()
    model.fills = fills
    if fills:
        with pytest.raises(RuntimeError, match="layer 1 of the hidden_states of Holes"), ConeProbe(model):
            model(**tiny_batch())
        return
    with ConeProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
    assert probe.layer_names == ("embeddings", "blocks.0", "blocks.1", "output of the model")


class PreNormBlock(nn.Module):
    """A block that is called like a norm: it has parts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.linear(self.norm(hidden))


@pytest.mark.parametrize(("last", "final_norm"), [(PreNormBlock(), False), (nn.LayerNorm(8), True)])
def test_a_norm_has_no_parts(last: nn.Module, final_norm: bool) -> None:
    model = ToyModel()
    model.blocks[-1] = last
    with RecordingProbe(model) as probe, torch.no_grad():
        model(**tiny_batch())
    assert probe.final_norm is final_norm
    assert probe.layer_names[-1] == ("blocks.2 (final norm applied)" if final_norm else "blocks.2")


@pytest.mark.parametrize(
    ("mask", "wanted"), [([0, 0, 1, 1, 1], [7, 8, 9]), ([1, 1, 1, 0, 0], [5, 6, 7]), ([0, 0, 0, 0, 0], [5, 6, 7, 8, 9])]
)
def test_the_layers_are_looked_for_with_tokens_that_count(mask: list[int], wanted: list[int]) -> None:
    """Of a first row without any with all that it has."""
    seen: list[list[int]] = []

    class Records(ToyModel):
        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False
        ) -> dict[str, Any]:
            seen.append(input_ids.tolist())
            return super().forward(input_ids, attention_mask, output_hidden_states)

    model, batch = Records(), torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]])
    with ConeProbe(model), torch.no_grad():
        model(batch, torch.tensor([mask, [1] * 5]))
    assert seen[0] == [wanted]
    assert seen[-1] == batch.tolist()
