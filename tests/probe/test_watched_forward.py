"""A forward with something around it: what it runs, how it is taken away again, and which models are refused."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cone_kernels.probe.layer_hook import LayerHook
from cone_kernels.probe.watched_forward import (
    WatchedForward,
    in_backward,
    refuse_compiled,
    refuse_compiled_around,
    unwrapped,
)

COMPILED = "_compiled_call_impl"  # where a module keeps what `compile()` made of its call


class Adds(nn.Module):
    """Adds its number, and what it is given beside."""

    def __init__(self, number: float = 1.0) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor, more: float = 0.0) -> Tensor:
        return x + self.number + more


def watch(model: nn.Module, name: str, log: list[str]) -> WatchedForward:
    def run(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        log.append(name)
        return forward(*args, **kwargs)

    return WatchedForward(model, run)


ZERO = torch.zeros(())


def ran(model: nn.Module, log: list[str]) -> list[str]:
    """Which watches a call goes through, the outermost first; it gives what it gives without them."""
    log.clear()
    assert model(ZERO, more=2.0).item() == 3.0
    return log


@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_watches_are_taken_away_in_any_order(order: tuple[str, ...], own: bool) -> None:
    model, log = Adds(), []
    if own:
        model.forward = lambda x, more=0.0: x + 1.0 + more  # type: ignore[method-assign]
    before, forward = dict(vars(model)), model.forward
    watches = {name: watch(model, name, log) for name in "abc"}
    there = ["c", "b", "a"]
    assert ran(model, log) == there
    for name in order:
        watches[name].remove()
        there.remove(name)
        assert ran(model, log) == there
        assert ("__getstate__" in vars(model)) == bool(there)
    assert vars(model) == before
    assert model.forward == forward
    watches["a"].remove()  # once more
    assert vars(model) == before


def test_a_watch_that_others_hold_runs_plainly_once_it_is_removed() -> None:
    model, log = Adds(), []
    watched = watch(model, "a", log)
    held = model.forward
    # As one that takes over all that there is to know of it, where it was held.
    model.forward = functools.wraps(held)(lambda *args, **kwargs: held(*args, **kwargs))  # type: ignore[method-assign]
    others = model.forward
    assert ran(model, log) == ["a"]
    watched.remove()
    assert ran(model, log) == []
    assert model.forward is others


@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
def test_the_signature_is_that_of_the_forward_within(own: bool) -> None:
    model = Adds()
    if own:
        model.forward = lambda x, more=0.0: x + 1.0 + more  # type: ignore[method-assign]
    wanted, name = list(inspect.signature(model.forward).parameters.values()), model.forward.__name__
    watch(model, "a", [])
    assert list(inspect.signature(model.forward).parameters.values()) == wanted
    assert model.forward.__name__ == name
    assert (model.forward.__self__ is model, inspect.ismethod(model.forward)) == (True, True)  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_watches", [1, 2])
def test_a_copy_has_no_watch(way: str, n_watches: int) -> None:
    model, log = Adds(), []
    for at in range(n_watches):
        watch(model, str(at), log)
    twin = WAYS[way](model)
    assert vars(twin).keys() == vars(Adds()).keys()
    assert ran(twin, log) == []
    assert len(ran(model, log)) == n_watches


def test_a_copy_keeps_a_forward_of_the_instance() -> None:
    model, other = Adds(), Adds(5.0)
    model.forward = other.forward  # type: ignore[method-assign]
    watch(model, "a", [])
    assert copy.copy(model)(ZERO).item() == 5.0
    model, log = Adds(), []
    model.forward = model.forward  # type: ignore[method-assign]
    watch(model, "a", log)
    assert "forward" not in vars(copy.copy(model))  # it is the one of the class


def test_a_state_of_the_models_own_is_asked_for() -> None:
    class Own(Adds):
        def __getstate__(self) -> dict[str, Any]:
            return {name: value for name, value in vars(self).items() if name != "forward"} | {"copied": True}

    model = Own()
    watch(model, "a", [])
    twin = copy.copy(model)
    assert twin.copied
    assert "forward" not in vars(twin)


def test_a_watched_forward_in_another_model_runs_that_models_own() -> None:
    """As after a copy that goes by the attributes."""
    model, log = Adds(), []
    watch(model, "a", log)
    watch(model, "b", log)
    twin = Adds(10.0)
    assert type(model.forward)(model.forward.__func__, twin)(ZERO, 0.5).item() == 10.5  # type: ignore[attr-defined]
    assert log == []
    other = Adds()
    other.forward = lambda x: x + 7.0  # type: ignore[method-assign]
    watch(other, "a", log)
    assert type(other.forward)(other.forward.__func__, twin)(ZERO).item() == 7.0  # type: ignore[attr-defined]
    borrowed = Adds()
    borrowed.forward = Adds(20.0).forward  # type: ignore[method-assign]
    watch(borrowed, "a", log)
    assert type(borrowed.forward)(borrowed.forward.__func__, twin)(ZERO).item() == 20.0  # type: ignore[attr-defined]
    assert log == []


def test_what_runs_within_a_backward_pass_knows_it() -> None:
    seen: list[bool] = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(in_backward()))
    y = x * 2
    seen.append(in_backward())
    y.backward()
    seen.append(in_backward())
    assert seen == [False, True, False]


def test_what_is_inside_wrappers() -> None:
    model = Adds()
    assert unwrapped(model) is model
    parallel = nn.DataParallel(model)
    for device_ids in ([], [0]):
        parallel.device_ids = device_ids
        assert unwrapped(parallel) is model
    parallel.device_ids = [0, 1]
    with pytest.raises(RuntimeError) as refused:
        unwrapped(parallel)
    assert str(refused.value) == (
        "model: DataParallel over 2 devices runs replicas, which hooks on the module do not follow; use "
        "DistributedDataParallel, or probe model.module on one device"
    )
    with pytest.raises(TypeError) as wrong:
        unwrapped(3)  # type: ignore[arg-type]
    assert str(wrong.value) == "model: got int; it must be a torch.nn.Module"


def wrap(module: nn.Module) -> None:
    module._orig_mod = Adds()  # type: ignore[assignment]


def compile_in_place(module: nn.Module) -> None:
    module.__dict__[COMPILED] = module.forward


def compile_forward(module: nn.Module) -> None:
    """Leaves behind what torch.compile does, which takes seconds to come up."""
    within = module.forward
    module.forward = lambda *args: within(*args)  # type: ignore[method-assign]
    module.forward._torchdynamo_orig_callable = within  # type: ignore[attr-defined]


HOW = [
    (
        wrap,
        "comes from torch.compile, and hooks do not fire there; probe and call the module it was made from "
        "(model._orig_mod)",
    ),
    (
        compile_in_place,
        "was compiled in place by .compile(), and hooks do not fire there; compile its blocks, each for itself, or "
        "probe it without compiling",
    ),
    (compile_forward, "has a compiled forward, and hooks do not fire there; compile its blocks, each for itself"),
]


def nested() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(Adds(), Adds()), Adds())


@pytest.mark.parametrize(("how", "words"), HOW)
def test_a_compiled_model_is_refused_and_compiled_around_a_layer_too(
    how: Callable[[nn.Module], None], words: str
) -> None:
    model = nested()
    refuse_compiled(model)
    refuse_compiled_around(model, ["", "0", "0.1", "1"])
    how(model[0])
    refuse_compiled(model)
    refuse_compiled_around(model, ["", "0", "1"])
    with pytest.raises(RuntimeError) as refused:
        refuse_compiled_around(model, ["1", "0.1"])
    assert str(refused.value) == f"model: a part of Sequential around its submodule '0.1' {words}"
    model = nested()
    how(model)
    with pytest.raises(RuntimeError) as refused:
        refuse_compiled(model)
    assert str(refused.value) == f"model: Sequential {words}"
    refuse_compiled_around(model, ["", "0", "0.1"])  # its parts are not compiled


def test_a_compiled_call_that_was_taken_back_is_none() -> None:
    model = Adds()
    model.__dict__[COMPILED] = None
    refuse_compiled(model)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_scripted_is_refused_by_name(inside: bool) -> None:
    scripted = torch.jit.script(nn.Identity())
    with pytest.raises(RuntimeError) as refused:
        refuse_compiled(nn.Sequential(nn.Identity(), scripted) if inside else scripted)
    where = "its submodule '1'" if inside else "RecursiveScriptModule"
    assert str(refused.value) == (
        f"model: {where} is scripted, and hooks do not fire there; probe the module it came from"
    )


def calls_of(module: nn.Module) -> tuple[Any, ...]:
    """All that a call of the module goes through."""
    hooks = (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, module._forward_hooks)
    return (*map(dict, hooks), vars(module).get(COMPILED))


def hook_on(module: nn.Module, kind: Any, seen: list[Any]) -> LayerHook:
    return LayerHook(module, "adds", kind, (), lambda hook, value: seen.append((hook.place, value)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_layer_is_seen_while_its_hook_is_on(kind: str, compiled: bool) -> None:
    module, seen = Adds(), []
    if compiled:
        vars(module)[COMPILED] = module.forward
    before = calls_of(module)
    hook = hook_on(module, kind, seen)
    assert calls_of(module) == before
    hook.take_off()
    assert calls_of(module) == before
    for _ in range(2):
        hook.put_on()
        given = torch.ones(())
        output = module(given, more=1.0)
        assert output.item() == 3.0
        hook.take_off()
        module(given)
        assert calls_of(module) == before
        ((place, value),) = seen
        assert place == ("adds", kind)
        if kind == "input":
            assert value == ((given,), {"more": 1.0})
        else:
            assert value is output
        seen.clear()


def test_an_output_that_is_no_tensor_is_seen_as_a_tuple() -> None:
    class Returns(nn.Module):
        def forward(self, value: Any) -> Any:
            return value

    module, seen = Returns(), []
    hook = hook_on(module, "output", seen)
    hook.put_on()
    module({"hidden": 1, "more": 2})
    module([3])
    assert [value for _, value in seen] == [(1,), [3]]


@pytest.mark.parametrize("kind", ["input", "output"])
def test_hooks_around_a_compiled_call_come_off_one_after_the_other(kind: str) -> None:
    module, seen = Adds(), []
    compiled = module.forward
    vars(module)[COMPILED] = compiled
    hooks = [hook_on(module, kind, seen) for _ in range(2)]
    for hook in hooks:
        hook.put_on()
    module(ZERO)
    assert len(seen) == 2
    hooks[1].take_off()
    module(ZERO)
    assert len(seen) == 3
    hooks[0].take_off()
    assert vars(module)[COMPILED] == compiled
    # What was compiled anew meanwhile stays.
    hooks[0].put_on()
    vars(module)[COMPILED] = again = Adds(2.0).forward
    hooks[0].take_off()
    assert vars(module)[COMPILED] == again
    # And the hook is one of a plain module once that is compiled no more.
    vars(module)[COMPILED] = None
    before = calls_of(module)
    hooks[0].put_on()
    assert calls_of(module) != before
    hooks[0].take_off()
    assert calls_of(module) == before
