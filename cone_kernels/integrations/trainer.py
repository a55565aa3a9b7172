"""Anisotropy in the logs of transformers' Trainer, and in the metric that chooses the best checkpoint."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from cone_kernels.extras import require
from cone_kernels.integrations.accelerate import active_loader, repeated_samples
from cone_kernels.integrations.watch import ConeWatch
from cone_kernels.models.transformers_names import EVALUATION_SPEED
from cone_kernels.state.cone_state import ConeState

require("transformers", "train", "ConeCallback")

from transformers import Trainer, TrainerCallback  # noqa: E402


class ConeCallback(TrainerCallback):  # type: ignore[misc]
    """Logs `cone/L12/anisotropy` and its standard error with the loss, and `eval_cone/L12/anisotropy` with the
    metrics of an evaluation, over all processes.

    The values of training are the mean of the watched steps since the log before, each of its own weights, and
    `cone/L12/anisotropy_last` is the last such step's; a log between two watched steps has none. All micro-batches and
    columns of a step count, as `ConeWatch` says. The values of an evaluation are of the sentences of its data set.
    `metric_for_best_model="cone/L12/anisotropy"` with `greater_is_better=False` keeps the checkpoint of the widest
    cone. Samples that the loader repeats on several processes to fill its last round are left out, as
    `repeated_samples` finds them. Also for SentenceTransformerTrainer and other Trainers built on this one.

    `probe_texts` are measured at the beginning and every `probe_every` steps; `probe_cone/L12/anisotropy` and its
    change since then are in a log of their own. An `Alert` that stops the training does so after the step.

    What cannot be measured stops no training: see `ConeWatch`, and `skipped`.

    Args:
        every: of the training steps watch those whose number is a multiple of `every`.
        module: where in the model the Hugging Face model is, as `get_submodule` takes it; default: the model itself,
            of a SentenceTransformer the one inside.
        layers: the layers to watch, from the end where negative; default all.
        token: also `cone/L12/token_anisotropy`.
        pooling_gap: also `cone/L12/pooling_gap`.
        strict: let what goes wrong stop the training: a compiled model, a forward that cannot be counted, a token that
            is not finite.
        options: of `ConeWatch` (`probe_texts`, `probe_every`, `tokenizer`, `reference`, `alerts`, `on_state`) and of
            `ConeProbe`. The tokenizer is the trainer's `processing_class` by default.

    Raises:
        TypeError, ValueError: as `ConeWatch`.
        AttributeError, TypeError, ValueError: from `trainer.train()`: there is no such module, or an option is wrong.

    Examples:
        >>> trainer = Trainer(model, args, train_dataset=data)
        >>> ConeCallback(layers=[6, 12], probe_texts=dev_sentences, probe_every=50).add_to(trainer)
        >>> trainer.train()
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
        **options: Any,
    ) -> None:
        scalars: dict[str, Any] = {"layers": layers, "token": token, "pooling_gap": pooling_gap}
        where: dict[str, Any] = {"repeats": repeated_samples, "reading": active_loader}
        self._watch = ConeWatch(every=every, module=module, strict=strict, **scalars, **where, **options)
        self._trainer: Trainer | None = None
        self._logged: dict[str, float] = {}

    @property
    def skipped(self) -> dict[str, int]:
        """How many forwards and values were left out, by reason."""
        return self._watch.skipped

    @property
    def states(self) -> Mapping[str, ConeState]:
        """The states of the last evaluations, by the prefix of their metrics, and of the texts, `probe`."""
        return self._watch.states

    def add_to(self, trainer: Trainer) -> ConeCallback:
        """Add this callback before those that report logs (TensorBoard, W&B, the progress bar).

        `trainer.evaluate` and `trainer.predict` have the values in their metrics then, outside training too. Given in
        `Trainer(callbacks=[...])` it watches the evaluations within training alone, and comes after those callbacks:
        the values are in `log_history` and in the metrics of an evaluation, but not in what they report.
        """
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())
        self._follow(trainer)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attach(args, kwargs["model"], kwargs.get("processing_class"))
        self._measure(args, state, control, begins=True)
        self._between_steps()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.begin_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.end_step()
        self._measure(args, state, control)
        self._between_steps()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.detach()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None:
            return
        prefix = _evaluation_prefix(logs)
        values: dict[str, float] = {}
        if prefix is None and "loss" in logs:
            values = self._watch.take("training")
        elif prefix is not None and self._trainer is None:
            values = self._logged = _prefixed(prefix, self._watch.take("evaluation", called=prefix))
            self._between_steps()
        logs.update(values)
        self._alert(values, state, control)
        # The history has a copy, made before callbacks saw the log.
        if values and state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(values)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        # These are what the best checkpoint is chosen from; some Trainers log a copy of them.
        if metrics is not None:
            metrics.update(self._logged)
        self._logged = {}

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        if self._trainer is None:
            self._watch.take("evaluation")
            self._between_steps()

    def _measure(self, args: Any, state: Any, control: Any, *, begins: bool = False) -> None:
        """Measures the texts where it is their turn, and puts the values into a log of their own."""
        values = self._watch.measure(state.global_step, begins=begins)
        if not values:
            return
        logs = values if state.epoch is None else {**values, "epoch": state.epoch}
        state.log_history.append({**logs, "step": state.global_step})
        if self._trainer is not None:
            # Not trainer.log, in which other Trainers empty sums of their own, nor on_log, which cancels the next log.
            self._trainer.callback_handler.call_event("on_log", args, state, control, logs=dict(logs))
        self._alert(values, state, control)

    def _alert(self, values: Mapping[str, float], state: Any, control: Any) -> None:
        if self._watch.stops(values, state.global_step):
            control.should_training_stop = True

    def _attach(self, args: Any, model: Any, tokenizer: Any = None) -> None:
        self._watch.detach()
        try:
            _refuse_settings(args)
        except RuntimeError as error:
            self._watch.pass_over(error)
        else:
            self._watch.attach(model, tokenizer)

    def _between_steps(self) -> None:
        """What comes between two steps and reads from another loader is an evaluation's."""
        if self._trainer is not None:
            self._watch.pause()
        else:
            self._watch.begin_evaluation(others=False)

    def _follow(self, trainer: Trainer) -> None:
        """Stands around the trainer's evaluation loop: what runs in it is of that evaluation, and nothing else is.

        And around its training, of whose end by an error or Ctrl-C no callback is told.
        """
        self._trainer = trainer
        train, run = trainer.train, trainer.evaluation_loop
        parameters = inspect.signature(Trainer.evaluation_loop)  # those that build on it may say *args, **kwargs

        @functools.wraps(train)
        def watched_train(*args: Any, **kwargs: Any) -> Any:
            try:
                return train(*args, **kwargs)
            finally:
                self._watch.detach()

        @functools.wraps(run)
        def watched_evaluation(*args: Any, **kwargs: Any) -> Any:
            given = parameters.bind_partial(trainer, *args, **kwargs).arguments
            prefix = str(given.get("metric_key_prefix", "eval"))
            outside_training = not trainer.is_in_train
            if outside_training:
                self._attach(trainer.args, trainer.model, trainer.processing_class)
            try:
                with self._watch.evaluating(prefix):
                    output = run(*args, **kwargs)
                values = _prefixed(prefix, self._watch.take("evaluation", prefix, called=prefix))
                if output.metrics is not None:
                    output.metrics.update(values)
                self._alert(values, trainer.state, trainer.control)
            finally:
                if outside_training:
                    self._watch.detach()
            return output

        trainer.train, trainer.evaluation_loop = watched_train, watched_evaluation


def _refuse_settings(args: Any) -> None:
    """Raises RuntimeError where the settings of a training job leave no model that can be watched."""
    if getattr(args, "torch_compile", False):
        raise RuntimeError("torch_compile: got True; it must be False, as hooks do not fire in a compiled model")
    if args.n_gpu > 1:
        raise RuntimeError(
            f"n_gpu: got {args.n_gpu}; it must be 1, as DataParallel runs replicas, which hooks on the model do not "
            "follow; start the job with torchrun"
        )


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in values.items()}


def _evaluation_prefix(logs: Mapping[str, Any]) -> str | None:
    """The prefix of an evaluation's metrics: that which all of the names of Trainer's own have; None of other logs."""
    first, *others = EVALUATION_SPEED
    prefixes = [name.removesuffix(first) for name in logs if name.endswith(first)]
    of_all = [prefix for prefix in prefixes if all(prefix + other in logs for other in others)]
    return next((prefix for prefix in of_all if prefix != "train"), None)
