"""ConeCallback in transformers' Trainer, against a probe on the same batches by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainingArguments

from cone_kernels import ConeState, mean_pairwise_cosine
from cone_kernels.integrations.scalars import cone_scalars, log_cone
from cone_kernels.integrations.trainer import ConeCallback
from tests.support.gloo_ranks import run_ranks
from tests.support.recording_probe import probed
from tests.support.step_values import sentences_of, step_values
from tests.support.tiny_models import LAYERS, tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def classifier(**settings: Any) -> nn.Module:
    return tiny_model("bert", model_class="BertForSequenceClassification", **(NO_DROPOUT | settings))


def samples(n: int, seed: int = 1) -> list[dict[str, Tensor]]:
    batch = tiny_batch(sentences=n, seed=seed)
    return [{name: value[row] for name, value in batch.items()} | {"labels": torch.tensor(row % 2)} for row in range(n)]


def inputs(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 2,
        "learning_rate": 0.0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(folder), **(options | settings))


class InOrder(Trainer):
    """Batches in the data's order, so that they can be had by hand too."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def cone_of(log: dict[str, Any], prefix: str = "") -> dict[str, float]:
    names = [name for name in log if name.startswith(f"{prefix}cone/")]
    return {name.removeprefix(prefix): log[name] for name in names}


def assert_close(got: dict[str, float], wanted: dict[str, float]) -> None:
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_logs_of_training_are_of_the_steps_between(tmp_path: Path, every: int, accumulation: int) -> None:
    # With a learning rate of 0 the model stays what it was, so its values can be had afterwards.
    model, data = classifier(), samples(48)
    options = {"token": True, "pooling_gap": True}
    trainer = InOrder(model, arguments(tmp_path, gradient_accumulation_steps=accumulation), train_dataset=data)
    ConeCallback(every=every, **options).add_to(trainer)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4, 6]
    size = 4 * accumulation
    for log in logs:
        steps = [step for step in (log["step"] - 2, log["step"] - 1) if step % every == 0]
        seen = [sentences_of(model, inputs(data[step * size : (step + 1) * size])) for step in steps]
        assert_close(cone_of(log), step_values(seen, **options))
    assert "forward" not in model.__dict__


def test_evaluation_metrics_choose_the_best_checkpoint(tmp_path: Path) -> None:
    model, train, evaluation = classifier(), samples(24), samples(10, seed=7)
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 1e-2,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"cone/L{LAYERS}/anisotropy",
        "greater_is_better": False,
        "lr_scheduler_type": "constant",
    }
    callback = ConeCallback(every=1, layers=[1, LAYERS])
    trainer = Trainer(
        model, arguments(tmp_path, **settings), train_dataset=train, eval_dataset=evaluation, callbacks=[callback]
    )
    trainer.train()
    curve = {log["step"]: cone_of(log, "eval_") for log in trainer.state.log_history if "eval_loss" in log}
    assert list(curve) == [2, 4, 6]
    name = f"cone/L{LAYERS}/anisotropy"
    assert all(len(values) == 4 for values in curve.values())
    best = min(curve, key=lambda step: curve[step][name])
    assert trainer.state.best_metric == curve[best][name]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    # The model loaded at the end is that one, so a probe by hand finds the same cone.
    batches = [inputs(evaluation[at : at + 4]) for at in range(0, 10, 4)]
    assert_close(curve[best], cone_scalars(probed(trainer.model.eval(), *batches), layers=[1, LAYERS]))
    history = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert sum(name in log for log in history) >= 1


def test_several_evaluation_sets_each_have_their_own(tmp_path: Path) -> None:
    model = classifier()
    sets = {"a": samples(8, seed=3), "b": samples(6, seed=4)}
    settings = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 3}
    trainer = Trainer(model, arguments(tmp_path, **settings), train_dataset=samples(12), eval_dataset=sets)
    ConeCallback().add_to(trainer)
    trainer.train()
    for name, rows in sets.items():
        (log,) = (log for log in trainer.state.log_history if f"eval_{name}_loss" in log)
        batches = [inputs(rows[at : at + 4]) for at in range(0, len(rows), 4)]
        assert_close(cone_of(log, f"eval_{name}_"), cone_scalars(probed(model.eval(), *batches)))


