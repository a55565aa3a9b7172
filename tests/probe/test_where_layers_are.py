"""Where each layer of a small model is found, in full; and exactly what is said where one is found nowhere."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cone_kernels.probe.layer_points import LayerMap, LayerPoint, find_layer_points
from tests.support.recording_probe import RecordingProbe
from tests.support.tiny_models import ToyModel, tiny_batch

pytestmark = pytest.mark.usefixtures("one_thread")


def found_in(model: nn.Module, **options: Any) -> LayerMap:
    return find_layer_points(model, tiny_batch(), **options)


def output_of(name: str, layer: int, *, call: int = 0, kept: bool = True, **options: Any) -> LayerPoint:
    return LayerPoint(layer, name, name, "output", call, (), kept=kept, **options)


def input_of(module: str, layer: int, name: str, **options: Any) -> LayerPoint:
    return LayerPoint(layer, name, module, "input", 0, (0, 0), kept=True, **options)


BLOCKS = tuple(output_of(f"blocks.{n}", n + 1) for n in range(3))


def test_layers_are_what_the_first_block_takes_in_and_each_returns() -> None:
    found = found_in(ToyModel())
    assert found.points == (input_of("blocks.0", 0, "embeddings"), *BLOCKS)
    assert (found.calls, found.dim) == ({"blocks.0": 1, "blocks.1": 1, "blocks.2": 1}, 8)
    assert found.final_norm is False


def test_a_block_that_runs_several_times_is_told_apart_by_its_calls() -> None:
    model = ToyModel()
    model.blocks = nn.ModuleList([model.blocks[0]] * 3)
    found = found_in(model)
    shared = tuple(output_of("blocks.0", n + 1, call=n) for n in range(3))
    assert found.points == (input_of("blocks.0", 0, "embeddings"), *shared)
    assert found.calls == {"blocks.0": 3}


class WithoutEmbeddings(ToyModel):
    """Its tuple begins with the output of the first block."""

    def forward(self, *arguments: Any, output_hidden_states: bool = False, **rest: Any) -> dict[str, Any]:
        output = super().forward(*arguments, output_hidden_states=True, **rest)
        return {**output, "hidden_states": output["hidden_states"][1:]}


def test_a_first_block_in_place_of_the_embeddings_has_its_own_name() -> None:
    model = WithoutEmbeddings()
    model.blocks[2] = nn.LayerNorm(8)
    assert found_in(model).points[0].name == "blocks.0"  # whatever the last one is
    found = found_in(WithoutEmbeddings())
    assert [point.name for point in found.points] == ["blocks.0", "blocks.1", "blocks.2"]
    # What the second block takes in is what the first one returned, whatever came before it.
    assert found.points[0] == input_of("blocks.1", 0, "blocks.0")


class PadsAfter(ToyModel):
    """Adds three positions to those of the batch, and takes them off the tuple."""

    def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
        self.tokens = hidden.shape[1]
        return nn.functional.pad(hidden, (0, 0, 0, 3))

    def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, : self.tokens]


def test_layers_with_padding_of_the_models_own_are_read_with_it() -> None:
    found = found_in(PadsAfter())
    blocks = tuple(output_of(f"blocks.{n}", n + 1, padded=True) for n in range(2))
    last = LayerPoint(3, "output of the model", "", "output", 0, (0,), kept=True)  # without the padding
    assert found.points == (input_of("blocks.0", 0, "embeddings", padded=True), *blocks, last)


class AroundTheBlocks(nn.Module):
    """A stack in a part of its own, each block with a part that makes its output."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, hidden: Tensor) -> Tensor:
            normed: Tensor = self.norm(self.linear(hidden))
            return normed

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(AroundTheBlocks.Block() for _ in range(2))

        def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
            states = [hidden]
            for block in self.blocks:
                states.append(block(states[-1]))
            return states[-1], tuple(states)  # type: ignore[return-value]

    def __init__(self, *, pads: int = 0) -> None:
        super().__init__()
        self.wte, self.stack, self.pads = nn.Embedding(100, 8), self.Stack(), pads

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False, **_: Any) -> Any:
        n = input_ids.shape[1]
        last, states = self.stack(nn.functional.pad(self.wte(input_ids), (0, 0, 0, self.pads)))
        return SimpleNamespace(last=last[:, :n], hidden_states=[state[:, :n] for state in states])


