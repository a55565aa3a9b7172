"""The layers of a model that a probe gathers: where they are read, and the hooks that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from cone_kernels.probe.calibration import Kind
from cone_kernels.probe.layer_hook import LayerHook
from cone_kernels.probe.layer_points import LayerMap, LayerPoint, find_layer_points
from cone_kernels.probe.watched_forward import refuse_compiled_around


@dataclass(frozen=True)
class ProbedLayers:
    """Made by `find`.

    Attributes:
        map: all layers of the model.
        points: those that are gathered.
        hooks: by which they are seen.
        output_hook: sees what the model itself returns, where a layer is that; it is on no module, for some callers go
            straight to the model's forward.
    """

    map: LayerMap
    points: tuple[LayerPoint, ...]
    hooks: tuple[LayerHook, ...]
    output_hook: LayerHook | None

    @classmethod
    def find(
        cls,
        model: nn.Module,
        arguments: Mapping[str, Any],
        see: Callable[[LayerHook, Any], None],
        *,
        layers: tuple[int, ...] | None,
        before_final_norm: bool,
        forward: Callable[..., Any],
    ) -> ProbedLayers:
        """Looks for the layers by one short forward.

        Args:
            model, arguments, before_final_norm, forward: as in `find_layer_points`.
            see: as in `LayerHook`.
            layers: the numbers of those that are gathered, from the end where negative; None for all.

        Raises:
            ValueError: the model has no such layer.
            RuntimeError: as `find_layer_points`; a part of the model is compiled around a layer.
        """
        found = find_layer_points(model, arguments, before_final_norm=before_final_norm, forward=forward)
        points = _chosen(found.points, layers)
        refuse_compiled_around(model, {point.module for point in points})
        modules = dict(model.named_modules())
        places: dict[tuple[str, Kind], tuple[LayerPoint, ...]] = {}
        for point in points:
            places[point.module, point.kind] = (*places.get((point.module, point.kind), ()), point)
        hooks = [LayerHook(modules[name], name, kind, there, see) for (name, kind), there in places.items()]
        on_modules = tuple(hook for hook in hooks if hook.place[0] != "")
        return cls(found, points, on_modules, next((hook for hook in hooks if hook.place[0] == ""), None))

    @property
    def names(self) -> tuple[str, ...]:
        """What each layer that is gathered is, by module name."""
        return tuple(point.name for point in self.points)


def _chosen(points: tuple[LayerPoint, ...], layers: tuple[int, ...] | None) -> tuple[LayerPoint, ...]:
    """The points of these layers, in their order in the model."""
    if layers is None:
        return points
    unknown = [layer for layer in layers if not -len(points) <= layer < len(points)]
    if unknown:
        raise ValueError(f"layers: got {unknown}; it must be among 0 to {len(points) - 1}, or count from the end")
    numbers = {layer % len(points) for layer in layers}
    return tuple(point for point in points if point.layer in numbers)
