"""What may happen in jobs of SentenceTransformerTrainer, each run bare and watched, as in test_trainer_jobs.py."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    GISTEmbedLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback

from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.sentence_transformers_evaluator import ConeEvaluator
from cone_kernels.integrations.trainer import ConeCallback
from tests.integrations.test_sentence_transformers_evaluator import arguments, around_transformer, words
from tests.integrations.test_trainer_callback import assert_close, cone_of
from tests.support.recording_probe import probed
from tests.support.step_values import Sentence, sentences_of, step_values
from tests.support.tiny_checkpoints import save_checkpoint, word_tokenizer
from tests.support.tiny_models import LAYERS

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]

BEST = f"cone/L{LAYERS}/anisotropy"
INPUTS = ("input_ids", "attention_mask")


class Recorded(SentenceTransformerTrainer):
    """Recomputes the values plainly, from a copy of the transformer."""

    def batches(self, inputs: Any) -> list[dict[str, Tensor]]:
        return [{name: column[name] for name in INPUTS} for column in self.collect_features(inputs)[0]]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        plain, batches = copy.deepcopy(self.model[0].auto_model), self.batches(inputs)
        sentences = [one for batch in batches for one in sentences_of(plain, batch)]
        self.steps.setdefault(self.state.global_step, []).extend(sentences)
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.now += self.batches(inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.now: list[dict[str, Tensor]] = []
        output = super().evaluation_loop(*args, **kwargs)
        if self.now:
            self.evaluations.append(cone_scalars(probed(copy.deepcopy(self.model[0].auto_model).eval(), *self.now)))
        return output

    @property
    def steps(self) -> dict[int, list[Sentence]]:
        return self.__dict__.setdefault("_steps", {})

    @property
    def evaluations(self) -> list[dict[str, float]]:
        return self.__dict__.setdefault("_evaluations", [])


LOSSES: dict[str, Callable[[SentenceTransformer], Any]] = {
    "MNRL": MultipleNegativesRankingLoss,
    "cached": lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=4),
    "guide": lambda model: GISTEmbedLoss(model, guide=model),
    "Matryoshka": lambda model: MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [32, 16]),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every job begins with; none writes to it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder)
    return folder


def without_dropout(checkpoint: Path) -> SentenceTransformer:
    model = around_transformer(checkpoint)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def pairs(n: int, seed: int) -> Dataset:
    return Dataset.from_dict({"anchor": words(n, seed), "positive": words(n, seed + 100)})


def trainer_of(
    checkpoint: Path, folder: Path, how: str, loss: str = "MNRL", evaluator: Any = None, **settings: Any
) -> Any:
    torch.manual_seed(0)
    model = without_dropout(checkpoint)
    callback = None if how == "bare" else ConeCallback(every=1)
    trainer = Recorded(
        model,
        arguments(folder, per_device_eval_batch_size=5, **settings),
        train_dataset=pairs(32, 1),
        eval_dataset=pairs(10, 2),
        loss=LOSSES[loss](model),
        evaluator=evaluator,
        callbacks=[callback] if how == "callbacks=" else [],
    )
    if how == "add_to":
        callback.add_to(trainer)  # type: ignore[union-attr]
    trainer.cone = callback
    return trainer


@pytest.mark.parametrize(
    ("loss", "how"),
    [
        ("guide", "add_to"),
        ("cached", "add_to"),
        pytest.param("MNRL", "add_to", marks=pytest.mark.slow),
        pytest.param("MNRL", "callbacks=", marks=pytest.mark.slow),
        pytest.param("guide", "callbacks=", marks=pytest.mark.slow),
        pytest.param("Matryoshka", "add_to", marks=pytest.mark.slow),
    ],
)
def test_losses(loss: str, how: str, checkpoint: Path, tmp_path: Path) -> None:
    bare, watched = (trainer_of(checkpoint, tmp_path / one, one, loss, save_strategy="no") for one in ("bare", how))
    assert_trained_alike(bare, watched)
    # Nothing stays that other processes could not be given.
    pickle.dumps(watched.model)


class Average(TrainerCallback):
    """A moving average in copies of the model, which encode."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        copy.deepcopy(model).encode(words(4, 9))


def adapt(trainer: Any) -> None:
    config = peft.LoraConfig(target_modules=["query", "value"], lora_dropout=0.0)
    torch.manual_seed(0)
    peft.inject_adapter_in_model(config, trainer.model[0].auto_model)