@pytest.mark.parametrize("pads", [0, 2])
def test_a_layer_is_the_block_rather_than_a_part_of_it_or_the_stack_around_all(pads: int) -> None:
    found = found_in(AroundTheBlocks(pads=pads))
    blocks = tuple(output_of(f"stack.blocks.{n}", n + 1, padded=pads > 0) for n in range(2))
    assert found.points[1:] == blocks
    assert (found.points[0].module, found.points[0].kind) == ("stack.blocks.0", "input")
    assert found.points[0].name == "embeddings"
    assert found.final_norm is False  # a norm within a block is none after them


class EndsInNorm(ToyModel):
    """A norm and dropout after the last block; `between` comes before the norm."""

    def __init__(self, norm: nn.Module | None = None, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.norm, self.dropout = norm or nn.LayerNorm(8), nn.Dropout(0.5)
        self.between = between

    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return self.dropout(self.norm(self.between(hidden))) if index == len(self.blocks) - 1 else hidden


def test_a_final_norm_is_found_through_dropout_and_the_last_layer_before_it_where_that_is_asked_for() -> None:
    found = found_in(EndsInNorm())
    assert found.points[:3] == (input_of("blocks.0", 0, "embeddings"), *BLOCKS[:2])
    assert found.points[3] == LayerPoint(3, "norm (final norm applied)", "dropout", "output", 0, (), kept=True)
    assert found.final_norm is True
    before = found_in(EndsInNorm(), before_final_norm=True)
    assert before.points == (*found.points[:3], input_of("norm", 3, "blocks.2"))
    assert before.final_norm is False
    # Where it is no block's output.
    before = found_in(EndsInNorm(between=lambda hidden: hidden + 1), before_final_norm=True)
    assert before.points[3] == input_of("norm", 3, "input of norm")


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 4])
def test_before_the_final_norm_of_few_blocks_and_of_more(n_blocks: int) -> None:
    model = EndsInNorm()
    model.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(n_blocks))
    if n_blocks == 0:
        model.start = lambda hidden, mask: model.norm(hidden)  # type: ignore[method-assign]
    last = found_in(model, before_final_norm=True).points[-1]
    assert last == input_of("norm", n_blocks, f"blocks.{n_blocks - 1}" if n_blocks else "embeddings")


def test_before_a_final_norm_that_is_followed_by_a_write_is_what_it_takes_in() -> None:
    class WritesAfter(EndsInNorm):
        def after_block(self, index: int, hidden: Tensor) -> Tensor:
            made = super().after_block(index, hidden)
            if index == 2:
                hidden.add_(1.0)
            return made

    assert found_in(WritesAfter(), before_final_norm=True).points[3] == LayerPoint(
        3, "input of norm", "norm", "input", 0, (0, 0), kept=False
    )


def test_before_the_final_norm_is_a_block_rather_than_the_stack_around_all() -> None:
    class NormAfter(AroundTheBlocks):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            for block in self.stack.blocks:
                block.norm = nn.Identity()

        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = super().forward(*arguments, **options)
            return SimpleNamespace(hidden_states=[*output.hidden_states[:-1], self.norm(output.last)])

    last = found_in(NormAfter(), before_final_norm=True).points[-1]
    assert (last.name, last.module, last.kind) == ("stack.blocks.1", "norm", "input")


def test_before_the_final_norm_of_a_model_without_one_is_the_same() -> None:
    assert found_in(ToyModel(), before_final_norm=True) == found_in(ToyModel())


