"""Watches the model of a training job, in training and in evaluation apart: what the callbacks have in common."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cone_kernels.distributed import all_reduce
from cone_kernels.integrations.alerts import Alert, Alerts
from cone_kernels.integrations.forwards import Forwards
from cone_kernels.integrations.held_out import START, HeldOut, refuse_few_texts
from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.step_means import StepMeans
from cone_kernels.models.transformers_names import (
    INNER_MODEL,
    adapter_layers,
    adapters_in_use,
)
from cone_kernels.probe.batch_arguments import n_sentences
from cone_kernels.probe.bind_arguments import bind_arguments
from cone_kernels.probe.calibration import calibrating
from cone_kernels.probe.cone_probe import ConeProbe
from cone_kernels.probe.gathered import Gathered, Skipped
from cone_kernels.probe.watched_forward import WatchedForward, in_backward, unwrapped
from cone_kernels.state.cone_state import ConeState

Phase = Literal["training", "evaluation"]

_SAW_NOTHING = (
    "no forward of the model was seen in a watched step (it is compiled as a whole, or other modules run; module= says "
    "which one to watch)"
)


class ConeWatch:
    """A probe on a model in training, whose forwards it tells apart: those of a step, those of an evaluation, others.

    `begin_step`, `end_step`, `begin_evaluation` and `pause` say which they are: the model's mode does not tell, for a
    model as it was loaded, or frozen, may be in evaluation mode while it is trained. A step's forwards share their
    weights and make one value; `take("training")` has the mean of the steps since the last call, with its error, and
    the last step's.

    A sentence counts once, as the model makes it. Of a step count the forwards that gradients flow through, or, where
    there are none (cached losses), those without. A forward on a tensor of tokens that has been counted already, under
    other adapters than those with which the step or evaluation began, or, beside others, at the start of `generate` is
    not counted: so a reference or a guide that is the same model is none.

    A watch observes. A forward that it cannot count goes its way, `skipped` counts it by reason, and the first of each
    reason is said in the log; so is what goes wrong in the watch itself.

    Args:
        every: of the training steps watch those whose number is a multiple of `every`.
        module: where the model is in what `attach` is given, as `get_submodule` takes it; default: that model itself,
            of a SentenceTransformer the one inside.
        layers: the layers to watch, from the end where negative; default all.
        token, pooling_gap: as in `cone_scalars`.
        strict: let what goes wrong reach the job: a forward that cannot be counted, a token that is not finite.
        repeats: for the B samples of a forward which the loader repeats, (B,) bool, or None where it repeats none.
        reading: what the forwards read from at the moment, such as a data loader; where it changes in an evaluation,
            the evaluation's sentences come from there.
        probe_texts: a fixed set of texts, two or more, that `measure` measures; every rank measures them all.
        probe_every: how many steps there are between two measurements.
        tokenizer: of `probe_texts`; default the one given to `attach`, or the attribute of that name of its model.
        reference: what measurements are compared with: `start`, the first one after `attach`; a saved state of the same
            texts or its file; None for nothing.
        alerts: on values by the names under which they are logged.
        on_state: called with the name and the state of what was measured: `train` for each watched step, `probe` for
            the texts, an evaluation's own name. The state is the caller's to keep.
        probe_options: of `ConeProbe`. With `second_moment=True` evaluations and texts have the values of the shape of
            the cone too, as `cone_scalars` names them.

    Raises:
        TypeError: there is something else than an `Alert` among `alerts`.
        ValueError: `every` or `probe_every` is below 1, or there are fewer than two texts.

    Examples:
        >>> watch = ConeWatch(every=10, layers=[-1])
        >>> watch.attach(model)
        >>> for step, batch in enumerate(loader):
        ...     watch.begin_step(step)
        ...     train_on(model, batch)  # forward, backward, optimizer
        ...     watch.end_step()
        ...     if step % 100 == 0:
        ...         log(watch.take("training"))
        >>> with watch.evaluating():
        ...     evaluate(model)
        >>> log(watch.take("evaluation"))
        >>> watch.detach()
    """

    def __init__(
        self,
        *,
        every: int = 10,
        module: str = "",
        layers: Sequence[int] | None = None,
        token: bool = False,
        pooling_gap: bool = False,
        strict: bool = False,
        repeats: Callable[[int], Tensor | None] | None = None,
        reading: Callable[[], Any] = lambda: None,
        probe_texts: Sequence[str] | None = None,
        probe_every: int = 100,
        tokenizer: Any = None,
        reference: str | os.PathLike[str] | ConeState | None = START,
        alerts: Sequence[Alert] = (),
        on_state: Callable[[str, ConeState], None] | None = None,
        **probe_options: Any,
    ) -> None:
        for name, number in {"every": every, "probe_every": probe_every}.items():
            if number < 1:
                raise ValueError(f"{name}: got {number}; it must be 1 (each step) or more")
        if probe_texts is not None:
            refuse_few_texts(probe_texts)
        self._every = every
        self._texts = {"texts": probe_texts, "tokenizer": tokenizer, "reference": reference}
        self._probe_every = probe_every
        self._alerts = Alerts(alerts)
        self._on_state = on_state
        self._states: dict[str, ConeState] = {}
        self._held_out: HeldOut | None = None
        self._module = module
        self._scalars: dict[str, Any] = {"token": token, "pooling_gap": pooling_gap}
        self._strict = strict
        self._repeats = repeats
        self._reading = reading
        kept: dict[str, Any] = {"layers": layers, "strict": strict, "errors": "raise" if strict else "skip"}
        self._probe_options = kept | probe_options
        self._skipped = Skipped("the cone is not measured here")
        self._probes_skipped: Counter[str] = Counter()
        self._model: nn.Module | None = None
        self._adapters: list[Any] = []
        self._probe: ConeProbe | None = None
        self._chooser: WatchedForward | None = None
        self._now: Forwards | None = None
        self._step: tuple[int, Forwards] | None = None
        self._cleared: tuple[Gathered, Gathered] | None = None
        self._steps = StepMeans(**self._scalars)
        self._evaluations: dict[str, Forwards] = {}

    @property
    def attached(self) -> bool:
        """Whether a model is watched now."""
        return self._probe is not None

    @property
    def states(self) -> Mapping[str, ConeState]:
        """The state of the last evaluation by its name, and of the last measurement of the texts, `probe`."""
        return self._states

    @property
    def skipped(self) -> dict[str, int]:
        """How many forwards and values were left out, by reason; numbers in a reason are written as #."""
        probe = {} if self._probe is None else self._probe.skipped
        return dict(self._skipped.counts + self._probes_skipped + Counter(probe))

    def attach(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Watch a Hugging Face model, or the one in a SentenceTransformer, until `detach`.

        Args:
            model: in training.
            tokenizer: of the texts, where the watch was not given one.

        Raises:
            AttributeError: the model has no such `module`.
            TypeError, ValueError: from `ConeProbe`, of its options; ValueError where there are texts and no tokenizer.
            RuntimeError: `strict`, and the model cannot be probed.
        """
        self.detach()
        try:
            outer = unwrapped(model)
            inner = unwrapped(outer.get_submodule(self._module)) if self._module else transformer_in(outer)
            self._probe = ConeProbe(inner, **self._probe_options).attach()
        except RuntimeError as error:
            self.pass_over(error)
            return
        if self._texts["texts"] is not None:
            own = self._texts["tokenizer"] or tokenizer or getattr(outer, "tokenizer", None)
            options = {**self._probe_options, "errors": "raise"}
            texts = {**self._texts, "tokenizer": own}
            self._held_out = HeldOut(**texts, scalars=self._scalars, probe_options=options)
        self._model, self._adapters = inner, adapter_layers(inner)
        self._chooser = WatchedForward(inner, self._run_forward)

    def detach(self) -> None:
        """Leave the model as it was."""
        if self._chooser is not None:
            self._chooser.remove()
        if self._probe is not None:
            self._probe.detach()
            self._probes_skipped.update(self._probe.skipped)
        self._model, self._probe, self._chooser, self._adapters, self._held_out = None, None, None, [], None
        self._forget()

    def begin_step(self, step: int) -> None:
        """Say that the forwards from here on are of this training step; again, that they are so once more."""
        if self._step is None or self._step[0] != step:
            self.end_step()
            if step % self._every == 0 and self._probe is not None:
                with self.guarded():
                    # Sums of many layers are large: those of the step before are used again.
                    self._step = (step, self._forwards(torch.is_grad_enabled, gathered=self._cleared))
        self._now = None if self._step is None else self._step[1]

    def end_step(self) -> None:
        """Say that the step is through: the weights move on. Every rank must say so."""
        if self._step is not None:
            forwards, self._step = self._step[1], None
            if forwards.n_seen == 0:
                self._skipped.note(RuntimeError(_SAW_NOTHING))
            with self.guarded():
                state, n = self._summed(forwards)
                if state is not None:
                    self._steps.add(state, n)
                    if self._on_state is not None:
                        self._on_state("train", state.settled())  # the next step is summed in the same memory
            self._cleared = (forwards.first, forwards.second)
            for gathered in self._cleared:
                gathered.clear()
        self._now = None

    def begin_evaluation(self, name: str = "", *, others: bool = True) -> None:
        """Say that the forwards from here on are of an evaluation.

        Args:
            name: of the evaluation; several can be told apart.
            others: also count forwards that do not read from where the evaluation reads, where all are such.
        """
        if name not in self._evaluations and self._probe is not None:
            with self.guarded():
                before = self._reading()
                self._evaluations[name] = self._forwards(lambda: self._reading() not in (None, before), others)
        self._now = self._evaluations.get(name)

    def pause(self) -> None:
        """Say that the forwards from here on are none of these."""
        self._now = None

    @contextmanager
    def evaluating(self, name: str = "") -> Iterator[None]:
        """The forwards in this block are of an evaluation that begins here; after it they are what they were."""
        before = self._now
        self._evaluations.pop(name, None)
        self.begin_evaluation(name)
        try:
            yield
        finally:
            self._now = before

    def measure(self, step: int, *, begins: bool = False) -> dict[str, float]:
        """`probe_cone/L12/anisotropy` and so on of the texts, as `HeldOut.scalars_of`; {} where it is not their turn.

        It is their turn at each multiple of `probe_every`. Every rank must call this; the values are rank 0's.

        Args:
            step: how many steps have been made.
            begins: the training begins here, so it is their turn in any case.
        """
        if self._held_out is None or not (begins or step % self._probe_every == 0):
            return {}
        assert self._model is not None
        values: dict[str, float] = {}
        before, self._now = self._now, None  # forwards of the texts are of no step and no evaluation
        try:
            with self.guarded():
                state = self._held_out.measure(self._model)
                values = {f"probe_{name}": value for name, value in self._held_out.scalars_of(state).items()}
                self._keep("probe", state)
        finally:
            self._now = before
        return _of_rank_0(values)

    def stops(self, values: Mapping[str, float], step: int) -> bool:
        """Says in the log which alerts values cross, named as they are logged; returns whether training is to stop."""
        try:
            return self._alerts.stops(values, step)
        except Exception as error:
            self.pass_over(error)
        return False

    def take(self, phase: Phase, name: str = "", *, called: str = "evaluation") -> dict[str, float]:
        """The values since the last call, over all ranks (each calls this), by name; {} where no sentence was seen.

        Args:
            phase: `training`: of the steps, as `StepMeans.scalars`; `evaluation`: of an evaluation, as `cone_scalars`.
            name: of the evaluation.
            called: the name of the evaluation's state in `states` and for `on_state`.
        """
        if self._probe is None:
            return {}
        values: dict[str, float] = {}
        with self.guarded():
            if phase == "training":
                steps, self._steps = self._steps, StepMeans(**self._scalars)
                return steps.scalars()
            forwards = self._evaluations.pop(name, None)
            if forwards is not None:
                if self._now is forwards:
                    self._now = None
                state, _ = self._summed(forwards)
                if state is not None:
                    values = cone_scalars(state, **self._scalars)
                    self._keep(called, state)
        return values

    def pass_over(self, error: Exception) -> None:
        """Counts and logs what went wrong, or raises it where `strict`."""
        if self._strict:
            raise error
        self._skipped.note(error)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What goes wrong in this block does not reach the job, but for `strict`."""
        try:
            yield
        except Exception as error:
            self.pass_over(error)

    def _keep(self, name: str, state: ConeState) -> None:
        self._states[name] = state
        if self._on_state is not None:
            self._on_state(name, state)

    def _forget(self) -> None:
        self._now, self._step, self._cleared = None, None, None
        self._steps, self._evaluations = StepMeans(**self._scalars), {}

    def _run_forward(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a forward: tells the probe to what it is to add it, and which samples of the batch are repeats."""
        if self._probe is not None and not calibrating.get() and not in_backward():
            self._probe.pause()
            if self._now is not None:
                with self.guarded():
                    self._direct(self._probe, self._now, args, kwargs)
        return forward(*args, **kwargs)

    def _direct(self, probe: ConeProbe, forwards: Forwards, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._model is not None
        forwards.n_seen += 1
        arguments = bind_arguments(self._model, args, kwargs)
        if arguments is None or adapters_in_use(self._adapters) != forwards.adapters:
            return
        gathered = forwards.gathered(arguments)
        if gathered is not None:
            probe.gather_into(gathered)
            probe.resume()
            repeats = None if self._repeats is None else self._repeats(n_sentences(self._model, arguments))
            if repeats is not None:
                probe.next_batch(repeats=repeats)

    def _forwards(
        self, is_first: Callable[[], bool], others: bool = True, gathered: tuple[Gathered, Gathered] | None = None
    ) -> Forwards:
        return Forwards(is_first, others, adapters_in_use(self._adapters), *(gathered or (Gathered(), Gathered())))

    def _summed(self, forwards: Forwards) -> tuple[ConeState | None, int]:
        """The sums of the sentences of all ranks, and how many they are; None for none."""
        if self._probe is not None:
            self._probe.gather_into(Gathered())  # a forward that stopped half-way takes its sums with it
        own = [forwards.first.n_sentences, forwards.second.n_sentences]
        counts = [own]
        together = _has_other_ranks()
        if together:
            counts = [own] * dist.get_world_size()
            dist.all_gather_object(counts, own)
        first, second = (sum(each) for each in zip(*counts, strict=True))
        if first + second == 0:
            return None, 0
        chosen = forwards.first if first > 0 else forwards.second
        state = chosen.state if chosen.n_sentences > 0 else None
        return (all_reduce(state) if together else state), first if first > 0 else second


def _has_other_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _of_rank_0(values: dict[str, float]) -> dict[str, float]:
    """Rank 0's, for all: what differs in a last bit must not make one rank stop and another go on."""
    if not _has_other_ranks():
        return values
    box = [values]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def transformer_in(model: nn.Module) -> nn.Module:
    """The Hugging Face model in a SentenceTransformer; any other model itself."""
    first = model[0] if isinstance(model, nn.Sequential) and len(model) > 0 else model
    inner: nn.Module = getattr(first, INNER_MODEL, None) or model
    return inner
