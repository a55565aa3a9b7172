"""What may happen in jobs of Lightning, and in loops of one's own with Accelerate, each run bare and watched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from cone_kernels.integrations.accelerate import active_loader, repeated_samples
from cone_kernels.integrations.lightning import ConeCallback
from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.watch import ConeWatch
from tests.integrations.test_lightning_callback import batches, logged, module, rows, trainer
from tests.support.recording_probe import probed
from tests.support.step_values import Sentence, sentences_of, step_values
from tests.support.tiny_models import LAYERS, tiny_batch, tiny_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*"),
]

NAME = f"cone/L{LAYERS}/anisotropy"


def loader(n: int, seed: int) -> Any:
    return torch.utils.data.DataLoader(rows(n, seed), batch_size=4)  # type: ignore[arg-type]


class Event:
    """Something that happens in a job; this one is nothing."""

    def training(self, encoder: Any, step: Callable[[], Tensor], batch_idx: int) -> Tensor | None:
        return step()

    def after_a_batch(self, encoder: Any) -> None: ...


class OutOfMemory(Event):
    def training(self, encoder: Any, step: Callable[[], Tensor], batch_idx: int) -> Tensor | None:
        def run_out(*_: Any) -> None:
            if batch_idx == 2:
                raise torch.OutOfMemoryError("no room")

        with encoder.model.encoder.layer[1].register_forward_pre_hook(run_out):
            try:
                return step()
            except torch.OutOfMemoryError:
                return None


class MovingAverage(Event):
    def after_a_batch(self, encoder: Any) -> None:
        copy.deepcopy(encoder.model)(**tiny_batch())


class OtherForwards(Event):
    def after_a_batch(self, encoder: Any) -> None:
        with torch.no_grad():
            encoder.model(**tiny_batch(seed=9))


class Checkpointing(Event):
    def training(self, encoder: Any, step: Callable[[], Tensor], batch_idx: int) -> Tensor | None:
        encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
        return step()


class Compiled(Event):
    def training(self, encoder: Any, step: Callable[[], Tensor], batch_idx: int) -> Tensor | None:
        if batch_idx == 1:
            for block in encoder.model.encoder.layer:
                block.compile(backend="eager")
        return step()


@dataclass
class Seen:
    steps: dict[int, list[Sentence]]
    evaluations: list[dict[str, float]]


def fitted(event: Event, folder: Path, *callbacks: Any) -> tuple[dict[str, Tensor], Seen]:
    package = lightning.pytorch
    torch._dynamo.reset()
    seen = Seen({}, [])
    kind = type(module(package))

    class Encoder(kind):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            plain = copy.deepcopy(self.model)
            loss = event.training(self, lambda: super(Encoder, self).training_step(batch, batch_idx), batch_idx)
            if loss is not None:
                seen.steps[self.trainer.global_step] = sentences_of(plain, batch)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.02)

        def on_train_batch_end(self, *args: Any) -> None:
            event.after_a_batch(self)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", super().training_step(batch, batch_idx))

        def on_validation_end(self) -> None:
            if not self.trainer.sanity_checking:
                plain = copy.deepcopy(self.model).eval()
                seen.evaluations += [
                    cone_scalars(probed(plain, *batches(rows(n, seed)))) for n, seed in ((10, 7), (6, 8))
                ]

    torch.manual_seed(0)
    encoder = Encoder()
    settings = {"val_check_interval": 3, "max_steps": 6, "log_every_n_steps": 1}
    fit = trainer(package, folder, *callbacks, **settings)
    fit.fit(encoder, loader(48, 1), [loader(10, 7), loader(6, 8)])
    assert "forward" not in vars(encoder.model)
    return {name: value.clone() for name, value in encoder.state_dict().items()}, seen


@pytest.mark.parametrize(
    "event",
    [
        OutOfMemory(),
        pytest.param(Event(), marks=pytest.mark.slow),
        pytest.param(MovingAverage(), marks=pytest.mark.slow),
        pytest.param(OtherForwards(), marks=pytest.mark.slow),
        pytest.param(Checkpointing(), marks=pytest.mark.slow),
        pytest.param(Compiled(), marks=pytest.mark.slow),
    ],
    ids=lambda event: type(event).__name__,
)
def test_fits(event: Event, tmp_path: Path) -> None:
    callback = ConeCallback(every=1)
    bare, _ = fitted(event, tmp_path / "bare")
    watched, seen = fitted(event, tmp_path / "watched", callback)
    assert all(torch.equal(value, watched[name]) for name, value in bare.items())
    assert not any(value.isnan().any() for value in bare.values())
    assert sum(callback.skipped.values()) == isinstance(event, OutOfMemory)
    # A log is numbered by the step before it is counted. Where a step has no value, Lightning says the last one again.
    values = logged(tmp_path / "watched", NAME)
    assert list(values) == list(range(6))
    for step, sentences in seen.steps.items():
        assert values[step] == pytest.approx(step_values([sentences])[NAME], abs=1e-6)
    assert len(seen.steps) == 6 - isinstance(event, OutOfMemory)
    for index in range(2):
        found = logged(tmp_path / "watched", f"val_{NAME}/dataloader_idx_{index}")
        assert list(found.values()) == pytest.approx([one[NAME] for one in seen.evaluations[index::2]], abs=1e-6)
        assert len(found) == 2


class Trained(type(module(lightning.pytorch))):  # type: ignore[misc]
    """Keeps the sentences of each step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        seen = self.__dict__.setdefault("seen", {})
        seen[self.trainer.global_step] = sentences_of(copy.deepcopy(self.model), batch)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("event", ["resume", pytest.param("interrupt and resume", marks=pytest.mark.slow)])