EVENTS: dict[str, Callable[[Any], object]] = {
    "adapter": adapt,
    "moving average in a copy": lambda trainer: trainer.add_callback(Average()),
    "gradient checkpointing": lambda trainer: trainer.model[0].auto_model.gradient_checkpointing_enable(
        {"use_reentrant": False}
    ),
    "encodes between steps": lambda trainer: trainer.add_callback(Encodes()),
}


class Encodes(TrainerCallback):
    def encode(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.encode(words(4, 9))

    on_step_begin = on_step_end = on_evaluate = on_log = encode


@pytest.mark.parametrize(
    "event",
    [
        "adapter",
        pytest.param("encodes between steps", marks=pytest.mark.slow),
        pytest.param("moving average in a copy", marks=pytest.mark.slow),
        pytest.param("gradient checkpointing", marks=pytest.mark.slow),
    ],
)
def test_events(event: str, checkpoint: Path, tmp_path: Path) -> None:
    bare, watched = (trainer_of(checkpoint, tmp_path / one, one, save_strategy="no") for one in ("bare", "add_to"))
    for trainer in (bare, watched):
        EVENTS[event](trainer)
    assert_trained_alike(bare, watched)


def assert_trained_alike(bare: Any, watched: Any) -> None:
    """Trains both: losses and weights are bitwise the same, and the values are those of a plain recomputation."""
    for trainer in (bare, watched):
        trainer.train()
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (bare, watched)]
    assert losses[0] == losses[1]
    weights = [trainer.model.state_dict() for trainer in (bare, watched)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert watched.cone.skipped == {}
    logs = [log for log in watched.state.log_history if "loss" in log]
    for log in logs:
        assert_close(cone_of(log), step_values([watched.steps[log["step"] - 2], watched.steps[log["step"] - 1]]))
    evaluations = [log for log in watched.state.log_history if "eval_loss" in log]
    assert len(logs) == len(evaluations) == 2
    for log, wanted in zip(evaluations, watched.evaluations, strict=True):
        assert_close(cone_of(log, "eval_"), wanted)


@pytest.mark.parametrize("how", ["add_to", "callbacks="])
def test_the_best_checkpoint_and_early_stopping(how: str, checkpoint: Path, tmp_path: Path) -> None:
    settings = {"load_best_model_at_end": True, "metric_for_best_model": BEST, "greater_is_better": False}
    trainer = trainer_of(checkpoint, tmp_path, how, max_steps=8, **settings)
    trainer.add_callback(EarlyStoppingCallback(2))
    trainer.train()
    scores = {log["step"]: log[f"eval_{BEST}"] for log in trainer.state.log_history if "eval_loss" in log}
    assert list(scores.values()) == pytest.approx([values[BEST] for values in trainer.evaluations], abs=1e-6)
    best = min(scores, key=lambda step: scores[step])
    assert trainer.state.best_metric == scores[best]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.state.global_step == min(8, best + 4)


@pytest.mark.parametrize("with_data", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_evaluator_beside_an_evaluation_set_and_alone(with_data: bool, checkpoint: Path, tmp_path: Path) -> None:
    texts = words(12, 5)
    trainer = trainer_of(checkpoint, tmp_path, "add_to", evaluator=ConeEvaluator(texts, name="dev"), save_strategy="no")
    if not with_data:
        trainer.eval_dataset = None
    trainer.args.max_steps = 2
    trainer.train()
    (log,) = (log for log in trainer.state.log_history if f"eval_dev_{BEST}" in log)
    name = f"eval_{BEST}"
    if with_data:
        assert log[name] == pytest.approx(trainer.evaluations[0][BEST], abs=1e-6)
        assert abs(log[name] - log[f"eval_dev_{BEST}"]) > 1e-4
    else:
        assert log[name] == pytest.approx(log[f"eval_dev_{BEST}"], abs=1e-6)


def test_a_model_without_a_transformer_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = SentenceTransformer(modules=[StaticEmbedding(word_tokenizer().backend_tokenizer, embedding_dim=8)])
    trainer = SentenceTransformerTrainer(
        model,
        arguments(tmp_path, save_strategy="no"),
        train_dataset=pairs(32, 1),
        eval_dataset=pairs(8, 2),
        loss=MultipleNegativesRankingLoss(model),
    )
    callback = ConeCallback(every=1).add_to(trainer)
    trainer.train()
    assert len([log for log in trainer.state.log_history if "eval_loss" in log]) == 2
    assert not any(cone_of(log) for log in trainer.state.log_history)
    (reason,) = callback.skipped
    assert "got none" in reason
    assert caplog.text.count("is not counted") == 1
