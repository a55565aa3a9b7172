"""Anisotropy in the logs of transformers' Trainer, and in the metric that chooses the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cone_kernels.extras import require
from cone_kernels.integrations.accelerate import repeated_samples
from cone_kernels.integrations.watch import ConeWatch
from cone_kernels.models.transformers_names import RUNTIME, TRAIN_RUNTIME

require("transformers", "train", "ConeCallback")

from transformers import Trainer, TrainerCallback  # noqa: E402


class ConeCallback(TrainerCallback):  # type: ignore[misc]
    """Logs `cone/L12/anisotropy` and its standard error with the loss, and `eval_cone/L12/anisotropy` with the
    metrics of an evaluation, of the sentences since the log before, over all processes.

    `metric_for_best_model="cone/L12/anisotropy"` with `greater_is_better=False` keeps the checkpoint of the widest
    cone. All forwards of a watched step are counted, of every micro-batch and column, and all between two steps are an
    evaluation's. A log between two watched steps has no such value. Samples that the loader repeats on several
    processes to fill its last round are left out, as `repeated_samples` finds them. Also for
    SentenceTransformerTrainer.

    Args:
        every: of the training steps watch those whose number is a multiple of `every`.
        layers: the layers to log; default all.
        token: also `cone/L12/token_anisotropy`.
        pooling_gap: also `cone/L12/pooling_gap`.
        probe_options: of `ConeProbe`.

    Raises:
        ValueError: `every` is below 1.
        RuntimeError: from `trainer.train()`: the model is compiled, or cannot be probed.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data)
        >>> ConeCallback(layers=[6, 12]).add_to(trainer)
        >>> trainer.train()
    """

    def __init__(
        self,
        *,
        every: int = 10,
        layers: Sequence[int] | None = None,
        token: bool = False,
        pooling_gap: bool = False,
        **probe_options: Any,
    ) -> None:
        scalars: dict[str, Any] = {"layers": layers, "token": token, "pooling_gap": pooling_gap}
        self._watch = ConeWatch(every=every, **scalars, repeats=repeated_samples, **probe_options)

    def add_to(self, trainer: Trainer) -> ConeCallback:
        """Add this callback before those that report logs (TensorBoard, W&B, the progress bar).

        Given in `Trainer(callbacks=[...])` it comes after them: the values are in `log_history` and in the metrics
        of an evaluation then, but not in what those callbacks report.
        """
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if getattr(args, "torch_compile", False):
            raise RuntimeError("torch_compile: got True; it must be False, as hooks do not fire in a compiled model")
        self._watch.attach(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.begin_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.begin_evaluation()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.detach()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None:
            return
        # Trainer.evaluate logs the very dictionary of metrics from which the best checkpoint is chosen.
        timed = next((name for name in logs if name.endswith(RUNTIME)), None)
        if timed is not None and timed != TRAIN_RUNTIME:
            prefix = timed.removesuffix(RUNTIME) + "_"
            values = {prefix + name: value for name, value in self._watch.take("evaluation").items()}
        elif timed is None and "loss" in logs:
            values = self._watch.take("training")
        else:
            return
        logs.update(values)
        # The history has a copy, made before callbacks saw the log.
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(values)