def test_a_fit_that_goes_on_from_a_checkpoint(event: str, tmp_path: Path) -> None:
    weights = []
    for watched in (False, True):
        folder, callbacks = tmp_path / str(watched), [ConeCallback(every=1)] if watched else []
        torch.manual_seed(0)
        first = Trained()
        fit = trainer(lightning.pytorch, folder / "first", *callbacks, max_steps=2, log_every_n_steps=1)
        fit.fit(first, loader(24, 1))
        fit.save_checkpoint(folder / "first.ckpt")
        if event == "interrupt and resume":
            broken = Trained()
            block = broken.model.encoder.layer[1]

            def interrupt(called: Any, *_: Any, broken: Any = broken, block: Any = block) -> None:
                if called is block and broken.trainer.global_step == 1:
                    raise KeyboardInterrupt

            block.register_forward_pre_hook(interrupt)
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                trainer(lightning.pytorch, folder / "broken", *callbacks, max_steps=2).fit(broken, loader(24, 1))
            assert "forward" not in vars(broken.model)
        second = Trained()
        fit = trainer(lightning.pytorch, folder / "second", *callbacks, max_steps=5, log_every_n_steps=1)
        fit.fit(second, loader(24, 1), ckpt_path=folder / "first.ckpt")
        weights.append(second.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert sum(callbacks[0].skipped.values()) == (event != "resume")
    values = logged(folder / "first", NAME) | logged(folder / "second", NAME)
    seen = first.seen | second.seen
    assert list(values) == list(seen) == list(range(5))
    for step, sentences in seen.items():
        assert values[step] == pytest.approx(step_values([sentences])[NAME], abs=1e-6)


def test_early_stopping_by_the_cone(tmp_path: Path) -> None:
    stopping = lightning.pytorch.callbacks.EarlyStopping(
        f"val_{NAME}", mode="min", patience=1, check_on_train_epoch_end=False
    )
    encoder = Trained()
    settings = {"val_check_interval": 1, "max_steps": 12, "num_sanity_val_steps": 0}
    fit = trainer(lightning.pytorch, tmp_path, ConeCallback(every=1), stopping, **settings)
    fit.fit(encoder, loader(48, 1), loader(10, 7))
    values = list(logged(tmp_path, f"val_{NAME}").values())
    rises = [at for at, value in enumerate(values) if at > 0 and value >= min(values[:at])]
    assert rises == [len(values) - 1]
    assert len(values) < 12
    assert fit.global_step == len(values)


def test_a_test_and_what_the_watch_cannot_count(tmp_path: Path) -> None:
    package = lightning.pytorch
    kind = type(module(package))

    class Encoder(kind):  # type: ignore[misc, valid-type]
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", self.training_step(batch, batch_idx))

    encoder = Encoder()
    (metrics,) = trainer(package, tmp_path, ConeCallback(layers=[-1])).test(encoder, loader(10, 7), verbose=False)
    wanted = cone_scalars(probed(encoder.model.eval(), *batches(rows(10, 7))), layers=[LAYERS])
    assert {name: value for name, value in metrics.items() if "cone" in name} == pytest.approx(
        {f"test_{name}": value for name, value in wanted.items()}, abs=1e-6
    )
    assert "forward" not in vars(encoder.model)
    whole = ConeCallback(module="", every=1)  # the LightningModule itself: it has no forward to watch
    fit = trainer(package, tmp_path, whole, max_steps=2)
    fit.fit(encoder, loader(8, 1))
    assert fit.global_step == 2
    assert not [name for name in fit.logged_metrics if "cone" in name]


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_loop_with_accelerate(precision: str) -> None:
    """Evaluations, a moving average, a batch out of memory and an unwrapped model in a loop of one's own."""
    weights = []
    for watched in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        model: nn.Module = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        watch = ConeWatch(every=1, repeats=repeated_samples, reading=active_loader)
        if watched:
            watch.attach(model)
        prepared, optimizer, training = accelerator.prepare(model, optimizer, loader(16, 1))
        steps = []
        for step, batch in enumerate(training):
            plain = copy.deepcopy(accelerator.unwrap_model(prepared))
            full = step == 2

            def run_out(*_: Any, full: bool = full) -> None:
                if full:
                    raise torch.OutOfMemoryError("no room")

            watch.begin_step(step)
            with model.encoder.layer[1].register_forward_pre_hook(run_out):  # type: ignore[union-attr]
                try:
                    accelerator.backward(prepared(**batch).last_hidden_state.square().mean())
                except torch.OutOfMemoryError:
                    optimizer.zero_grad()
                else:
                    optimizer.step()
                    optimizer.zero_grad()
                    steps.append((plain, batch))
            watch.end_step()
            plain.eval()(**tiny_batch())
            with torch.no_grad():
                prepared(**tiny_batch(seed=9))
        with watch.evaluating(), torch.no_grad():
            prepared(**tiny_batch(seed=10))
        if watched:
            means, evaluation = watch.take("training"), watch.take("evaluation")
            assert watch.skipped == {"no room": 1}
            watch.detach()
            wanted = step_values([sentences_of(plain, batch) for plain, batch in steps])
            assert means == pytest.approx(wanted, abs=1e-6 if precision == "no" else 2e-2)
            wanted = cone_scalars(probed(model.eval(), tiny_batch(seed=10)))
            assert evaluation == pytest.approx(wanted, abs=1e-6 if precision == "no" else 2e-2)
        unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        with torch.no_grad():
            weights.append({**unwrapped.state_dict(), "output": unwrapped(**tiny_batch()).last_hidden_state})
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
