"""Anisotropy in what a Lightning module logs, so in its loggers, progress bar, checkpoints and early stopping."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DistributedSampler

from cone_kernels.distributed import padding_repeats
from cone_kernels.extras import require
from cone_kernels.integrations.watch import ConeWatch
from cone_kernels.state.cone_state import ConeState

# The same classes, under either name of the package.
if importlib.util.find_spec("lightning") is None and importlib.util.find_spec("pytorch_lightning") is not None:
    from pytorch_lightning import Callback
else:
    require("lightning", "train", "ConeCallback")
    from lightning.pytorch import Callback


class ConeCallback(Callback):  # type: ignore[misc]
    """Logs `cone/L12/anisotropy` and its standard error while fitting, and `val_cone/L12/anisotropy` after each
    validation, `test_cone/L12/anisotropy` after a test, over all processes.

    The values of training are the mean of the watched steps since the log before, each of its own weights, and
    `cone/L12/anisotropy_last` is the last such step's; they are logged every `trainer.log_every_n_steps`, where steps
    since the last one were watched. All forwards of a batch count, as `ConeWatch` says. Of several data loaders each
    has values of its own, named as Lightning names them: `val_cone/L12/anisotropy/dataloader_idx_0`. Samples that a
    `DistributedSampler` repeats are left out where the model takes in a batch as the loader gives it.
    `ModelCheckpoint(monitor="val_cone/L12/anisotropy", mode="min")` keeps the widest cone.

    `probe_texts` are measured at the beginning and every `probe_every` steps, and the loggers have
    `probe_cone/L12/anisotropy` and its change since then, by the number of steps made. An `Alert` that stops the
    training does so after the step.

    What cannot be measured stops no training: see `ConeWatch`, and `skipped`.

    Args:
        module: where in the LightningModule the Hugging Face model is, as `get_submodule` takes it; `""`: the
            LightningModule itself.
        every: of the training steps watch those whose number is a multiple of `every`.
        layers: the layers to watch, from the end where negative; default all.
        token: also `cone/L12/token_anisotropy`.
        pooling_gap: also `cone/L12/pooling_gap`.
        strict: let what goes wrong stop the job: a compiled model, a forward that cannot be counted, a token that is
            not finite.
        options: of `ConeWatch` (`probe_texts`, `probe_every`, `tokenizer`, `reference`, `alerts`, `on_state`) and of
            `ConeProbe`. The tokenizer is the LightningModule's attribute of that name by default.

    Raises:
        TypeError, ValueError: as `ConeWatch`.
        AttributeError, TypeError, ValueError: from `trainer.fit`: there is no such module, or an option is wrong.

    Examples:
        >>> trainer = lightning.Trainer(callbacks=[ConeCallback("encoder", layers=[6, 12])])
    """

    def __init__(
        self,
        module: str = "model",
        *,
        every: int = 10,
        layers: Sequence[int] | None = None,
        token: bool = False,
        pooling_gap: bool = False,
        strict: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        scalars: dict[str, Any] = {"layers": layers, "token": token, "pooling_gap": pooling_gap}
        repeats = self._repeated_samples
        self._watch = ConeWatch(every=every, module=module, strict=strict, repeats=repeats, **scalars, **options)
        self._batch: tuple[Any, int] = (None, 0)
        self._last_step = 0

    @property
    def skipped(self) -> dict[str, int]:
        """How many forwards and values were left out, by reason."""
        return self._watch.skipped

    @property
    def states(self) -> Mapping[str, ConeState]:
        """The states of the last evaluations (`val`, `test/dataloader_idx_1`), and of the texts, `probe`."""
        return self._watch.states

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._watch.attach(pl_module)
        self._last_step = trainer.global_step
        self._measure(trainer, begins=True)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._watch.begin_step(trainer.global_step)
        self._batch = (trainer.train_dataloader, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # global_step moves on with the last of the batches whose gradients are accumulated.
        stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        if not stepped:
            self._watch.pause()
            return
        self._watch.end_step()
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module, self._watch.take("training"), on_step=True, on_epoch=False)
        measured = self._measure(trainer)
        if measured:  # for callbacks that monitor it; the loggers have it already
            self._log(trainer, pl_module, measured, on_step=True, on_epoch=False, logger=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._watch.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._watch.detach()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin_evaluation(pl_module)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer.val_dataloaders, batch_idx, dataloader_idx)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._watch.pause()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log_evaluation(trainer, pl_module, "val", trainer.val_dataloaders)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            self._watch.detach()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin_evaluation(pl_module)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer.test_dataloaders, batch_idx, dataloader_idx)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._watch.pause()

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log_evaluation(trainer, pl_module, "test", trainer.test_dataloaders)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._watch.detach()

    def _begin_evaluation(self, pl_module: Any) -> None:
        if not self._watch.attached:  # the check before training, or an evaluation outside it
            self._watch.attach(pl_module)

    def _begin_batch(self, loaders: Any, batch_idx: int, dataloader_idx: int) -> None:
        loader = loaders[dataloader_idx] if isinstance(loaders, (list, tuple)) else loaders
        self._batch = (loader, batch_idx)
        self._watch.begin_evaluation(str(dataloader_idx))

    def _measure(self, trainer: Any, *, begins: bool = False) -> dict[str, float]:
        """Measures the texts where it is their turn, and gives the values to the loggers."""
        values = self._watch.measure(trainer.global_step, begins=begins)
        if values:
            with self._watch.guarded():
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=trainer.global_step)
            if begins:
                self._alert(trainer, values)
        return values

    def _log_evaluation(self, trainer: Any, pl_module: Any, prefix: str, loaders: Any) -> None:
        several = isinstance(loaders, (list, tuple)) and len(loaders) > 1
        for index in range(len(loaders) if several else 1):
            suffix = f"/dataloader_idx_{index}" if several else ""
            values = self._watch.take("evaluation", str(index), called=f"{prefix}{suffix}")
            named = {f"{prefix}_{name}{suffix}": value for name, value in values.items()}
            self._log(trainer, pl_module, named, on_step=False, on_epoch=True)

    def _repeated_samples(self, size: int) -> Tensor | None:
        """Those of a DistributedSampler, which Lightning puts into a loader on several processes."""
        loader, batch_idx = self._batch
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, DistributedSampler) or loader.batch_size is None:
            return None
        first = batch_idx * loader.batch_size
        if size != min(loader.batch_size, len(sampler) - first):
            return None  # the batch in parts, or joined to another
        length = len(sampler.dataset)  # type: ignore[arg-type]
        return padding_repeats(first, size, length, rank=sampler.rank, world_size=sampler.num_replicas)

    def _log(self, trainer: Any, pl_module: Any, values: dict[str, float], **when: bool) -> None:
        self._alert(trainer, values)
        # The same on every process already, and named for its data loader.
        with self._watch.guarded():
            pl_module.log_dict(values, sync_dist=False, batch_size=1, add_dataloader_idx=False, **when)

    def _alert(self, trainer: Any, values: dict[str, float]) -> None:
        if self._watch.stops(values, trainer.global_step):
            trainer.should_stop = True
