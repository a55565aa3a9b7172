"""Adds the hidden states of a running model to a state, by hooks that are there only while a forward runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cone_kernels.devices import to_device
from cone_kernels.names import pooling_names
from cone_kernels.probe.calibration import Kind, as_tuple, bind_arguments, calibrating
from cone_kernels.probe.forward import BatchNotes, ProbedForward, checked_mask
from cone_kernels.probe.layer_hook import LayerHook
from cone_kernels.probe.layer_points import LayerMap, LayerPoint, find_layer_points
from cone_kernels.probe.side_stream import SideStream
from cone_kernels.probe.watched_forward import WatchedForward, in_backward, refuse_compiled, unwrapped
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.description import second_moments_in_words

During = Literal["always", "training", "evaluation"]

_WHY_NOTHING = (
    "call the model inside the `with` block. In a compiled model hooks do not fire: probe "
    "and call the module it was made from (model._orig_mod)"
)

_HALF_ADDED = (
    "Its sentences are in the sums of some layers and not of others, so this state is lost: "
    "call reset() to begin another"
)
_NOT_ADDED = "It is in none of the sums"

# The bits of the status that ConeState.update returns for each layer and sentence.
_FAULTS = {1: "a zero token", 2: "a token that is not finite", 4: "no token under the mask"}


class ConeProbe:
    """Gathers the sums of every layer, at both levels, while a Hugging Face model runs.

    `with ConeProbe(model) as probe: model(**batch)` adds each hidden state to `probe.state` and keeps none beyond
    the forward; `output_hidden_states` stays off and the model's outputs and gradients are what they are without the
    probe. In inference layers wait for each other, in little memory, so that one call adds many. Layers are numbered
    as Hugging Face's `hidden_states` tuple: 0 the embedding output, k the output of block k, the last one as the
    model returns it (after the final norm in most decoders: `final_norm`).
    Where to read them is found on the first forward, by one forward of at most eight of its tokens with
    `output_hidden_states=True`; hooks of your own see that one too. Of an encoder-decoder model called as a whole
    the encoder is probed. One forward is one batch of whole sentences: no key-value cache from earlier forwards; a
    batch flattened into one row (1, N) is recognised by its `cu_seq_lens_q`.

    In a training job the layers are those of the forward as it ran, under its dropout and autocast. Forwards within
    the backward pass, as gradient checkpointing and cached contrastive losses run them again, are not counted. A
    forward that is left out costs nothing: the hooks are on the model only while a forward is counted.

    Args:
        model: what `AutoModel` returns, with or without a head; DDP and one-device DataParallel are unwrapped.
        second_moment, unit_second_moment: also keep Σ x xᵀ, Σ u uᵀ, (L, d, d) float64.
        before_final_norm: take the last layer where the final norm takes it in.
        pooling, poolings: of the sentence level, as in `ConeState.empty`.
        strict: raise at the end of a forward in which a token is zero or not finite, or a sentence has no token.
        backend: `auto`, `reference`, `cpu`, `triton` or `cuda`.
        every: of the forwards in training mode count the first and every `every`-th from there; in evaluation all.
            Where a step has several forwards, choose steps by pause() and resume().
        during: `training` or `evaluation`: count only forwards in that mode of the model; `always`.
        on_pooled: called with each layer's number, the batch's sentence ids (B,) and its sentence vectors (B, D), a row
            of NaN for a sentence without a token; the vectors are the caller's to keep. On a GPU it is called with the
            stream current that made them.

    Raises:
        TypeError: `model` is no `torch.nn.Module`.
        ValueError: `every` is below 1, or `during` or a pooling is unknown.
        RuntimeError: the model cannot be probed (compiled, scripted, replicated over devices, no hidden states); from
            the model's own call: a layer was not seen. What is wrong with one batch is a ValueError from that call.

    Example:
        >>> with ConeProbe(model) as probe, torch.inference_mode():
        ...     for batch in batches:
        ...         model(**batch)
        >>> metrics.anisotropy(probe.state.sentence)  # (L,)
        >>> probe = ConeProbe(model, every=10, during="training").attach()  # for a training loop; detach() after it
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        second_moment: bool = False,
        unit_second_moment: bool = False,
        before_final_norm: bool = False,
        pooling: str = "mean",
        poolings: str | Sequence[str] = (),
        strict: bool = False,
        backend: str = "auto",
        every: int = 1,
        during: During = "always",
        on_pooled: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: got {every}; it must be 1 (each forward) or more")
        if during not in get_args(During):
            raise ValueError(f"during: got {during!r}; it must be one of {', '.join(get_args(During))}")
        self._model = unwrapped(model)
        refuse_compiled(self._model)
        self._moments = {"second_moment": second_moment, "unit_second_moment": unit_second_moment}
        self._before_final_norm = before_final_norm
        self._pooling, self._poolings = pooling, pooling_names(poolings)
        pooling_names([pooling])
        self._strict = strict
        self._backend = backend
        self._every = every
        self._during = during
        self._on_pooled = on_pooled
        self._state: ConeState | None = None
        self._map: LayerMap | None = None
        self._hooks: list[LayerHook] | None = None  # None: not looked for since attach()
        self._output_hook: LayerHook | None = None
        self._watched: WatchedForward | None = None
        self._next = BatchNotes()
        self._forward: ProbedForward | None = None
        self._paused = False
        self._n_sentences = 0
        self._n_forwards = 0
        self._n_training = 0
        self._seconds = 0.0
        self._side = SideStream()

    def __repr__(self) -> str:
        moments = second_moments_in_words([name for name, keep in self._moments.items() if keep])
        poolings = ", ".join(dict.fromkeys((self._pooling, *self._poolings)))
        return "\n".join(
            (
                f"ConeProbe({self._name}, {'detached' if self._watched is None else 'attached'})",
                f"  counts: {_counted_in_words(self._during, self._every)}{', paused' if self._paused else ''}",
                f"  forwards seen: {self._n_forwards:,}; sentences counted: {self._n_sentences:,}",
                f"  second moments: {moments}",
                f"  poolings: {poolings}",
            )
        )

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
    def n_sentences(self) -> int:
        """How many sentences the state has seen since it was begun; 0 where there is no state yet."""
        return self._n_sentences

    @property
    def layer_names(self) -> tuple[str, ...]:
        """What each layer is, by module name: `embeddings`, `encoder.layer.0`, `norm (final norm applied)`."""
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
        repeats: Tensor | Sequence[bool] | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Says of the next forward what its arguments do not: sentence ids, the tokens that count, repeated sentences.

        Args:
            sentence_ids: (B,) integers >= 0, the index of each sentence in the corpus. Default: the number of
                sentences seen so far, counting up.
            mask: (B, T) bool or 0/1 integers; to check integers on a GPU the host waits for it.
            special: (B, T) alike: 1 = a token that the tokenizer adds; for the pooling mean_without_special.
            repeats: (B,) bool: sentences that have been counted elsewhere, as a distributed sampler repeats some to
                fill its last batch; they are left out, and not counted as left out.
            groups: (B,) int64, 0 to 63: the jackknife groups of the sentences, such as those of their documents.
                Default: the ids decide them, so that neighbours share one.
        """
        ids = None if sentence_ids is None else torch.as_tensor(sentence_ids)
        if ids is not None and (ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool):
            raise ValueError(f"sentence_ids: got {ids.dtype} of shape {tuple(ids.shape)}; it must be integers (B,)")
        masks = {"mask": mask, "special": special}
        checked = {name: None if value is None else checked_mask(value, name) for name, value in masks.items()}
        again = None if repeats is None else torch.as_tensor(repeats)
        if again is not None and (again.dim() != 1 or again.dtype != torch.bool):
            raise ValueError(f"repeats: got {again.dtype} of shape {tuple(again.shape)}; it must be bool (B,)")
        self._next = BatchNotes(ids, checked["mask"], checked["special"], again, groups)

    def reset(self) -> None:
        """Forget the sums and start anew with the next forward; its sentence ids count up from 0 again."""
        self._state, self._forward, self._n_sentences = None, None, 0

    def pause(self) -> None:
        """Count no forward, nor towards `every`, until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Count forwards again after `pause`."""
        self._paused = False

    def attach(self) -> ConeProbe:
        """Begin to follow the model's forwards, as entering the `with` block does.

        Raises:
            RuntimeError: the probe is attached already, or the model has been compiled.
        """
        if self._watched is not None:
            raise RuntimeError(f"this ConeProbe is already attached to {self._name}; leave its `with` block first")
        refuse_compiled(self._model)
        self._watched = WatchedForward(self._model, self._run_forward)
        self._n_forwards, self._hooks = 0, None
        return self

    def detach(self) -> None:
        """Leave the model as it was before `attach`; the state stays."""
        if self._watched is not None:
            self._watched.remove()
        self._watched, self._hooks = None, None

    def __enter__(self) -> ConeProbe:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
        if error is None and self._n_forwards == 0:
            raise RuntimeError(f"the probe saw no forward of {self._name}: {_WHY_NOTHING}")

    def _run_forward(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's forward, with the layers added as they come."""
        # In the backward pass gradient checkpointing of the whole model runs it again.
        if calibrating.get() or in_backward():
            return forward(*args, **kwargs)
        if not self._counts():
            self._n_forwards += 1
            self._next = BatchNotes()
            return forward(*args, **kwargs)
        arguments = bind_arguments(self._model, args, kwargs)
        if arguments is None:
            return forward(*args, **kwargs)  # where the call does not fit, forward itself says so
        self._n_forwards += 1
        notes, self._next = self._next, BatchNotes()
        self._refuse_half_added()
        begun = ProbedForward.of(arguments, notes, self._n_sentences, (self._pooling, *self._poolings))
        if len(begun.sentence_ids) == 0:
            return forward(*args, **kwargs)  # nothing but repeats
        self._forward = begun
        found = self._found_layers(arguments)
        hooks = self._hooks or ()  # kept here: detach() may be called in the forward
        try:
            try:
                for hook in hooks:
                    hook.put_on()
                output = forward(*args, **kwargs)
            finally:
                for hook in hooks:
                    hook.take_off()
            if self._output_hook is not None:
                self._see(self._output_hook, as_tuple(output))
            self._end_forward(found)
        finally:
            # The caller may write to what the model returned from here on; the layers of a failed forward are dropped.
            begun.held.clear()
            self._side.join()
        return output

    def _counts(self) -> bool:
        """Whether the forward that begins is to be counted."""
        training = self._model.training
        if self._paused or self._during == ("evaluation" if training else "training"):
            return False
        if not training:
            return True
        self._n_training += 1
        return (self._n_training - 1) % self._every == 0

    def _found_layers(self, arguments: dict[str, Any]) -> LayerMap:
        if self._map is not None and self._hooks is not None:
            return self._map
        found = find_layer_points(self._model, arguments, before_final_norm=self._before_final_norm)
        if self._state is not None and found != self._map:
            raise RuntimeError(f"{self._name} changed since the state was begun: its layers are elsewhere; see reset()")
        modules = dict(self._model.named_modules())
        places: dict[tuple[str, Kind], tuple[LayerPoint, ...]] = {}
        for point in found.points:
            places[point.module, point.kind] = (*places.get((point.module, point.kind), ()), point)
        hooks = [LayerHook(modules[name], name, kind, points, self._see) for (name, kind), points in places.items()]
        # What the model itself returns is seen without a hook: some callers go straight to its forward.
        self._map, self._hooks = found, [hook for hook in hooks if hook.place[0] != ""]
        self._output_hook = next((hook for hook in hooks if hook.place[0] == ""), None)
        return found

    def _see(self, hook: LayerHook, value: Any) -> None:
        """Takes in the layers that are read where the hook is, in one call of its module."""
        forward, found = self._forward, self._map
        if forward is None or found is None or calibrating.get():
            return
        call = forward.calls.get(hook.place, 0)
        forward.calls[hook.place] = call + 1
        for point in hook.points:
            if point.call == call:
                hidden = point.tensor_in(value)
                # In training no layer waits: dropout may write to it, and checkpointing means to free its memory.
                wait = point.kept and not self._model.training and not torch.is_grad_enabled()
                if not (wait and forward.holds_another(point, hidden)):
                    self._hold(forward, found, point, hidden)
                if not wait or forward.holds_enough():
                    self._add_held(forward, found, aside=wait)

    def _hold(self, forward: ProbedForward, found: LayerMap, point: LayerPoint, hidden: Tensor) -> None:
        """Lets the tensor found at a layer's place wait to be added; ValueError where its shape does not fit."""
        if not forward.seen:
            forward.move_to(hidden.device)
        # The sums of a model that is spread over devices are on the device of its first layer.
        plain = to_device(hidden.detach() if hidden.requires_grad else hidden, forward.mask.device)
        rows = forward.rows_of(point, plain, found.dim)
        if not forward.holds_like(rows):
            self._add_held(forward, found, aside=True)
        forward.hold(point.layer, rows, as_it_was=rows is hidden)

    def _add_held(self, forward: ProbedForward, found: LayerMap, aside: bool) -> None:
        """Adds the layers that wait to the sums.

        A state is added to on one stream, that of its first layers: on the side stream where those came while a forward
        went on, else on the caller's of then. What the state lets go of could otherwise be used again while it is still
        read.

        Args:
            forward, found: the forward that is running, and where its layers are.
            aside: the forward may go on meanwhile, as nothing writes to the layers.
        """
        if not forward.held:
            return
        started = time.perf_counter()
        forward.refuse_wrong_mask()
        layers, hidden = [layer for layer, _ in forward.held], [rows for _, rows in forward.held]
        forward.held.clear()
        forward.added.update(layers)
        # The sums must not become bfloat16 under the user's autocast, nor inference tensors under inference_mode.
        device = hidden[0].device
        exact = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
        if self._state is None:
            self._side.begin(device, aside)
        with torch.inference_mode(False), torch.no_grad(), exact, self._side.beside(hidden):
            if self._state is None:
                self._state = self._empty_state(found, device)
            added = self._state.add(forward.batch_of(hidden[0]), hidden, layers)
            if self._on_pooled is not None:
                for layer, pooled in zip(layers, added.pooled, strict=True):
                    self._on_pooled(layer, forward.sentence_ids, pooled)
        if not aside:
            self._side.join()
        if self._strict:
            forward.status.update(zip(layers, added.status, strict=True))
        self._seconds += time.perf_counter() - started

    def _empty_state(self, found: LayerMap, device: torch.device) -> ConeState:
        info = {
            "model": getattr(getattr(self._model, "config", None), "_name_or_path", "") or self._name,
            "layer_names": list(self.layer_names),
            "final_norm": found.final_norm,
        }
        kept: dict[str, Any] = {**self._moments, "pooling": self._pooling, "poolings": self._poolings}
        layers = range(len(found.points))
        return ConeState.empty(layers, found.dim, **kept, backend=self._backend, device=device, info=info)

    def _end_forward(self, found: LayerMap) -> None:
        forward = self._forward
        if forward is None:
            return  # reset() was called meanwhile
        missing = [point for point in found.points if point.layer not in forward.seen]
        if not forward.seen:
            raise RuntimeError(f"{self._name}: no hook fired for any layer of this forward; {_WHY_NOTHING}")
        so = _HALF_ADDED if forward.added else _NOT_ADDED
        if missing:
            listed = ", ".join(f"{point.layer} ({point.name})" for point in missing)
            raise RuntimeError(
                f"{self._name}: this forward went through without a hook firing for layers {listed} "
                f"(blocks skipped at random, or parts compiled since?). {so}"
            )
        for (name, kind), calls in forward.calls.items():
            if calls != found.calls[name]:
                raise RuntimeError(
                    f"{self._name}: {name!r} ran {calls} times in this forward and {found.calls[name]} times in the "
                    f"first, so its {kind}s cannot be told apart as layers. {so}"
                )
        # Nothing goes on beside these, so another stream would cost the host two events for nothing.
        self._add_held(forward, found, aside=False)
        self._n_sentences += len(forward.sentence_ids)
        self._forward = None
        if self._strict:
            self._side.join()
            self._refuse_faults(forward, found)

    def _refuse_faults(self, forward: ProbedForward, found: LayerMap) -> None:
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


def _counted_in_words(during: During, every: int) -> str:
    if during == "evaluation" or (during == "training" and every == 1):
        return f"forwards in {during} mode"
    if every == 1:
        return "all forwards"
    training = f"one in {every:,} forwards in training mode"
    return training if during == "training" else f"{training}, all in evaluation mode"
