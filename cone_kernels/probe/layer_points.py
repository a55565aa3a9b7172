"""Where in a running model each entry of the `hidden_states` tuple can be read, found without knowing the model.

A layer is "what the n-th call of module M returned (or was given)", matched to the tuple of one tiny forward by its
memory rather than by names, so that any architecture, shared layers included, is read by the same few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.models.transformers_names import HIDDEN_STATES
from cone_kernels.probe.calibration import Event, Kind, Path, Recording, record_forward


@dataclass(frozen=True)
class LayerPoint:
    """One layer of `hidden_states` as a place in the model.

    `module` is the qualified name of a submodule (`""` is the model itself), `call` counts its calls within one
    forward, `path` leads to the tensor in its output, or in `(args, kwargs)` for an input. `time_major`: the
    tensor there is (T, B, D). `kept`: nothing writes to it until the forward ends. `padded`: the model adds positions
    after those of the batch, which it takes off the tuple at its end.
    """

    layer: int
    name: str
    module: str
    kind: Kind
    call: int
    path: Path
    time_major: bool = False
    kept: bool = False
    padded: bool = False

    def tensor_in(self, value: Any) -> Tensor:
        """The tensor at `path`.

        Raises:
            RuntimeError: there is none, as where the module returns something else than in the first forward.
        """
        if isinstance(value, Tensor) and self.path in ((), (0,)):
            return value
        # A block may return a tuple where it returned a tensor (output_attentions=True) and the other way round.
        if self.path == () and isinstance(value, tuple):
            value = value[0]
        else:
            for key in self.path:
                value = value[key] if _has(value, key) else None
        if not isinstance(value, Tensor):
            raise RuntimeError(
                f"layer {self.layer} ({self.name}): {self.kind} {self.path} of module {self.module!r} is "
                f"{type(value).__name__} in this forward, and was a tensor in the first"
            )
        return value


@dataclass(frozen=True)
class LayerMap:
    """All layers of a model: where each is read, how often their modules run in one forward, the common width,
    and whether the last layer follows a final norm."""

    points: tuple[LayerPoint, ...]
    calls: Mapping[str, int]
    dim: int
    final_norm: bool


def find_layer_points(
    model: nn.Module,
    arguments: Mapping[str, Any],
    *,
    before_final_norm: bool = False,
    forward: Callable[..., Any] | None = None,
) -> LayerMap:
    """Find where each layer can be read, by one forward of at most eight tokens of the first row, or of its image.

    Args:
        model: any module whose `forward` takes `output_hidden_states` and returns `hidden_states`, or
            `encoder_hidden_states` (an encoder-decoder model called as a whole: its encoder is what is found).
        arguments: the arguments of the call at hand by name, with one of `transformers_names.INPUTS`.
        before_final_norm: read the last layer where the final norm takes it in.
        forward: what is called; default: the model's own.

    Raises:
        RuntimeError: the model returns no hidden states, a layer is nowhere an input or output of a submodule as
            it stands in the tuple, or the layers differ in width.
    """
    modules = {name: module for name, module in model.named_modules() if not isinstance(module, torch.jit.ScriptModule)}
    recording, output, n_given = record_forward(model, arguments, modules, forward)
    entries = _hidden_states(model, output)
    n_tokens = _n_positions(model, entries[0]) if n_given is None else n_given
    recording.fetch(entries)
    dim = _common_width(model, entries, n_tokens)

    chosen: list[Event] = []
    ready = 0
    for layer, entry in enumerate(entries):
        event, ready = _source(recording, entry, ready)
        if event is None:
            raise RuntimeError(
                f"model: layer {layer} of the hidden_states of {type(model).__name__} cannot be probed: no "
                "submodule takes it in or returns it as it stands in the tuple (it is computed outside any "
                "submodule, or changed in place afterwards); use output_hidden_states=True for this model"
            )
        chosen.append(event)

    names = [_name(event) for event in chosen]
    first_kinds = {type(modules[event.module]) for event in chosen[:2]}
    # A model whose tuple begins with the output of its first block (Mamba) has no embedding output in it.
    if len(first_kinds) > 1 or chosen[0].kind == "input":
        names[0] = "embeddings"
    chosen[0] = _taken_in_by_first_block(recording, entries, chosen)

    norm = _final_norm(recording, modules, chosen[-1])
    if norm is not None and before_final_norm:
        chosen[-1] = _norm_input(recording, norm, entries[-1])
        block, _ = _source(recording, chosen[-1].tensor, ready_before=chosen[-2].seen if len(chosen) > 1 else 0)
        names[-1] = _name(chosen[-1] if block is None else block)
    elif norm is not None:
        names[-1] = f"{norm.module} (final norm applied)"

    points = tuple(
        LayerPoint(
            layer,
            name,
            e.module,
            e.kind,
            e.call,
            e.path,
            time_major=tuple(e.tensor.shape[:-1]) == (n_tokens, 1),
            kept=recording.was_kept(e, e.tensor),
            padded=e.begins_with(entries[layer]),
        )
        for layer, (name, e) in enumerate(zip(names, chosen, strict=True))
    )
    calls = {point.module: recording.calls[point.module] for point in points}
    return LayerMap(points, calls, dim, norm is not None and not before_final_norm)


def _hidden_states(model: nn.Module, output: Any) -> Sequence[Tensor]:
    for name in HIDDEN_STATES:
        entries = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(entries, (tuple, list)) and entries and all(isinstance(e, Tensor) for e in entries):
            return entries
    raise RuntimeError(
        f"model: {type(model).__name__} cannot be probed: called with output_hidden_states=True it returned "
        f"{type(output).__name__} without {' or '.join(HIDDEN_STATES)}"
    )


def _n_positions(model: nn.Module, entry: Tensor) -> int:
    """How many positions the model makes of one image or sound; two at least, as (B, T, D) and (T, B, D) look alike of
    one."""
    if entry.dim() != 3 or len(entry) != 1 or entry.shape[1] < 2:
        raise RuntimeError(
            f"model: the hidden_states of {type(model).__name__} have shape {tuple(entry.shape)} for one image or "
            "sound; it must be (1, T, D), a vector for each of two positions or more"
        )
    return entry.shape[1]


def _common_width(model: nn.Module, entries: Sequence[Tensor], n_tokens: int) -> int:
    for layer, entry in enumerate(entries):
        if tuple(entry.shape[:-1]) not in ((1, n_tokens), (n_tokens,)):
            raise RuntimeError(
                f"model: layer {layer} of the hidden_states of {type(model).__name__} has shape "
                f"{tuple(entry.shape)} for a batch of (1, {n_tokens}) tokens; it must have one vector for each token"
            )
    widths = [int(entry.shape[-1]) for entry in entries]
    if len(set(widths)) > 1:
        listed = ", ".join(f"{layer}: {width}" for layer, width in enumerate(widths))
        raise RuntimeError(
            f"model: the layers of {type(model).__name__} differ in width ({listed}); a state needs one width"
        )
    return widths[0]


def _source(recording: Recording, entry: Tensor, ready_before: int) -> tuple[Event | None, int]:
    """The event that best stands for `entry`, and when `entry` was first seen.

    Of the calls that returned it, or it with padding of the model's own after it, the outermost that began after the
    layer before was ready (a block rather than the norm at its end, and not the encoder around all blocks); else the
    first call of a submodule that took it in.
    """
    aliases = [event for event in recording.events if event.is_memory_of(entry)]
    ready = min((event.seen for event in aliases), default=ready_before)
    kept = [event for event in aliases if recording.was_kept(event, entry)]
    outputs = [event for event in kept if event.kind == "output"]
    inputs = [event for event in kept if event.kind == "input" and event.module]
    if not aliases:
        padded = [e for e in recording.events if e.kind == "output" and e.module and e.begins_with(entry)]
        first = next((e for e in padded if recording.was_kept(e, e.tensor)), None)
        if first is not None:
            around = [e for e in padded if ready_before < e.started <= first.started]
            return (around[-1] if around else first), first.seen
    if not aliases:
        # The tuple holds a copy: the last call that returned these numbers is the layer all the same.
        equal = [e for e in recording.events if e.kind == "output" and recording.has_value_of(e, entry)]
        outputs = ([e for e in equal if e.module] or equal)[-1:]
        ready = outputs[0].seen if outputs else ready_before
    if outputs:
        first = outputs[0]
        around = [e for e in outputs if ready_before < e.started <= first.started and e.module]
        return (around[-1] if around else first), ready
    return (inputs[0] if inputs else None), ready


def _name(event: Event) -> str:
    module = event.module or "the model"
    return module if event.kind == "output" and event.module else f"{event.kind} of {module}"


def _taken_in_by_first_block(recording: Recording, entries: Sequence[Tensor], chosen: Sequence[Event]) -> Event:
    """Layer 0 as the first block takes it in, where it does: however the embeddings came about."""
    if len(chosen) > 1 and chosen[1].kind == "output":
        for event in recording.of_call(chosen[1].module, chosen[1].call, "input"):
            if event.is_memory_of(entries[0]) and recording.was_kept(event, entries[0]):
                return event
            if event.begins_with(entries[0]) and recording.was_kept(event, event.tensor):
                return event
    return chosen[0]


def _final_norm(recording: Recording, modules: Mapping[str, nn.Module], last: Event) -> Event | None:
    """The output of the norm that made the last layer, looking through dropout; None where none did."""
    event: Event | None = last
    while event is not None and event.kind == "output":
        module = modules[event.module]
        if "norm" in type(module).__name__.lower() and not any(True for _ in module.children()):
            return event
        given = event.passed_through
        outputs = [e for e in recording.events if given is not None and e.kind == "output" and e.is_memory_of(given)]
        event = outputs[0] if outputs else None
    return None


def _norm_input(recording: Recording, norm: Event, entry: Tensor) -> Event:
    taken = recording.of_call(norm.module, norm.call, "input")
    inputs = [event for event in taken if event.tensor.numel() == entry.numel()]
    if len(inputs) != 1:
        raise RuntimeError(
            f"before_final_norm: the final norm {norm.module!r} takes in {len(inputs)} tensors of a layer's shape; "
            "it must take in one, the hidden states"
        )
    return inputs[0]


def _has(value: Any, key: int | str) -> bool:
    return key in value if isinstance(value, dict) else isinstance(value, (tuple, list)) and key in range(len(value))
