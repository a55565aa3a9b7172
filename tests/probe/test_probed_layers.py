"""The layers of a model that are chosen, and the hooks by which they are seen."""

from __future__ import annotations

import pytest
from torch import Tensor

from cone_kernels.probe.layer_points import LayerPoint
from cone_kernels.probe.probed_layers import ProbedLayers, _chosen
from tests.support.tiny_models import ToyModel, tiny_batch

pytestmark = pytest.mark.usefixtures("one_thread")

POINTS = tuple(LayerPoint(n, f"blocks.{n}", f"blocks.{n}", "output", 0, ()) for n in range(4))


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [(None, [0, 1, 2, 3]), ((0,), [0]), ((3, 1), [1, 3]), ((-1, 0), [0, 3]), ((-4,), [0]), ((1, -3), [1])],
)
def test_layers_are_chosen_in_their_order_in_the_model(layers: tuple[int, ...] | None, wanted: list[int]) -> None:
    assert [point.layer for point in _chosen(POINTS, layers)] == wanted


def test_layers_that_a_model_lacks_are_named() -> None:
    with pytest.raises(ValueError, match="layers") as refused:
        _chosen(POINTS, (3, 4, -4, -5, 9))
    assert str(refused.value) == "layers: got [4, -5, 9]; it must be among 0 to 3, or count from the end"


def test_the_hooks_are_on_the_modules_of_the_layers_that_are_chosen() -> None:
    class AddsLast(ToyModel):
        def after_block(self, index: int, hidden: Tensor) -> Tensor:
            return hidden + 1  # so that layers are what the next block takes in, or the model returns

    def places(layers: tuple[int, ...] | None) -> tuple[list[tuple[str, str]], tuple[str, str] | None]:
        model = AddsLast()
        found = ProbedLayers.find(
            model,
            tiny_batch(),
            lambda hook, value: None,
            layers=layers,
            before_final_norm=False,
            forward=model.forward,
        )
        assert len(found.map.points) == 4
        output = found.output_hook
        return [hook.place for hook in found.hooks], None if output is None else output.place

    first, *rest = ("embeddings", "output"), ("blocks.1", "input"), ("blocks.2", "input")
    assert places(None) == ([first, *rest], ("", "output"))
    assert places((0, 2)) == ([first, rest[1]], None)
    assert places((3,)) == ([], ("", "output"))
