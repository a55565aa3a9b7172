"""The hooks by which a probe sees the layers of a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cone_kernels.probe.calibration import Kind, as_tuple
from cone_kernels.probe.layer_points import LayerPoint


class LayerHook:
    """The hook of one module that hands what the module takes in, or returns, to the probe.

    Args:
        module, name: the module, and its name in the model.
        kind: whether its input or its output is handed on.
        points: the layers that are read there.
        see: called as `see(name, kind, points, value)`, the value `(args, kwargs)` or the output as a tuple.
    """

    def __init__(
        self, module: nn.Module, name: str, kind: Kind, points: list[LayerPoint], see: Callable[..., None]
    ) -> None:
        self._module, self._name, self._kind, self._points, self._see = module, name, kind, points, see

    def register(self) -> torch.utils.hooks.RemovableHandle:
        """Puts the hook on the module, until the handle's `remove`."""
        if self._kind == "input":
            return self._module.register_forward_pre_hook(self._before, with_kwargs=True)
        return self._module.register_forward_hook(self._after)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._see(self._name, "input", self._points, (args, kwargs))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._see(self._name, "output", self._points, as_tuple(output))
