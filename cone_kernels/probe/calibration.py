"""One tiny forward of a model, recorded: what went into and came out of every submodule, in order."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cone_kernels.devices import to_device
from cone_kernels.models.compiled_blocks import as_written
from cone_kernels.models.transformers_names import (
    ATTENTION_MASK,
    DECODER_TOKENS,
    INNER_MODEL,
    INPUTS,
    OTHER_INPUTS,
    RETURN_HIDDEN_STATES,
    RETURN_MAPPING,
    TOWERS,
)

MAX_TOKENS = 8
MAX_SAMPLES = 1 << 15  # of a wave: two seconds at 16 kHz, so about a hundred frames
# Rows of a tensor that tell it from others: all that a few tokens have, and some of the many of an image.
_TOLD_BY = 64

Path = tuple[int | str, ...]
Kind = Literal["input", "output"]

# True while a calibration forward runs: every probe on the model leaves it out.
calibrating: ContextVar[bool] = ContextVar("calibrating", default=False)


@dataclass
class Event:
    """A tensor that went into or came out of one call of one module; kept, so that its memory is not used again.

    Attributes:
        module: qualified name of the submodule; `""` is the model itself.
        kind: whether it went in or came out.
        call: which call of the module, from 0.
        path: the keys that lead to the tensor in `(args, kwargs)`, or in the output.
        started: when the call began, on the clock of the recording.
        seen: when the tensor was seen.
        tensor: the tensor itself.
        value: (n, D) a copy of all or some of its rows from then.
        version: how often torch had written to its memory by then.
        passed_through: what a module that returned its own input (dropout in eval mode) was given.
    """

    module: str
    kind: Kind
    call: int
    path: Path
    started: int
    seen: int
    tensor: Tensor
    value: Tensor
    version: int
    passed_through: Tensor | None = None

    def begins_with(self, other: Tensor) -> bool:
        """Whether `other` (1, T, D) is the first positions of this tensor (1, T', D), in its memory, others after."""
        ours, theirs = self.tensor, other
        if ours.dim() != 3 or theirs.dim() != 3 or (ours.dtype, ours.device) != (theirs.dtype, theirs.device):
            return False
        longer = ours.shape[0::2] == theirs.shape[0::2] and ours.shape[1] > theirs.shape[1]
        return longer and ours.data_ptr() == theirs.data_ptr() and ours.stride() == theirs.stride()

    def is_memory_of(self, other: Tensor) -> bool:
        """Whether this tensor and `other` are the same elements of the same memory."""
        return _same_memory(self.tensor, other)


@dataclass
class Recording:
    """The events of one forward in order, how often each module was called, and the calls that are running.

    `running` has (call, when it began) for each, the innermost last; `clock` counts what has happened so far.
    """

    events: list[Event] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    running: list[tuple[int, int]] = field(default_factory=list)
    clock: int = 0
    _numbers: dict[int, Tensor] = field(default_factory=dict)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def add(self, module: str, kind: Kind, call: int, path: Path, started: int, tensor: Tensor) -> Event:
        value, version = _some_rows(tensor).clone(), _version(tensor)
        event = Event(module, kind, call, path, started, self.tick(), tensor, value, version)
        self.events.append(event)
        return event

    def fetch(self, entries: Sequence[Tensor]) -> None:
        """Brings all numbers to the host together, so that it waits for the device once and not at each comparison.

        Args:
            entries: the tensors, beside those of the events, that will be asked for; what they hold from now on counts.
        """
        tensors = [*entries, *(tensor for event in self.events for tensor in (event.tensor, event.value))]
        self._numbers = _on_host({id(tensor): _some_rows(tensor) for tensor in tensors})

    def has_value_of(self, event: Event, entry: Tensor) -> bool:
        """Whether the tensor of the event held, when seen, the numbers that `entry` held at `fetch`."""
        if not _alike(event.tensor, entry):
            return False
        a, b = self._numbers[id(event.value)].reshape(-1), self._numbers[id(entry)].reshape(-1)
        return bool(((a == b) | (a.isnan() & b.isnan())).all())

    def was_kept(self, event: Event, entry: Tensor) -> bool:
        """Whether nothing wrote to the memory, which is that of `entry`, after the event."""
        return event.version == _version(entry) and self.has_value_of(event, entry)

    def of_call(self, module: str, call: int, kind: Kind) -> list[Event]:
        return [e for e in self.events if (e.module, e.call, e.kind) == (module, call, kind)]


def record_forward(
    model: nn.Module,
    arguments: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    forward: Callable[..., Any] | None = None,
) -> tuple[Recording, Any, int | None]:
    """Run the first row's first tokens (2 to 8), or its image or sound, with `output_hidden_states=True`, recorded.

    Training flags, random state, gradient mode and autocast are as before when this returns. Returns the recording of
    `modules`, the model's output and the number of tokens, None of an image or a sound. `forward` is the model's, where
    that is running already.

    Raises:
        RuntimeError: the model takes no `output_hidden_states`, its call no tokens, or the forward failed.
    """
    kwargs, n_tokens = _short_call(model, arguments)
    with _quiet_forward(model), _recorded({name: modules[name] for name in modules if name}) as recording:
        before, after = _recording_hooks(recording, "")
        try:
            # Not model(...): the hooks of FSDP and others around the forward that is running must not run in it. Nor
            # model.forward(...) within what stands around that: an autocast that is entered twice is never left.
            before(model, (), kwargs)
            output = (forward or model.forward)(**kwargs)
            after(model, (), kwargs, output)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            what = "the first row" if n_tokens is None else f"{n_tokens} tokens of the first row"
            raise RuntimeError(
                f"model: {type(model).__name__} cannot be probed: a calibration forward on {what}, with "
                f"{sorted(kwargs)}, failed with {type(error).__name__}: {error}"
            ) from error
    return recording, output, n_tokens


def _short_call(model: nn.Module, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if RETURN_HIDDEN_STATES not in parameters and not takes_any:
        raise RuntimeError(
            f"model: {type(model).__name__}.forward takes no {RETURN_HIDDEN_STATES}, by which the probe finds the "
            f"layers; probe the Hugging Face model inside it (of a SentenceTransformer: model[0].{INNER_MODEL})"
        )
    if all(hasattr(model, tower) and hasattr(model, method) for tower, method in TOWERS.items()):
        raise RuntimeError(
            f"model: {type(model).__name__} has a tower of texts and one of images, each with layers of its own; probe "
            f"one of them, {' or '.join(f'model.{tower}' for tower in TOWERS)}"
        )
    name = next(name for name in INPUTS if isinstance(arguments.get(name), Tensor))
    if name in OTHER_INPUTS:
        one = _call_of_one(arguments, name)
        return one | {RETURN_HIDDEN_STATES: True} | (
            {RETURN_MAPPING: True} if RETURN_MAPPING in parameters else {}
        ), None
    tokens, mask = arguments[name], arguments.get(ATTENTION_MASK)
    # Inference tensors cannot be changed in place outside inference mode, so the row is cloned outside it.
    with torch.inference_mode(False):
        row = tokens[0].clone()
        if isinstance(mask, Tensor) and mask.shape == tokens.shape[:2]:
            counted = mask[0].cpu().nonzero()[:, 0]  # on the CPU, where looking at them makes the host wait no more
            row = row[to_device(counted, row.device)] if len(counted) > 0 else row
        # Two tokens at least: with one, (B, T, D) and (T, B, D) look alike.
        row = (row if len(row) > 1 else torch.cat([row, row]))[:MAX_TOKENS]
        kwargs: dict[str, Any] = {name: row.unsqueeze(0), RETURN_HIDDEN_STATES: True}
        tuples_by_default = takes_any and getattr(getattr(model, "config", None), RETURN_MAPPING, True) is False
        if RETURN_MAPPING in parameters or tuples_by_default:
            kwargs[RETURN_MAPPING] = True
        if isinstance(mask, Tensor):
            kwargs[ATTENTION_MASK] = torch.ones(1, len(row), dtype=torch.int64, device=row.device)
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            for decoder in DECODER_TOKENS:
                if isinstance(arguments.get(decoder), Tensor):
                    kwargs[decoder] = arguments[decoder][:1, :MAX_TOKENS].clone()
    return kwargs, len(row)


def _call_of_one(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The call of the first image or sound alone: all tensors with a row for each, and the plain values beside them."""
    given = arguments[name]
    is_wave = given.dim() == 2
    kwargs: dict[str, Any] = {}
    with torch.inference_mode(False):
        for key, value in arguments.items():
            if isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(given):
                row = value[:1, :MAX_SAMPLES] if is_wave and value.shape == given.shape else value[:1]
                kwargs[key] = torch.ones_like(row) if is_wave and key == ATTENTION_MASK else row.clone()
            elif isinstance(value, (bool, int, float, str)) and not key.startswith("output_"):
                kwargs[key] = value
    return kwargs


@contextmanager
def _quiet_forward(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; flags, random state and autocast's casts as before on the way out."""
    training = [module for module in model.modules() if module.training]
    tensors = [*model.parameters(), *model.buffers()]
    accelerators: dict[str, set[torch.device]] = {}
    for tensor in tensors:
        if tensor.device.type not in ("cpu", "meta"):
            accelerators.setdefault(tensor.device.type, set()).add(tensor.device)
    token = calibrating.set(True)
    try:
        with ExitStack() as stack:
            stack.enter_context(_hooks_as_found(model))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            for kind, devices in accelerators.items():
                stack.enter_context(torch.random.fork_rng(devices=list(devices), device_type=kind))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(_classes_before_sharding(model))
            stack.enter_context(as_written(model))
            for module in training:
                module.training = False
            yield
    finally:
        for module in training:
            module.training = True
        calibrating.reset(token)
        # Autocast keeps its casts of the weights; those made without gradients would cut the user's graph.
        torch.clear_autocast_cache()


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@contextmanager
def _hooks_as_found(model: nn.Module) -> Iterator[None]:
    """Takes off what transformers leaves at the first call for hidden states: hooks that pickle refuses, and a flag."""
    found = [
        (module, [(hooks, set(hooks)) for hooks in (getattr(module, name) for name in _HOOKS)], _flags(module))
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, hooks_then, flags in found:
            for hooks, numbers in hooks_then:
                for number in hooks.keys() - numbers:
                    del hooks[number]
            for name in _flags(module).keys() - flags.keys():
                del module.__dict__[name]
            module.__dict__.update(flags)


def _flags(module: nn.Module) -> dict[str, bool]:
    return {name: value for name, value in module.__dict__.items() if isinstance(value, bool)}


@contextmanager
def _classes_before_sharding(model: nn.Module) -> Iterator[None]:
    """transformers 5 finds what a model can return by its class's name, and FSDP2 gives it a class of another name."""
    if "torch.distributed.fsdp" not in sys.modules:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    sharded = {module: type(module) for module in model.modules() if isinstance(module, FSDPModule)}
    try:
        for module, kind in sharded.items():
            module.__class__ = next(base for base in kind.__bases__ if base is not FSDPModule)
        yield
    finally:
        for module, kind in sharded.items():
            module.__class__ = kind


@contextmanager
def _recorded(modules: Mapping[str, nn.Module]) -> Iterator[Recording]:
    recording = Recording()
    with ExitStack() as stack:
        for name, module in modules.items():
            before, after = _recording_hooks(recording, name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield recording


def _recording_hooks(recording: Recording, name: str) -> tuple[Any, Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call, started = recording.calls[name], recording.tick()
        recording.calls[name] += 1
        recording.running.append((call, started))
        for path, tensor in _float_tensors((args, kwargs), depth=3):
            recording.add(name, "input", call, path, started, tensor)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        call, started = recording.running.pop()
        given: Tensor | None = None
        if isinstance(output, Tensor):
            inputs = _float_tensors((args, kwargs), depth=3)
            given = next((tensor for _, tensor in inputs if _same_memory(tensor, output)), None)
        # Dropout returns its input in eval mode but not in training: a copy tells before from after.
        copy = None if given is None else output.clone()
        for path, tensor in _float_tensors(as_tuple(output) if copy is None else copy, depth=1):
            event = recording.add(name, "output", call, path, started, tensor)
            event.passed_through = given
        return copy

    return before, after


def as_tuple(output: Any) -> Any:
    """A model output or dict as a tuple of its first value, the hidden states; anything else as it is."""
    return tuple(output.values())[:1] if isinstance(output, Mapping) else output


def _float_tensors(value: Any, depth: int, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The floating-point tensors in nested tuples, lists and dicts, each with the keys that lead to it."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dim() > 1:
            yield path, value
    elif depth > 0 and isinstance(value, (tuple, list, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _float_tensors(item, depth - 1, (*path, key))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _some_rows(tensor: Tensor) -> Tensor:
    """(n, D): all rows of a few, and some of many, the same ones of all tensors of this size."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows[:: max(1, len(rows) // _TOLD_BY)]


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.device, a.dtype, a.numel(), a.shape[-1:]) == (b.device, b.dtype, b.numel(), b.shape[-1:])


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if not _alike(a, b) or a.data_ptr() != b.data_ptr():
        return False
    return (a.is_contiguous() and b.is_contiguous()) or (a.shape == b.shape and a.stride() == b.stride())


def _on_host(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The tensors, those of a device as flat copies on the CPU: one copy for each device and dtype."""
    found = {key: tensor for key, tensor in tensors.items() if tensor.device.type == "cpu"}
    apart: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for key, tensor in tensors.items():
        if key not in found:
            apart.setdefault((tensor.device, tensor.dtype), []).append(key)
    for keys in apart.values():
        together = torch.cat([tensors[key].reshape(-1) for key in keys]).cpu()
        found |= zip(keys, torch.split(together, [tensors[key].numel() for key in keys]), strict=True)
    return found
