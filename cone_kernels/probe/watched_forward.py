"""Which models can be watched, and a model's forward with something around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

Runner = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class WatchedForward:
    """Stands in for `model.forward` until `remove`: each call becomes `run(forward, args, kwargs)`.

    A hook would do for `model(...)`, but some callers (sentence-transformers 6) go straight to `model.forward`.
    """

    def __init__(self, model: nn.Module, run: Runner) -> None:
        # An instance may have a forward of its own already: accelerate's, or that of a probe around this one.
        self._had_own = "forward" in model.__dict__
        self._model = model
        self._run = run
        self._link(model.forward)
        model.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._inner, args, kwargs)

    def remove(self) -> None:
        """Put the forward before this one back, whichever of several was removed first."""
        # Others may hold this forward by now (accelerate wraps it); for them it runs the plain one from here on.
        self._run = _plainly
        outer = self._model.forward
        if outer is self:
            del self._model.forward
            if self._had_own:
                self._model.forward = self._inner
            return
        while isinstance(outer, WatchedForward):
            if outer._inner is self:
                outer._had_own = self._had_own
                outer._link(self._inner)
                return
            outer = outer._inner

    def _link(self, inner: Callable[..., Any]) -> None:
        # Signature and name are those of the forward within: transformers and others look at them.
        functools.update_wrapper(self, inner, updated=())
        self._inner = inner

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        # A copy would go on calling the forward of the model it was copied from.
        raise RuntimeError("a model that is being probed cannot be copied or pickled; do so outside the `with` block")


def _plainly(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return forward(*args, **kwargs)


def in_backward() -> bool:
    """Whether this thread is inside a backward pass, as in what gradient checkpointing computes again."""
    return torch._C._current_graph_task_id() != -1


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP or one-device DataParallel; TypeError or RuntimeError where there is none to watch."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; it must be a torch.nn.Module")
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise RuntimeError(
                f"model: DataParallel over {len(model.device_ids)} devices runs replicas, which hooks on the module do "
                "not follow; use DistributedDataParallel, or probe model.module on one device"
            )
        model = model.module
    return model


def refuse_compiled(model: nn.Module) -> None:
    """Raises RuntimeError where the model or a submodule is scripted or compiled: hooks do not fire there."""
    for name, module in model.named_modules():
        where = f"its submodule {name!r}" if name else type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise RuntimeError(
                f"model: {where} is scripted, and hooks do not fire there; probe the module it came from"
            )
        if hasattr(module, "_orig_mod"):
            raise RuntimeError(
                f"model: {where} comes from torch.compile, and hooks do not fire there; probe and call the module "
                "it was made from (model._orig_mod)"
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise RuntimeError(
                f"model: {where} was compiled in place by .compile(), and hooks do not fire there; load the model "
                "again and probe it without compiling"
            )
