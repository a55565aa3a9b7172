"""Which models can be watched, and a model's forward with something around it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
from torch import nn

from cone_kernels.models.compiled_blocks import COMPILED_CALL, is_compiled_forward

Runner = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class WatchedForward:
    """Stands in for `model.forward` until `remove`: each call becomes `run(forward, args, kwargs)`.

    A hook would do for `model(...)`, but some callers (sentence-transformers 6) go straight to `model.forward`. What
    stands there is a bound method, as was there before: accelerate takes such a one apart and puts it together again,
    and that of a copy of the model runs the copy's own forward. `copy`, `pickle` and `torch.save` leave it out, and
    torch.compile passes it by.
    """

    def __init__(self, model: nn.Module, run: Runner) -> None:
        # An instance may have a forward of its own already: accelerate's, or that of a probe around this one.
        self._had_own = "forward" in model.__dict__
        self._model = model
        self._run = run
        self._inner = model.forward
        self._method = MethodType(_standing_in(self), model)
        model.forward = self._method
        if _GET_STATE not in model.__dict__:
            model.__dict__[_GET_STATE] = functools.partial(_state_without_watch, model)

    def remove(self) -> None:
        """Put the forward before this one back, whichever of several was removed first."""
        # Others may hold this forward by now (accelerate wraps it); for them it runs the plain one from here on.
        self._run = _plainly
        outer = _watch_of(self._model.__dict__.get("forward"))
        if outer is self:
            self._put_back()
        while outer is not None and outer is not self:
            within = _watch_of(outer._inner)
            if within is self:
                outer._had_own, outer._inner = self._had_own, self._inner
                break
            outer = within
        if _watch_of(self._model.__dict__.get("forward")) is None:
            self._model.__dict__.pop(_GET_STATE, None)

    def _put_back(self) -> None:
        del self._model.forward
        if self._had_own:
            self._model.forward = self._inner


# copy and pickle ask an object for its state by this name, the instance before its class.
_GET_STATE = "__getstate__"
_WATCH = "_cone_watch"


def _standing_in(watch: WatchedForward) -> Callable[..., Any]:
    """The function of the method that stands in: signature and name are those of the forward within."""
    inner = watch._inner
    function = inner.__func__ if isinstance(inner, MethodType) else inner

    @functools.wraps(function)
    def forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return watch._inner(*args, **kwargs)
        if model is watch._model:
            return watch._run(watch._inner, args, kwargs)
        within = _innermost(watch._inner)  # what a copy of the model runs is its own
        if isinstance(within, MethodType) and within.__self__ is watch._model:
            within = MethodType(within.__func__, model)
        return within(*args, **kwargs)

    if not isinstance(inner, MethodType):
        # transformers and others look at the signature; that of a method leaves its first parameter out.
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [own, *inspect.signature(inner).parameters.values()]
        )
        del forward.__wrapped__
    setattr(forward, _WATCH, watch)
    return forward


def _plainly(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return forward(*args, **kwargs)


def _watch_of(forward: Any) -> WatchedForward | None:
    """The watch whose method this is."""
    watch: WatchedForward | None = getattr(forward, _WATCH, None)
    return watch if watch is not None and forward == watch._method else None


def _innermost(forward: Any) -> Any:
    while (watch := _watch_of(forward)) is not None:
        forward = watch._inner
    return forward


def _state_without_watch(model: nn.Module) -> Any:
    """The state that the model gives to copy and pickle without a watch."""
    of_class = getattr(type(model), _GET_STATE, None)  # every class has one from Python 3.11 on
    state = model.__dict__ if of_class is None else of_class(model)
    if not isinstance(state, dict):
        return state
    kept = {name: value for name, value in state.items() if name not in (_GET_STATE, "forward")}
    forward = _innermost(state.get("forward"))
    if forward is not None and not _is_plain(forward, model):
        kept["forward"] = forward
    return kept


def _is_plain(forward: Any, model: nn.Module) -> bool:
    """Whether it is the method that the class of the model has."""
    return isinstance(forward, MethodType) and forward == MethodType(type(model).forward, model)


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
    """Raises RuntimeError where the model is compiled, or a part of it scripted: hooks do not fire there."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"its submodule {name!r}" if name else type(model).__name__
            raise RuntimeError(
                f"model: {where} is scripted, and hooks do not fire there; probe the module it came from"
            )
    how = _compiled_how(model)
    if how is not None:
        raise RuntimeError(f"model: {type(model).__name__} {how}")


def refuse_compiled_around(model: nn.Module, names: Iterable[str]) -> None:
    """Raises RuntimeError where a part of the model is compiled with one of the submodules of these names inside it.

    A submodule that is itself compiled is no such part: what goes into it and comes out can be seen from around it.
    """
    for name in names:
        at = model
        for part in name.split(".")[:-1] if name else ():
            at = at.get_submodule(part)
            how = _compiled_how(at)
            if how is not None:
                raise RuntimeError(f"model: a part of {type(model).__name__} around its submodule {name!r} {how}")


def _compiled_how(module: nn.Module) -> str | None:
    """How a module has been compiled, in words; None where it has not."""
    if hasattr(module, "_orig_mod"):
        return (
            "comes from torch.compile, and hooks do not fire there; probe and call the module it was made from "
            "(model._orig_mod)"
        )
    if module.__dict__.get(COMPILED_CALL) is not None:
        return (
            "was compiled in place by .compile(), and hooks do not fire there; compile its blocks, each for itself, "
            "or probe it without compiling"
        )
    if is_compiled_forward(module):
        return "has a compiled forward, and hooks do not fire there; compile its blocks, each for itself"
    return None
