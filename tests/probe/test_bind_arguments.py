"""The arguments of a call by name are those that Python itself binds, whatever the signature."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from cone_kernels.probe.bind_arguments import bind_arguments


def usual(self: Any, a: Any, b: Any = None, *, c: Any = 0) -> None: ...
def with_any(self: Any, a: Any, b: Any = None, **kwargs: Any) -> None: ...
def only_by_name(self: Any, *, a: Any, c: Any = 0) -> None: ...
def only_by_position(self: Any, a: Any, /, b: Any = None, **rest: Any) -> None: ...
def any_number(self: Any, a: Any, *others: Any, c: Any = 0) -> None: ...
def nothing(self: Any) -> None: ...


def bound_by_python(
    signature: inspect.Signature, own: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    try:
        found = signature.bind(*own, *args, **kwargs).arguments
    except TypeError:
        return None
    named: dict[str, Any] = {}
    for name in list(found)[len(own) :]:
        any_name = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= found[name] if any_name else {name: found[name]}
    return named


CALLS = [
    (args, dict.fromkeys(names, name))
    for args in ((), (1,), (1, 2), (1, 2, 3))
    for n in range(3)
    for names in itertools.combinations(("a", "b", "c", "self", "kwargs", "d"), n)
    for name in ("x",)
]


@pytest.mark.parametrize("forward", [usual, with_any, only_by_name, only_by_position, any_number, nothing])
@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
def test_every_call(forward: Callable[..., None], own: bool) -> None:
    model = type("Model", (nn.Module,), {} if own else {"forward": forward})()
    signature, first = inspect.signature(forward), (model,)
    if own:
        signature, first = inspect.signature(forward.__get__(model)), ()
        model.forward = lambda *args, **kwargs: None
        model.forward.__signature__ = signature
    for args, kwargs in CALLS:
        assert bind_arguments(model, args, kwargs) == bound_by_python(signature, first, args, kwargs), (args, kwargs)