def test_a_norm_that_takes_in_the_last_layer_is_none_before_it() -> None:
    class NormsItsOutput(EndsInNorm):
        def after_block(self, index: int, hidden: Tensor) -> Tensor:
            return hidden + 1

        def forward(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            output = super().forward(*arguments, **options)
            return {"normed": self.norm(output["last_hidden_state"]), **output}

    found = found_in(NormsItsOutput())
    assert found.points[3] == input_of("norm", 3, "input of norm")
    assert found.final_norm is False


class OneBlock(nn.Module):
    """Its embeddings have another name, and `given` makes of them what the block takes in."""

    def __init__(self, given: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.wte, self.block, self.given = nn.Embedding(100, 8), nn.Linear(8, 8), given

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, output_hidden_states: bool = False
    ) -> Any:
        hidden = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        return {"hidden_states": (hidden, self.block(self.given(hidden)))}


@pytest.mark.parametrize("given", [lambda hidden: 2 * hidden, Tensor.clone])
def test_a_first_layer_that_no_block_takes_in_is_what_the_embeddings_return(given: Callable[[Tensor], Tensor]) -> None:
    model, ids = OneBlock(given), tiny_batch()["input_ids"]
    assert find_layer_points(model, {"input_ids": ids}).points == (
        LayerPoint(0, "embeddings", "wte", "output", 0, (), kept=True),
        LayerPoint(1, "block", "block", "output", 0, (), kept=True),
    )
    with pytest.raises(RuntimeError, match=r"^model: layer 0 of the hidden_states of OneBlock cannot be probed"):
        find_layer_points(model, {"inputs_embeds": model.wte(ids).detach()})  # the model alone takes it in


def test_the_first_layer_of_one_block_is_what_that_takes_in() -> None:
    found = find_layer_points(OneBlock(lambda hidden: hidden), {"input_ids": tiny_batch()["input_ids"]})
    assert found.points[0] == input_of("block", 0, "embeddings")


@pytest.mark.parametrize("pads", [0, 2])
def test_what_the_first_block_takes_in_is_no_layer_once_it_is_written_to(pads: int) -> None:
    class Cut(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden[:, : hidden.shape[1] - pads].clone()

    class WritesAfter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.block, self.cut = nn.Embedding(100, 8), nn.Linear(8, 8), Cut()

        def forward(self, input_ids: Tensor, output_hidden_states: bool = False, **_: Any) -> Any:
            hidden = nn.functional.pad(self.wte(input_ids), (0, 0, 0, pads))
            first = self.block(hidden)
            hidden.add_(1.0)
            self.cut(hidden)
            n = input_ids.shape[1]
            return {"hidden_states": (hidden[:, :n], first[:, :n])}

    found = found_in(WritesAfter()).points[0]
    assert (found.module, found.kind) == ("cut", "output" if pads else "input")


class CopiesAll(ToyModel):
    """Every tensor that it gives out is a copy."""

    adds = 0.0

    def entry(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden.clone()

    def after_block(self, index: int, hidden: Tensor) -> Tensor:
        return hidden + self.adds if index == 2 and self.adds else hidden

    def forward(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return {
            name: last.clone() if torch.is_tensor(last) else last
            for name, last in super().forward(*arguments, **options).items()
        }


def test_of_equal_numbers_those_of_a_submodule_stand_for_a_copy_and_else_those_of_the_model() -> None:
    model = CopiesAll()
    assert [point.name for point in found_in(model).points] == ["embeddings", "blocks.0", "blocks.1", "blocks.2"]
    model.blocks[1] = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    assert found_in(model).points[2] == output_of("blocks.1", 2)  # the last of those that return these numbers
    model.adds = 1.0
    assert found_in(model).points[3].name == "output of the model"


def point_at(*path: Any) -> LayerPoint:
    return LayerPoint(2, "blocks.1", "blocks.1", "output", 0, path)


def test_a_layer_is_at_the_end_of_its_path() -> None:
    layer, other = torch.ones(1), torch.zeros(1)
    for value, path in (
        (layer, ()),
        (layer, (0,)),
        ((layer, other), ()),
        ((other, layer), (1,)),
        ([other, [layer]], (1, 0)),
        (((other,), {"hidden_states": layer}), (1, "hidden_states")),
    ):
        assert point_at(*path).tensor_in(value) is layer


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        ({"hidden_states": torch.ones(1)}, (), "dict"),
        ([torch.ones(1)], (), "list"),
        ((None, torch.ones(1)), (), "NoneType"),
        ((torch.ones(1),), (1,), "NoneType"),
        ({"hidden_states": torch.ones(1)}, ("last",), "NoneType"),
        (((), {"given": 3}), (1, "given"), "int"),
        (torch.ones(2), (1,), "NoneType"),
        ("words", (0,), "NoneType"),
    ],
)
def test_a_path_that_ends_elsewhere_is_told(value: Any, path: tuple[Any, ...], kind: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        point_at(*path).tensor_in(value)
    assert str(refused.value) == (
        f"layer 2 (blocks.1): output {path} of module 'blocks.1' is {kind} in this forward, and was a tensor in the "
        "first"
    )


def test_a_final_norm_of_two_tensors_of_a_layers_shape_is_refused() -> None:
    class PairNorm(nn.LayerNorm):
        def forward(self, hidden: Tensor, beside: Tensor | None = None) -> Tensor:
            return super().forward(hidden + (0 if beside is None else beside.sum()))

    class Pairs(EndsInNorm):
        def after_block(self, index: int, hidden: Tensor) -> Tensor:
            return self.norm(hidden, self.beside(hidden)) if index == 2 else hidden

        def beside(self, hidden: Tensor) -> Tensor:
            return 2 * hidden

    model = Pairs(PairNorm(8))
    assert found_in(model).points[3].name == "norm (final norm applied)"
    with pytest.raises(RuntimeError) as refused:
        found_in(model, before_final_norm=True)
    assert str(refused.value) == (
        "before_final_norm: the final norm 'norm' takes in 2 tensors of a layer's shape; it must take in one, the "
        "hidden states"
    )
    model.beside = lambda hidden: hidden[:, :1]  # type: ignore[method-assign]
    assert found_in(model, before_final_norm=True).points[3] == input_of("norm", 3, "blocks.2")


class EitherInput(ToyModel):
    """Takes embeddings in place of ids, as Hugging Face models do."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, Any]:
        given = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        states = [self.start(given, given)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return {"hidden_states": tuple(self.entry(state, given) for state in states)} if output_hidden_states else {}


class EitherPadded(EitherInput, PadsAfter):
    pass


@pytest.mark.parametrize(
    ("kind", "first"), [(EitherInput, "input_ids"), (EitherInput, "inputs_embeds"), (EitherPadded, "input_ids")]
)
def test_layer_0_is_seen_however_the_embeddings_come_about(kind: type[EitherInput], first: str) -> None:
    model, ids = kind(), tiny_batch()["input_ids"]
    given = {"input_ids": ids, "inputs_embeds": model.embeddings(ids).detach()}
    with RecordingProbe(model) as probe, torch.no_grad():
        for name in sorted(given, key=lambda name: name != first):
            model(**{name: given[name]})
    assert probe.layer_names[0] == "embeddings"
    assert [torch.equal(rows, given["inputs_embeds"]) for rows in probe.added[0]] == [True, True]


class Shows(nn.Module):
    """Returns what it is told to, whatever it is given."""

    def __init__(self, shown: Any) -> None:
        super().__init__()
        self.shown = shown

    def forward(self, output_hidden_states: bool = False, **_: Any) -> Any:
        return self.shown


def states(*shapes: tuple[int, ...]) -> dict[str, tuple[Tensor, ...]]:
    return {"hidden_states": tuple(torch.ones(shape) for shape in shapes)}


@pytest.mark.parametrize(
    ("shown", "kind"),
    [
        ({}, "dict"),
        ({"hidden_states": ()}, "dict"),
        ({"hidden_states": None, "encoder_hidden_states": [1.0]}, "dict"),
        ({"hidden_states": torch.ones(2, 1, 7, 4)}, "dict"),
        (SimpleNamespace(hidden_states=(torch.ones(1, 7, 4), None)), "SimpleNamespace"),
        ((torch.ones(1, 7, 4),), "tuple"),
    ],
)
def test_a_model_that_shows_no_hidden_states_is_refused(shown: Any, kind: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        found_in(Shows(shown))
    assert str(refused.value) == (
        f"model: Shows cannot be probed: called with output_hidden_states=True it returned {kind} without "
        "hidden_states or encoder_hidden_states"
    )


NOWHERE = (
    "model: layer 0 of the hidden_states of Shows cannot be probed: no submodule takes it in or returns it as it stands"
    " in the tuple (it is computed outside any submodule, or changed in place afterwards); use "
    "output_hidden_states=True for this model"
)


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (states((1, 7, 4), (1, 7, 4)), NOWHERE),
        (states((7, 4), (7, 4)), NOWHERE),  # packed
        (SimpleNamespace(**states((1, 7, 4))), NOWHERE),
        ({"hidden_states": [], "encoder_hidden_states": [torch.ones(1, 7, 4)]}, NOWHERE),
        *(
            (
                states((1, 7, 4), shape),
                f"model: layer 1 of the hidden_states of Shows has shape {shape} for a batch of (1, 7) tokens; it must "
                "have one vector for each token",
            )
            for shape in ((1, 6, 4), (2, 7, 4), (8, 4), (7, 1, 4), (1, 7, 1, 4), (4,))
        ),
        (
            states((1, 7, 4), (1, 7, 5), (7, 4)),
            "model: the layers of Shows differ in width (0: 4, 1: 5, 2: 4); a state needs one width",
        ),
    ],
)
def test_what_is_wrong_with_hidden_states_is_said(shown: Any, why: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        found_in(Shows(shown))
    assert str(refused.value) == why


@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 3, 4), (3, 4), (1, 2, 3, 4)])
def test_an_image_has_two_positions_at_least(shape: tuple[int, ...]) -> None:
    def find(shape: tuple[int, ...]) -> None:
        find_layer_points(Shows(states(shape)), {"pixel_values": torch.ones(5, 3)})

    with pytest.raises(RuntimeError) as refused:
        find(shape)
    assert str(refused.value) == (
        f"model: the hidden_states of Shows have shape {shape} for one image or sound; it must be (1, T, D), a vector "
        "for each of two positions or more"
    )
    with pytest.raises(RuntimeError, match=r"^model: layer 0 of the hidden_states of Shows cannot be probed"):
        find((1, 2, 4))
