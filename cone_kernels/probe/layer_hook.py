"""The hooks by which a probe sees the layers of a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cone_kernels.models.compiled_blocks import COMPILED_CALL
from cone_kernels.probe.calibration import Kind, as_tuple
from cone_kernels.probe.layer_points import LayerPoint


class LayerHook:
    """The hook of one module that hands what the module takes in, or returns, to the probe.

    It is on the module between `put_on` and `take_off` alone, behind all hooks that are there by then: it sees what
    they make of the layer, and at any other time the module can be copied, pickled and compiled. Of a module that
    `compile()` has compiled in place, hooks and all, it sees from around the compiled call what goes in and comes out.

    Args:
        module, name: the module, and its name in the model.
        kind: whether its input or its output is handed on.
        points: the layers that are read there.
        see: called as `see(hook, value)`, the value `(args, kwargs)` or the output as a tuple.

    Attributes:
        place: name and kind.
        points: the layers that are read there.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        kind: Kind,
        points: tuple[LayerPoint, ...],
        see: Callable[[LayerHook, Any], None],
    ) -> None:
        self.place: tuple[str, Kind] = (name, kind)
        self.points = points
        self._module, self._see = module, see
        self._compiled: Callable[..., Any] | None = None
        self._hook: Callable[..., None] = self._before if kind == "input" else self._after
        # torch gives the hook a number that no other has; to register it for each forward would take 20 times as long.
        handle = module.register_forward_pre_hook(self._hook)
        self._number = handle.id
        handle.remove()

    def put_on(self) -> None:
        """Puts the hook on the module, as the last one."""
        compiled = self._module.__dict__.get(COMPILED_CALL)
        if compiled is not None:
            self._compiled = compiled
            self._module.__dict__[COMPILED_CALL] = self._around
        elif self.place[1] == "input":
            self._module._forward_pre_hooks_with_kwargs[self._number] = True
            self._module._forward_pre_hooks[self._number] = self._hook
        else:
            self._module._forward_hooks[self._number] = self._hook

    def take_off(self) -> None:
        """Takes the hook off the module, if it is there; of several that which was put on last comes off first."""
        if self._compiled is not None:
            if self._module.__dict__.get(COMPILED_CALL) == self._around:
                self._module.__dict__[COMPILED_CALL] = self._compiled
            self._compiled = None
        elif self.place[1] == "input":
            self._module._forward_pre_hooks.pop(self._number, None)
            self._module._forward_pre_hooks_with_kwargs.pop(self._number, None)
        else:
            self._module._forward_hooks.pop(self._number, None)

    def _around(self, *args: Any, **kwargs: Any) -> Any:
        assert self._compiled is not None
        if self.place[1] == "input":
            self._before(self._module, args, kwargs)
        output = self._compiled(*args, **kwargs)
        if self.place[1] == "output":
            self._after(self._module, args, output)
        return output

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._see(self, (args, kwargs))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._see(self, output if isinstance(output, Tensor) else as_tuple(output))
