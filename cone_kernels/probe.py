"""Hidden states of a running model -> state, by hooks on the modules that make them; nothing is kept."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from cone_kernels.calibration import Kind, as_tuple, bind_arguments, calibrating
from cone_kernels.layer_points import LayerMap, LayerPoint, find_layer_points
from cone_kernels.moments import ConeState
from cone_kernels.pooling_names import pooling_names
from cone_kernels.poolings import refuse_missing_special
from cone_kernels.sentence_batch import SentenceBatch
from cone_kernels.watched_forward import WatchedForward, refuse_compiled, unwrapped

_WHY_NOTHING = (
    "call the model inside the `with` block. In a compiled model hooks do not fire: probe "
    "and call the module it was made from (model._orig_mod)"
)

_HALF_ADDED = (
    "Its sentences are in the sums of some layers and not of others, so this state is lost: "
    "call reset() to begin another"
)
_MASK_HINT = "; say which tokens count by next_batch(mask=...)"

# Bits of the status that ConeState.update gives for each layer and sentence.
_FAULTS = {1: "a zero token", 2: "a token that is not finite", 4: "no token under the mask"}


@dataclass
class _Forward:
    """What the probe knows of the forward that is running."""

    sentence_ids: Tensor  # (B,) int64
    mask: Tensor  # (B, T) bool
    calls: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    added: set[int] = field(default_factory=set)
    status: dict[int, Tensor] = field(default_factory=dict)
    cu_seqlens: Tensor | None = None  # (B + 1,) int64
    batches: dict[bool, SentenceBatch] = field(default_factory=dict)
    special: Tensor | None = None  # (B, T) bool

    def n_packed(self) -> int:
        """How many rows the batch has with its padding left out; fills in `cu_seqlens`."""
        if self.cu_seqlens is None:
            self.cu_seqlens = nn.functional.pad(self.mask.sum(dim=1).cumsum(0), (1, 0))
        return int(self.cu_seqlens[-1])

    def batch_of(self, hidden: Tensor) -> SentenceBatch:
        """The batch as layers of this form, padded or packed, take it; checked for the first of them."""
        packed = hidden.dim() == 2
        if packed not in self.batches:
            mask, starts = (None, self.cu_seqlens) if packed else (self.mask, None)
            special = self.special[self.mask] if packed and self.special is not None else self.special
            self.batches[packed] = SentenceBatch.of(hidden, mask, starts, self.sentence_ids, special=special)
        return self.batches[packed]

    def move_to(self, device: torch.device) -> None:
        if device == self.mask.device:
            return
        self.sentence_ids = self.sentence_ids.to(device)
        self.mask = self.mask.to(device)
        self.special = None if self.special is None else self.special.to(device)
        self.cu_seqlens = None if self.cu_seqlens is None else self.cu_seqlens.to(device)
        self.batches.clear()


class ConeProbe:
    """Gathers the sums of every layer, at both levels, while a Hugging Face model runs.

    ``with ConeProbe(model) as probe: model(**batch)`` adds each hidden state, where it is made, to ``probe.state``
    and keeps none of them; ``output_hidden_states`` stays off and the model's outputs and gradients are what they are
    without the probe. Layers are numbered as Hugging Face's ``hidden_states`` tuple: 0 the embedding output, k the
    output of block k, the last one as the model returns it (after the final norm in most decoders: `final_norm`).
    Where to read them is found on the first forward, by one forward of at most eight of its tokens with
    ``output_hidden_states=True``; hooks of your own see that one too. Of an encoder-decoder model called as a whole
    the encoder is probed. One forward is one batch of whole sentences: no key-value cache from earlier forwards.

    Args:
        model: what ``AutoModel`` returns, with or without a head; DDP and one-device DataParallel are unwrapped.
        second_moment, unit_second_moment: also keep Σ x xᵀ, Σ u uᵀ, (L, d, d) float64.
        before_final_norm: take the last layer where the final norm takes it in.
        poolings: further poolings of the sentence level, as in ``ConeState.empty``.
        strict: raise at the end of a forward in which a token is zero or not finite, or a sentence has no token.
        backend: ``auto``, ``reference``, ``cpu``, ``triton`` or ``cuda``.
        on_pooled: called with each layer's number, the batch's sentence ids (B,) and its sentence vectors (B, D), a row
            of NaN for a sentence without a token; the vectors are the caller's to keep.

    Raises:
        TypeError: `model` is no ``torch.nn.Module``.
        RuntimeError: the model cannot be probed (compiled, scripted, replicated over devices, no hidden states); from
            the model's own call: a layer was not seen. What is wrong with one batch is a ValueError from that call.

    Example::

        with ConeProbe(model) as probe, torch.inference_mode():
            for batch in batches:
                model(**batch)
        cosine = metrics.anisotropy(probe.state.sentence)  # (L,)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        second_moment: bool = False,
        unit_second_moment: bool = False,
        before_final_norm: bool = False,
        poolings: str | Sequence[str] = (),
        strict: bool = False,
        backend: str = "auto",
        on_pooled: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> None:
        self._model = unwrapped(model)
        refuse_compiled(self._model)
        self._moments = {"second_moment": second_moment, "unit_second_moment": unit_second_moment}
        self._before_final_norm = before_final_norm
        self._poolings = pooling_names(poolings)
        self._strict = strict
        self._backend = backend
        self._on_pooled = on_pooled
        self._state: ConeState | None = None
        self._map: LayerMap | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._watched: WatchedForward | None = None
        self._next: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        self._forward: _Forward | None = None
        self._n_sentences = 0
        self._n_forwards = 0
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Wall time spent on adding hidden states to the sums, by all forwards so far; `reset` does not take it back.

        On a GPU, where kernels run behind the host, it is the host's time alone.
        """
        return self._seconds

    @property
    def state(self) -> ConeState:
        """The sums so far. RuntimeError before the first forward, and after one that stopped half-way (see `reset`)."""
        self._refuse_half_added()
        if self._state is None:
            raise RuntimeError(f"state: no forward of {self._name} has been seen yet; {_WHY_NOTHING}")
        return self._state

    @property
    def layer_names(self) -> tuple[str, ...]:
        """What each layer is, by module name: ``embeddings``, ``encoder.layer.0``, ``norm (final norm applied)``."""
        return tuple(point.name for point in self._known_map("layer_names").points)

    @property
    def final_norm(self) -> bool:
        """Whether the last layer is taken after a norm that follows the last block."""
        return self._known_map("final_norm").final_norm

    def next_batch(
        self,
        sentence_ids: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        special: Tensor | None = None,
    ) -> None:
        """Tell the next forward's sentence ids, and the tokens that count where those differ from its attention_mask.

        Args:
            sentence_ids: (B,) integers >= 0, the index of each sentence in the corpus. Default: the number of
                sentences seen so far, counting up.
            mask: (B, T) bool or 0/1 integers.
            special: (B, T) alike: 1 = a token that the tokenizer adds; for the pooling mean_without_special.
        """
        ids = None if sentence_ids is None else torch.as_tensor(sentence_ids)
        if ids is not None and (ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool):
            raise ValueError(f"sentence_ids: got {ids.dtype} of shape {tuple(ids.shape)}, wants integers (B,)")
        masks = {"mask": mask, "special": special}
        checked = {name: None if value is None else _checked_mask(value, name) for name, value in masks.items()}
        self._next = (ids, checked["mask"], checked["special"])

    def reset(self) -> None:
        """Forget the sums and start anew with the next forward; its sentence ids count up from 0 again."""
        self._state, self._forward, self._n_sentences = None, None, 0

    def __enter__(self) -> ConeProbe:
        if self._watched is not None:
            raise RuntimeError(f"this ConeProbe is already attached to {self._name}; leave its `with` block first")
        refuse_compiled(self._model)
        self._watched = WatchedForward(self._model, self._run_forward)
        self._n_forwards = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watched is not None:
            self._watched.remove()
        for handle in self._handles:
            handle.remove()
        self._watched, self._handles = None, []
        if error is None and self._n_forwards == 0:
            raise RuntimeError(f"the probe saw no forward of {self._name}: {_WHY_NOTHING}")

    def _run_forward(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's forward, with the layers added as they come."""
        arguments = None if calibrating.get() else bind_arguments(self._model, args, kwargs)
        if arguments is None:
            return forward(*args, **kwargs)  # where the call does not fit, forward itself says so
        self._n_forwards += 1
        self._refuse_half_added()
        given, self._next = self._next, (None, None, None)
        self._forward = self._checked_forward(arguments, *given)
        found = self._found_layers(arguments)
        output = forward(*args, **kwargs)
        self._see("", "output", [point for point in found.points if point.module == ""], as_tuple(output))
        self._end_forward(found)
        return output

    def _checked_forward(
        self, arguments: dict[str, Any], ids: Tensor | None, mask: Tensor | None, special: Tensor | None
    ) -> _Forward:
        cache = arguments.get("past_key_values")
        if cache is not None and getattr(cache, "get_seq_length", lambda: len(cache))() > 0:
            raise ValueError(
                "past_key_values: got a cache with earlier tokens, wants none: a probed forward takes in whole "
                "sentences (generate() continues them; probe the forward on the prompt alone)"
            )
        tokens = arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor) or tokens.dim() < 2 or 0 in tokens.shape[:2]:
            got = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else "none"
            raise ValueError(
                f"input_ids or inputs_embeds: got {got}, wants at least one token, (B, T) or (B, T, D) (of a "
                "SentenceTransformer probe the model inside, model[0].auto_model)"
            )
        size = tokens.shape[:2]
        name = "mask" if mask is not None else "attention_mask"
        mask = mask if mask is not None else arguments.get("attention_mask")
        every_token = torch.ones(size, dtype=torch.bool, device=tokens.device)
        mask = every_token if mask is None else _checked_mask(mask, name)
        if mask.shape != size:
            longer = " (continuing from a key-value cache cannot be probed)" if mask.shape[1] > size[1] else ""
            raise ValueError(f"{name}: got shape {tuple(mask.shape)}, wants {tuple(size)} as the tokens{longer}")
        if ids is None:
            ids = torch.arange(self._n_sentences, self._n_sentences + size[0])
        if len(ids) != size[0]:
            raise ValueError(f"sentence_ids: got {len(ids)} ids, wants {size[0]}, one for each row of the batch")
        refuse_missing_special(self._poolings, special)
        if special is not None and special.shape != size:
            raise ValueError(f"special: got shape {tuple(special.shape)}, wants {tuple(size)} as the tokens")
        return _Forward(ids.to(torch.int64), mask, special=special)

    def _found_layers(self, arguments: dict[str, Any]) -> LayerMap:
        if self._map is not None and self._handles:
            return self._map
        found = find_layer_points(self._model, arguments, before_final_norm=self._before_final_norm)
        if self._state is not None and found != self._map:
            raise RuntimeError(f"{self._name} changed since the state was begun: its layers are elsewhere; see reset()")
        self._map = found
        modules = dict(self._model.named_modules())
        for name in found.calls:
            here = [point for point in found.points if point.module == name and name != ""]
            self._watch(modules[name], name, [point for point in here if point.kind == "input"], "input")
            self._watch(modules[name], name, [point for point in here if point.kind == "output"], "output")
        return found

    def _watch(self, module: nn.Module, name: str, points: list[LayerPoint], kind: Kind) -> None:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._see(name, kind, points, (args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._see(name, kind, points, as_tuple(output))

        if points and kind == "input":
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        elif points:
            self._handles.append(module.register_forward_hook(after))

    def _see(self, name: str, kind: Kind, points: list[LayerPoint], value: Any) -> None:
        # Outside a forward: a calibration, or the backward pass recomputing a checkpointed block.
        if not points or self._forward is None or calibrating.get():
            return
        call = self._forward.calls[name, kind]
        self._forward.calls[name, kind] += 1
        for point in points:
            if point.call == call:
                self._add(point, point.tensor_in(value))

    def _add(self, point: LayerPoint, hidden: Tensor) -> None:
        """Add what a layer's place holds, (B, T, D), (T, B, D) or packed (N, D), if its shape fits the batch."""
        forward, found = self._forward, self._map
        assert forward is not None
        assert found is not None
        hidden = hidden.detach()
        forward.move_to(hidden.device)
        if point.time_major and hidden.dim() == 3:
            hidden = hidden.transpose(0, 1)
        packed = hidden.dim() == 2
        fits = len(hidden) == forward.n_packed() if packed else hidden.shape[:2] == forward.mask.shape
        if not fits:
            wanted = (
                f"({forward.n_packed()}, D) for the tokens under the mask"
                if packed
                else f"{(*forward.mask.shape, found.dim)}"
            )
            raise ValueError(
                f"layer {point.layer} ({point.name}): got hidden states of shape {tuple(hidden.shape)}, wants {wanted}"
            )
        self._update(point.layer, hidden, forward, found)

    def _update(self, layer: int, hidden: Tensor, forward: _Forward, found: LayerMap) -> None:
        """Add one layer, (B, T, D) or packed (N, D), to the sums."""
        started = time.perf_counter()
        forward.added.add(layer)
        # The sums must not become bfloat16 under the user's autocast, nor inference tensors under inference_mode.
        device = hidden.device
        exact = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
        with torch.inference_mode(False), torch.no_grad(), exact:
            if self._state is None:
                self._state = self._empty_state(found, device)
            added = self._state.add(forward.batch_of(hidden), [hidden], [layer])
            if self._on_pooled is not None:
                self._on_pooled(layer, forward.sentence_ids, added.pooled[0])
        if self._strict:
            forward.status[layer] = added.status[0]
        self._seconds += time.perf_counter() - started

    def _empty_state(self, found: LayerMap, device: torch.device) -> ConeState:
        info = {
            "model": getattr(getattr(self._model, "config", None), "_name_or_path", "") or self._name,
            "layer_names": list(self.layer_names),
            "final_norm": found.final_norm,
        }
        layers = range(len(found.points))
        return ConeState.empty(
            layers, found.dim, **self._moments, poolings=self._poolings, backend=self._backend, device=device, info=info
        )

    def _end_forward(self, found: LayerMap) -> None:
        forward = self._forward
        if forward is None:
            return  # reset() was called meanwhile
        missing = [point for point in found.points if point.layer not in forward.added]
        if not forward.added:
            raise RuntimeError(f"{self._name}: no hook fired for any layer of this forward; {_WHY_NOTHING}")
        if missing:
            listed = ", ".join(f"{point.layer} ({point.name})" for point in missing)
            raise RuntimeError(
                f"{self._name}: this forward went through without a hook firing for layers {listed} "
                f"(blocks skipped at random, or parts compiled since?). {_HALF_ADDED}"
            )
        for (name, kind), calls in forward.calls.items():
            if calls != found.calls[name]:
                raise RuntimeError(
                    f"{self._name}: {name!r} ran {calls} times in this forward and {found.calls[name]} times in the "
                    f"first, so its {kind}s cannot be told apart as layers. {_HALF_ADDED}"
                )
        self._n_sentences += len(forward.mask)
        self._forward = None
        if self._strict:
            self._refuse_faults(forward, found)

    def _refuse_faults(self, forward: _Forward, found: LayerMap) -> None:
        faults = []
        for layer, status in sorted(forward.status.items()):
            for bit, what in _FAULTS.items():
                ids = forward.sentence_ids[(status & bit).bool().to(forward.sentence_ids.device)].tolist()
                if ids:
                    listed = ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
                    faults.append(f"layer {layer} ({found.points[layer].name}): {what} in sentences {listed}")
        if faults:
            raise ValueError("strict: " + "; ".join(faults))

    def _refuse_half_added(self) -> None:
        if self._forward is not None and self._forward.added:
            layers = sorted(self._forward.added)
            raise RuntimeError(f"a forward of {self._name} stopped after layers {layers} had been added. {_HALF_ADDED}")
        self._forward = None

    def _known_map(self, name: str) -> LayerMap:
        if self._map is None:
            raise RuntimeError(f"{name}: not known before the first forward of {self._name}; {_WHY_NOTHING}")
        return self._map

    @property
    def _name(self) -> str:
        return type(self._model).__name__


def _checked_mask(mask: object, name: str) -> Tensor:
    """(B, T) bool from a mask of bool or 0/1 integers."""
    hint = "" if name == "special" else _MASK_HINT
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: got {type(mask).__name__}, wants a tensor (B, T){hint}")
    if mask.dim() != 2 or mask.is_floating_point():
        raise ValueError(
            f"{name}: got {mask.dtype} of shape {tuple(mask.shape)}, wants bool or 0/1 integers (B, T){hint}"
        )
    if mask.dtype == torch.bool:
        return mask
    # Sequence numbers of packed batches, or Longformer's 2 for global attention, do not say which tokens count.
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{name}: got values other than 0 and 1{hint}")
    return mask.to(torch.bool)