class Recorder(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def test_reporters_see_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    recorder = Recorder()
    settings = {"report_to": ["tensorboard"], "eval_strategy": "steps", "eval_steps": 4}
    trainer = Trainer(
        classifier(),
        arguments(tmp_path, **settings),
        train_dataset=samples(24),
        eval_dataset=samples(8),
        callbacks=[recorder],
    )
    ConeCallback(every=1, layers=[2]).add_to(trainer)
    trainer.train()
    assert any("cone/L2/anisotropy" in log for log in recorder.logs)
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    values = {event.step: event.value for event in events.Scalars("train/cone/L2/anisotropy")}
    logged = {log["step"]: log["cone/L2/anisotropy"] for log in trainer.state.log_history if "loss" in log}
    assert values == pytest.approx(logged)
    assert [event.step for event in events.Scalars("eval/cone/L2/anisotropy")] == [4, 6]


def test_training_is_what_it_is_without_the_callback(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [ConeCallback(every=1)]):
        model = classifier(hidden_dropout_prob=0.1)
        settings = {"learning_rate": 1e-3, "gradient_checkpointing": True, "bf16": True, "seed": 3}
        Trainer(model, arguments(tmp_path, **settings), train_dataset=samples(24), callbacks=callbacks).train()
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_compiled_models_are_refused_where_the_watch_is_strict(tmp_path: Path) -> None:
    settings = arguments(tmp_path, torch_compile=True)
    trainer = Trainer(classifier(), settings, train_dataset=samples(8), callbacks=[ConeCallback(strict=True)])
    with pytest.raises(RuntimeError, match="torch_compile: got True; it must be False"):
        trainer.train()


def test_a_second_training_after_one_that_failed(tmp_path: Path) -> None:
    model = classifier()
    data = samples(24)
    callback = ConeCallback(every=1)
    broken = [*data[:6], {**data[6], "labels": torch.tensor(9)}, *data[7:]]
    with pytest.raises(IndexError):
        InOrder(model, arguments(tmp_path), train_dataset=broken, callbacks=[callback]).train()
    trainer = InOrder(model, arguments(tmp_path), train_dataset=data, callbacks=[callback])
    trainer.train()
    first = next(log for log in trainer.state.log_history if "loss" in log)
    assert_close(cone_of(first), step_values([sentences_of(model, inputs(data[at : at + 4])) for at in (0, 4)]))
    assert "forward" not in model.__dict__


def trained_on_ranks(folder: str) -> list[dict[str, Any]]:
    settings = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 3, "logging_steps": 3, "ddp_backend": "gloo"}
    trainer = InOrder(
        classifier(),
        arguments(Path(folder) / str(dist.get_rank()), **settings),
        train_dataset=samples(24),
        eval_dataset=samples(11, seed=7),
    )
    assert trainer.args.world_size == 2
    ConeCallback(every=1).add_to(trainer)
    trainer.train()
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def test_values_are_those_of_all_ranks_and_of_each_sample_once(tmp_path: Path) -> None:
    model = classifier()
    # Accelerate gives each rank every second batch.
    steps = [sentences_of(model, inputs(samples(24)[at : at + 8])) for at in range(0, 24, 8)]
    training = step_values(steps)
    # Eleven samples for two ranks in batches of four: five are repeated to fill the last round.
    evaluation = cone_scalars(probed(model, *(inputs(samples(11, seed=7)[at : at + 4]) for at in range(0, 11, 4))))
    for history in run_ranks(trained_on_ranks, 2, str(tmp_path)):
        train_log = next(log for log in history if "loss" in log)
        eval_log = next(log for log in history if "eval_loss" in log)
        for log, prefix, wanted in ((train_log, "", training), (eval_log, "eval_", evaluation)):
            got = cone_of(log, prefix)
            assert set(got) == set(wanted)
            # Ranks number their sentences apart, so groups, and with them standard errors, are others.
            for layer in range(LAYERS + 1):
                name = f"cone/L{layer}/anisotropy"
                assert got[name] == pytest.approx(wanted[name], abs=1e-6)


class Writer:
    def __init__(self) -> None:
        self.written: list[Any] = []


class BoardLike(Writer):
    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.written.append((name, value, step))


class RunLike(Writer):
    def log(self, values: dict[str, float], step: int) -> None:
        self.written += [(name, value, step) for name, value in values.items()]


@pytest.mark.parametrize("kind", [BoardLike, RunLike])
def test_log_cone_writes_to_anything_that_logs(kind: type[Writer]) -> None:
    state = probed(tiny_model("bert"), tiny_batch())
    writer = kind()
    values = log_cone(writer, state, 7, layers=[0, 3], token=True)
    assert writer.written == [(name, value, 7) for name, value in values.items()]
    assert list(values) == [
        f"cone/L{layer}/{name}"
        for layer in (0, 3)
        for name in ("anisotropy", "anisotropy_stderr", "token_anisotropy", "token_anisotropy_stderr")
    ]


def test_scalars_of_a_state_whose_layers_do_not_begin_at_0() -> None:
    state = ConeState.empty([1, 3, 5], 8)
    hidden = [torch.randn(9, 4, 8, generator=torch.Generator().manual_seed(layer)) for layer in range(3)]
    state.update(hidden, torch.ones(9, 4))
    for layer, rows in zip(state.layers, hidden, strict=True):
        values = cone_scalars(state, layers=[layer], token=True)
        assert values[f"cone/L{layer}/anisotropy"] == pytest.approx(float(mean_pairwise_cosine(rows.mean(1))), abs=1e-6)
        tokens = float(mean_pairwise_cosine(rows.flatten(0, 1)))
        assert values[f"cone/L{layer}/token_anisotropy"] == pytest.approx(tokens, abs=1e-6)
        assert values.items() <= cone_scalars(state, token=True).items()


def test_log_cone_to_tensorboard_itself(tmp_path: Path) -> None:
    state = probed(tiny_model("bert"), tiny_batch())
    with SummaryWriter(str(tmp_path)) as writer:
        values = log_cone(writer, state, 3, layers=[2])
    events = EventAccumulator(str(tmp_path)).Reload()
    for name, value in values.items():
        assert [(event.step, event.value) for event in events.Scalars(name)] == [(3, pytest.approx(value))]


def test_arguments_refused() -> None:
    state = probed(tiny_model("bert"), tiny_batch())
    with pytest.raises(TypeError, match="writer: got object"):
        log_cone(object(), state, 1)
    with pytest.raises(ValueError, match=r"layers: got \[9\]"):
        cone_scalars(state, layers=[9])
    with pytest.raises(ValueError, match="every: got 0"):
        ConeCallback(every=0)
