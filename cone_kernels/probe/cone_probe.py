"""Adds the hidden states of a running model to a state, by hooks that are there only while a forward runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cone_kernels.devices import to_device
from cone_kernels.names import pooling_names
from cone_kernels.probe.batch_arguments import BatchNotes, checked_mask
from cone_kernels.probe.bind_arguments import bind_arguments
from cone_kernels.probe.calibration import as_tuple, calibrating
from cone_kernels.probe.forward import ProbedForward
from cone_kernels.probe.forward_schedule import During, ForwardSchedule
from cone_kernels.probe.gathered import Gathered, Skipped
from cone_kernels.probe.layer_hook import LayerHook
from cone_kernels.probe.layer_points import LayerPoint
from cone_kernels.probe.probed_layers import ProbedLayers
from cone_kernels.probe.watched_forward import WatchedForward, in_backward, refuse_compiled, unwrapped
from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.description import second_moments_in_words
from cone_kernels.state.sentence_batch import SentenceBatch

Errors = Literal["raise", "skip"]

_WHY_NOTHING = (
    "call the model inside the `with` block. In a compiled model hooks do not fire: probe "
    "and call the module it was made from (model._orig_mod)"
)

_HALF_ADDED = (
    "Its sentences are in the sums of some layers and not of others, so this state is lost: "
    "call reset() to begin another"
)
_NOT_ADDED = "It is in none of the sums"


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
    batch flattened into one row (1, N) is recognised by its `cu_seq_lens_q`, `seq_idx` or `position_ids`. Forwards of
    several threads run one after the other while they are counted.

    Of models that take `pixel_values`, `input_features` or `input_values` a sentence is one image or sound, its tokens
    are the positions of the hidden states: class and register tokens (for the pooling mean_without_special they are
    the special ones), patches, frames. A mask of a sound's samples becomes that of its frames as in the model.

    In a training job the layers are those of the forward as it ran, under its dropout and autocast; the state adds up
    all forwards, so it is of one model only as long as the weights stay (`reset`, or `ConeWatch`). Forwards within
    the backward pass, as gradient checkpointing and cached contrastive losses run them again, are not counted. A
    forward that is left out costs nothing: the hooks are on the model only while a forward is counted.

    Args:
        model: what `AutoModel` returns, with or without a head; DDP and one-device DataParallel are unwrapped.
        second_moment, unit_second_moment: also keep Σ x xᵀ, Σ u uᵀ, (L, d, d) float64.
        before_final_norm: take the last layer where the final norm takes it in.
        pooling, poolings: of the sentence level, as in `ConeState.empty`.
        layers: the numbers of the layers that are gathered, from the end where negative; default all.
        strict: raise at the end of a forward in which a token is zero or not finite, or a sentence has no token.
        errors: `raise`, or `skip`: a forward that cannot be counted runs as it does without the probe, `skipped` counts
            it, and the first of each reason is said in the log. One that stops when some layers are in the sums already
            takes the sums with it; that is said each time.
        backend: `auto`, `reference`, `cpu`, `triton` or `cuda`.
        every: of the forwards in training mode count the first and every `every`-th from there; in evaluation all.
            Where a step has several forwards, choose steps by pause() and resume().
        during: `training` or `evaluation`: count only forwards in that mode of the model; `always`.
        on_pooled: called with each layer's number, the batch's sentence ids (B,) and its sentence vectors (B, D), a row
            of NaN for a sentence without a token; the vectors are the caller's to keep. On a GPU it is called with the
            stream current that made them.
        on_hidden: called with each layer's number, its hidden states, (B, T, D) or packed (N, D), and their
            `SentenceBatch`, on the same stream. The hidden states are the model's: to be read in the call, not kept.

    Raises:
        TypeError: `model` is no `torch.nn.Module`.
        ValueError: `every` is below 1, `layers` is empty or names one twice, `during`, `errors` or a pooling is
            unknown, or `errors` is `skip` with `strict`.
        RuntimeError: the model cannot be probed (compiled, scripted, replicated over devices, no hidden states); from
            the model's own call: a layer was not seen. What is wrong with one batch, or a layer that the model does not
            have, is a ValueError from that call.

    Examples:
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
        layers: Sequence[int] | None = None,
        strict: bool = False,
        errors: Errors = "raise",
        backend: str = "auto",
        every: int = 1,
        during: During = "always",
        on_pooled: Callable[[int, Tensor, Tensor], None] | None = None,
        on_hidden: Callable[[int, Tensor, SentenceBatch], None] | None = None,
    ) -> None:
        self._schedule = ForwardSchedule(every, during)
        if errors not in get_args(Errors) or (errors == "skip" and strict):
            raise ValueError(
                f"errors: got {errors!r} with strict={strict}; it must be 'raise', or 'skip' without strict"
            )
        if layers is not None and (len(layers) == 0 or len(set(layers)) < len(layers)):
            raise ValueError(f"layers: got {list(layers)}; it must be one layer or more, each once")
        self._model = unwrapped(model)
        refuse_compiled(self._model)
        self._moments = {"second_moment": second_moment, "unit_second_moment": unit_second_moment}
        self._before_final_norm = before_final_norm
        self._pooling, self._poolings = pooling, pooling_names(poolings)
        pooling_names([pooling])
        self._layers = None if layers is None else tuple(layers)
        self._strict = strict
        # The hooks on a model's layers are for one forward; those of other threads wait.
        self._one_at_a_time = threading.RLock()
        self._errors = errors
        self._skipped = Skipped(f"a forward of {self._name} is not counted")
        self._backend = backend
        self._on_pooled, self._on_hidden = on_pooled, on_hidden
        self._gathered = Gathered()
        self._found: ProbedLayers | None = None
        self._looked = False  # for the layers, since attach()
        self._watched: WatchedForward | None = None
        self._next = BatchNotes()
        self._forward: ProbedForward | None = None
        self._n_forwards = 0
        self._seconds = 0.0

    def __repr__(self) -> str:
        moments = second_moments_in_words([name for name, keep in self._moments.items() if keep])
        poolings = ", ".join(dict.fromkeys((self._pooling, *self._poolings)))
        return "\n".join(
            (
                f"ConeProbe({self._name}, {'detached' if self._watched is None else 'attached'})",
                f"  counts: {self._schedule.in_words()}",
                f"  forwards seen: {self._n_forwards:,}; sentences counted: {self.n_sentences:,}",
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
        if self._gathered.state is None:
            raise RuntimeError(f"state: no forward of {self._name} has been seen yet; {_WHY_NOTHING}")
        return self._gathered.state

    @property
    def n_sentences(self) -> int:
        """How many sentences the state has seen since it was begun; 0 where there is no state yet."""
        return self._gathered.n_sentences

    @property
    def skipped(self) -> dict[str, int]:
        """How many forwards were not counted, by reason; numbers in a reason are written as #. With `errors="skip"`."""
        return dict(self._skipped.counts)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """What each layer gathered is, by module name: `embeddings`, `encoder.layer.0`, `norm (final norm applied)`."""
        return self._known("layer_names").names

    @property
    def final_norm(self) -> bool:
        """Whether the last layer is taken after a norm that follows the last block."""
        return self._known("final_norm").map.final_norm

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
            special: (B, T) alike: 1 = a token that the tokenizer adds; for poolings without special ones.
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
        self._gathered.forget()
        self._forward = None

    def gather_into(self, gathered: Gathered) -> None:
        """Adds to these sums from the next forward on; those before stay with whoever holds them."""
        self._gathered, self._forward = gathered, None

    def pause(self) -> None:
        """Count no forward, nor towards `every`, until `resume`."""
        self._schedule.paused = True

    def resume(self) -> None:
        """Count forwards again after `pause`."""
        self._schedule.paused = False

    def attach(self) -> ConeProbe:
        """Begin to follow the model's forwards, as entering the `with` block does.

        Raises:
            RuntimeError: the probe is attached already, or the model has been compiled.
        """
        if self._watched is not None:
            raise RuntimeError(f"this ConeProbe is already attached to {self._name}; leave its `with` block first")
        refuse_compiled(self._model)
        self._watched = WatchedForward(self._model, self._run_forward)
        self._n_forwards, self._looked = 0, False
        return self

    def detach(self) -> None:
        """Leave the model as it was before `attach`; the state stays."""
        if self._watched is not None:
            self._watched.remove()
        self._watched, self._looked = None, False

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
        with self._one_at_a_time:
            counts = self._schedule.counts(training=self._model.training)
            if not counts:
                self._n_forwards += 1
                self._next = BatchNotes()
        if not counts:
            return forward(*args, **kwargs)
        with self._one_at_a_time:
            return self._run_counted(forward, args, kwargs)

    def _run_counted(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        begun: ProbedForward | None = None
        try:
            begun = self._begin_forward(forward, args, kwargs)
        except Exception as error:
            self._pass_over(error)
        if begun is None:
            return forward(*args, **kwargs)
        hooks = self._known("layers").hooks
        gathered = self._gathered
        try:
            try:
                for hook in hooks:
                    hook.put_on()
                output = forward(*args, **kwargs)
            except BaseException as error:
                if self._errors == "skip" and self._forward is begun:
                    self._drop_forward(error)
                raise
            finally:
                for hook in reversed(hooks):
                    hook.take_off()
            try:
                self._end_forward(output)
            except Exception as error:
                self._pass_over(error)
        finally:
            # The caller may write to what the model returned from here on; the layers of a failed forward are dropped.
            begun.held.clear()
            gathered.side.join()
        return output

    def _begin_forward(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ProbedForward | None:
        """What is known of the forward of a call before it runs; None where nothing of it is to be counted."""
        arguments = bind_arguments(self._model, args, kwargs)
        if arguments is None:
            return None  # where the call does not fit, forward itself says so
        self._n_forwards += 1
        notes, self._next = self._next, BatchNotes()
        self._refuse_half_added()
        begun = ProbedForward.of(self._model, arguments, notes, self.n_sentences, (self._pooling, *self._poolings))
        if len(begun.sentence_ids) == 0:
            return None  # nothing but repeats
        self._forward = begun
        self._find_layers(forward, arguments)
        return begun

    def _pass_over(self, error: Exception) -> None:
        """Goes on without the forward that is running, or raises what is wrong with it."""
        if self._errors == "raise":
            raise error
        self._drop_forward(error)

    def _drop_forward(self, error: BaseException) -> None:
        """Counts the forward that is running as skipped; where it is in some of the sums, they begin anew."""
        forward, self._forward = self._forward, None
        lost = 0
        if forward is not None:
            forward.held.clear()
            if forward.added:
                lost = self._gathered.n_sentences
                self._gathered.forget()
        self._skipped.note(error, lost=lost)

    def _find_layers(self, forward: Callable[..., Any], arguments: dict[str, Any]) -> None:
        if self._found is not None and self._looked:
            return
        options: dict[str, Any] = {"layers": self._layers, "before_final_norm": self._before_final_norm}
        found = ProbedLayers.find(self._model, arguments, self._see, forward=forward, **options)
        if self._gathered.state is not None and self._found is not None and found.map != self._found.map:
            if self._gathered.n_sentences > 0:
                raise RuntimeError(
                    f"{self._name} changed since the state was begun: its layers are elsewhere; see reset()"
                )
            self._gathered.forget()
        self._found, self._looked = found, True

    def _see(self, hook: LayerHook, value: Any) -> None:
        """Takes in the layers that are read where the hook is, in one call of its module."""
        forward = self._forward
        if forward is None or calibrating.get() or forward.thread != threading.get_ident():
            return
        try:
            self._take_in(forward, hook, value)
        except Exception as error:
            self._pass_over(error)

    def _take_in(self, forward: ProbedForward, hook: LayerHook, value: Any) -> None:
        call = forward.calls.get(hook.place, 0)
        forward.calls[hook.place] = call + 1
        for point in hook.points:
            if point.call == call:
                hidden = point.tensor_in(value)
                # In training no layer waits: dropout may write to it, and checkpointing means to free its memory.
                wait = point.kept and not self._model.training and not torch.is_grad_enabled()
                if not (wait and forward.holds_another(point, hidden)):
                    self._hold(forward, point, hidden)
                if not wait or forward.holds_enough():
                    self._add_held(forward, aside=wait)

    def _hold(self, forward: ProbedForward, point: LayerPoint, hidden: Tensor) -> None:
        """Lets the tensor found at a layer's place wait to be added; ValueError where its shape does not fit."""
        if not forward.seen:
            forward.begin(point, hidden)
        # The sums of a model that is spread over devices are on the device of its first layer.
        plain = to_device(hidden.detach() if hidden.requires_grad else hidden, forward.mask.device)
        rows = forward.rows_of(point, plain, self._known("layers").map.dim)
        if not forward.holds_like(rows):
            self._add_held(forward, aside=True)
        forward.hold(point.layer, rows, as_it_was=rows is hidden)

    def _add_held(self, forward: ProbedForward, aside: bool) -> None:
        """Adds the layers that wait to the sums.

        Args:
            forward: the forward that is running.
            aside: it may go on meanwhile, as nothing writes to the layers.
        """
        if not forward.held:
            return
        started = time.perf_counter()
        forward.refuse_wrong_mask()
        layers, hidden = [layer for layer, _ in forward.held], [rows for _, rows in forward.held]
        forward.held.clear()
        forward.added.update(layers)
        with self._gathered.adding(hidden, aside, self._empty_state) as state:
            added = state.add(forward.batch_of(hidden[0]), hidden, layers)
            if self._on_pooled is not None:
                for layer, pooled in zip(layers, added.pooled, strict=True):
                    self._on_pooled(layer, forward.sentence_ids, pooled)
            if self._on_hidden is not None:
                for layer, rows in zip(layers, hidden, strict=True):
                    self._on_hidden(layer, rows, forward.batch_of(rows))
        if self._strict:
            forward.status.update(zip(layers, added.status, strict=True))
        self._seconds += time.perf_counter() - started

    def _empty_state(self, device: torch.device) -> ConeState:
        found = self._known("layers")
        info = {
            "model": getattr(getattr(self._model, "config", None), "_name_or_path", "") or self._name,
            "layer_names": list(found.names),
            "final_norm": found.map.final_norm,
        }
        kept: dict[str, Any] = {**self._moments, "pooling": self._pooling, "poolings": self._poolings}
        layers = [point.layer for point in found.points]
        return ConeState.empty(layers, found.map.dim, **kept, backend=self._backend, device=device, info=info)

    def _end_forward(self, output: Any) -> None:
        found = self._known("layers")
        if found.output_hook is not None:
            self._see(found.output_hook, as_tuple(output))
        forward = self._forward
        if forward is None:
            return  # reset() was called meanwhile, or it is passed over
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
            if calls != found.map.calls[name]:
                raise RuntimeError(
                    f"{self._name}: {name!r} ran {calls} times in this forward and {found.map.calls[name]} times in "
                    f"the first, so its {kind}s cannot be told apart as layers. {so}"
                )
        # Nothing goes on beside these, so another stream would cost the host two events for nothing.
        self._add_held(forward, aside=False)
        self._gathered.n_sentences += len(forward.sentence_ids)
        self._forward = None
        if self._strict:
            self._gathered.side.join()
            forward.refuse_faults({point.layer: point.name for point in found.points})

    def _refuse_half_added(self) -> None:
        if self._forward is not None and self._forward.added:
            layers = sorted(self._forward.added)
            raise RuntimeError(f"a forward of {self._name} stopped after layers {layers} had been added. {_HALF_ADDED}")
        self._forward = None

    def _known(self, name: str) -> ProbedLayers:
        if self._found is None:
            raise RuntimeError(f"{name}: not known before the first forward of {self._name}; {_WHY_NOTHING}")
        return self._found

    @property
    def _name(self) -> str:
        return type(self._model).__name__
