"""The arguments of a call of a model, by name."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


def bind_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by name, those of `**kwargs` too; None where the call does not fit `forward`."""
    forward = model.forward
    while not inspect.ismethod(forward) and hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    # The signature of a class's forward is the same for every call; only that of an instance's own is looked up anew.
    function = getattr(forward, "__func__", None)
    own = () if function is None else (model,)
    signature = _Signature.of(forward) if function is None else _class_signature(function)
    return signature.bind((*own, *args), kwargs, len(own))


@dataclass(frozen=True)
class _Signature:
    """The signature of a forward, with what shows at once that a call of the usual kind fits it."""

    whole: inspect.Signature
    names: tuple[str, ...] | None  # of what may be passed by position or by name; None where others must be by position
    by_name: frozenset[str]
    required: frozenset[str]
    takes_any: bool

    @classmethod
    def of(cls, forward: Callable[..., Any]) -> _Signature:
        whole = inspect.signature(forward)
        parameters = whole.parameters.values()
        kinds = {p.kind for p in parameters}
        usual = not kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}
        named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        return cls(
            whole,
            tuple(p.name for p in named if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD) if usual else None,
            frozenset(p.name for p in named),
            frozenset(p.name for p in named if p.default is inspect.Parameter.empty),
            inspect.Parameter.VAR_KEYWORD in kinds,
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], leave_out: int) -> dict[str, Any] | None:
        """The arguments by name but for the first `leave_out`; None where they do not fit."""
        if self.names is not None and len(args) <= len(self.names):
            arguments = dict(zip(self.names, args, strict=False))
            known = self.takes_any or kwargs.keys() <= self.by_name
            if known and arguments.keys().isdisjoint(kwargs) and self.required <= arguments.keys() | kwargs.keys():
                for name in self.names[:leave_out]:
                    del arguments[name]
                return arguments | dict(kwargs)
        try:
            bound = self.whole.bind(*args, **kwargs).arguments
        except TypeError:
            return None
        arguments = {}
        for name, value in list(bound.items())[leave_out:]:
            if self.whole.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            else:
                arguments[name] = value
        return arguments


# A forward that stands in for another holds its model, so it is not to be kept for its signature's sake.
_SIGNATURES: weakref.WeakKeyDictionary[Callable[..., Any], _Signature] = weakref.WeakKeyDictionary()


def _class_signature(forward: Callable[..., Any]) -> _Signature:
    found = _SIGNATURES.get(forward)
    if found is None:
        found = _SIGNATURES[forward] = _Signature.of(forward)
    return found
