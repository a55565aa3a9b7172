"""What may happen in jobs of transformers' Trainer and those built on it: each is run bare and watched.

The job finishes, its losses and weights are bitwise those without the watch, and the values are those of a plain
recomputation from the weights and the inputs of each step and evaluation.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.trainer import ConeCallback
from tests.integrations.test_trainer_callback import NO_DROPOUT, arguments, assert_close, cone_of, samples
from tests.support.recording_probe import probed
from tests.support.step_values import Sentence, sentences_of, step_values
from tests.support.tiny_models import LAYERS, tiny_batch, tiny_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BEST = f"cone/L{LAYERS}/anisotropy"
INPUTS = ("input_ids", "attention_mask")


@dataclass
class Seen:
    """What a job took in: the sentences of each step, and of each evaluation the batches and the model of then."""

    steps: dict[int, list[Sentence]] = field(default_factory=dict)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    now: list[dict[str, Tensor]] = field(default_factory=list)


class Recorded:
    """For a Trainer: recomputes the values plainly, from a copy of the model; passes over what is out of memory."""

    model: Any
    state: Any
    recording = False

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        plain = self.plain() if self.recording else None
        try:
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            return torch.zeros(())
        if plain is None:
            return loss
        self.seen.steps.setdefault(self.state.global_step, []).extend(sentences_of(plain, self.taken(inputs)))
        return loss

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.now.append(self.taken(inputs))
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.now = []
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        if not self.recording:
            return output
        self.seen.evaluations.append(cone_scalars(probed(self.plain().eval(), *self.seen.now)))
        return output

    def plain(self) -> Any:
        """A copy of the model as it is now."""
        return encoder_of(copy.deepcopy(self.model))

    def taken(self, inputs: Any) -> dict[str, Tensor]:
        """The sentences of a batch, padded."""
        return {name: inputs[name] for name in INPUTS}

    @property
    def seen(self) -> Seen:
        return self.__dict__.setdefault("_seen", Seen())


def encoder_of(model: Any) -> Any:
    return model.get_encoder() if model.config.is_encoder_decoder else model


class RecordedTrainer(Recorded, Trainer):
    pass


class RecordedSeq2SeqTrainer(Recorded, Seq2SeqTrainer):
    pass


@dataclass
class Job:
    """A job that is run twice.

    Attributes:
        model: makes the model.
        settings: of TrainingArguments.
        callbacks: makes further callbacks, given the model and what will be the trainer.
        prepare: does something to the trainer before it trains.
        train: what is done instead of `trainer.train()`.
        n_skipped: how many forwards cannot be counted; -1 where it does not matter.
        several: whether there are two evaluation sets.
        watched: whether there are values.
        kind, arguments: make the trainer and its arguments.
        compute_metrics: of the trainer.
    """

    model: Callable[[], nn.Module]
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[dict[str, Any]], list[TrainerCallback]] = lambda made: []
    prepare: Callable[[Any], None] = lambda trainer: None
    train: Callable[[Any], Any] = lambda trainer: trainer.train()
    n_skipped: int = 0
    several: bool = False
    watched: bool = True
    kind: Callable[..., Any] = RecordedTrainer
    compute_metrics: Callable[[Any], dict[str, float]] | None = None
    arguments: Callable[..., Any] = arguments


def classifier() -> nn.Module:
    return tiny_model("bert", model_class="BertForSequenceClassification", **NO_DROPOUT)


def lora_classifier() -> nn.Module:
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_dropout=0.0)
    torch.manual_seed(0)
    model = peft.get_peft_model(classifier(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def generator(architecture: str, model_class: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        dropout = {"dropout_rate": 0.0} if architecture == "t5" else {"dropout": 0.0, "activation_dropout": 0.0}
        model = tiny_model(architecture, model_class=model_class, **({} if architecture == "llama" else dropout))
        model.generation_config.max_new_tokens = 4
        return model

    return make


class Samples(TrainerCallback):
    """Generates from left-padded prompts, before, within and after steps and evaluations."""

    def sample(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.generate(**tiny_batch("left"), max_new_tokens=3, do_sample=False)

    on_step_begin = on_step_end = on_epoch_end = on_evaluate = on_log = on_train_begin = on_prediction_step = sample


class Average(TrainerCallback):
    """A moving average in copies of the model, which run and are saved."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        average = copy.deepcopy(model)
        average.eval()(**tiny_batch(seed=3))
        average.save_pretrained(Path(args.output_dir) / "average")


class Predicts(TrainerCallback):
    def __init__(self, made: dict[str, Any]) -> None:
        self.made = made

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.made["trainer"].predict(samples(5, seed=11))


class WithReference(RecordedTrainer):
    """The loss takes in what the model makes without its adapter."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inner = self.accelerator.unwrap_model(model)
        with torch.no_grad(), inner.disable_adapter():
            reference = model(**{name: inputs[name] for name in INPUTS}).logits
        outputs = model(**inputs)
        loss = outputs.loss + (outputs.logits - reference).square().mean()
        return (loss, outputs) if kwargs.get("return_outputs") else loss


def out_of_memory(trainer: Any) -> None:
    """The second block of the model runs out of memory in the third training batch."""
    calls = {"n": 0}

    def run_out(module: nn.Module, *_: Any) -> None:
        if trainer.model.training and torch.is_grad_enabled():
            calls["n"] += 1
            if calls["n"] == 3:
                raise torch.OutOfMemoryError("no room")

    trainer.model.bert.encoder.layer[1].register_forward_pre_hook(run_out)


def interrupted(trainer: Any) -> None:
    """Ctrl-C in a forward of the third step; then the training goes on from what was saved."""
    block = trainer.model.bert.encoder.layer[1]

    def interrupt(*_: Any) -> None:
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt

    with block.register_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert ("forward" in vars(trainer.model)) == ("train" not in vars(trainer) and trainer.recording)
    copy.deepcopy(trainer.model)(**tiny_batch())
    trainer.seen.steps.pop(2, None)
    trainer.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-2"))


def compile_blocks(trainer: Any) -> None:
    torch._dynamo.reset()
    for block in trainer.model.bert.encoder.layer:
        block.compile(backend="eager")


class CompilesLater(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 2:
            torch._dynamo.reset()
            for block in model.bert.encoder.layer:
                block.compile(backend="eager")


EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}
KEEPS_THE_BEST = {
    **EVALUATES,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": BEST,
    "greater_is_better": False,
}
SAVES = {"save_strategy": "steps", "save_steps": 2}
SEQ2SEQ = {**EVALUATES, "predict_with_generate": True}


def seq2seq(architecture: str, model_class: str) -> Job:
    return Job(
        generator(architecture, model_class),
        SEQ2SEQ,
        n_skipped=-1,
        kind=RecordedSeq2SeqTrainer,
        compute_metrics=lambda prediction: {"length": float(prediction.predictions.shape[1])},
        arguments=lambda folder, **settings: arguments_of(Seq2SeqTrainingArguments, folder, **settings),
    )


JOBS: dict[str, Job] = {
    "evaluation": Job(classifier, EVALUATES),
    "evaluation before the first step": Job(classifier, EVALUATES | {"eval_on_start": True}),
    "several evaluation sets": Job(classifier, EVALUATES, several=True),
    "predict inside training": Job(classifier, EVALUATES, callbacks=lambda made: [Predicts(made)]),
    "moving average in a copy": Job(classifier, EVALUATES, callbacks=lambda made: [Average()]),
    "batch out of memory": Job(classifier, EVALUATES, prepare=out_of_memory, n_skipped=1),
    "interrupt and resume": Job(classifier, EVALUATES | SAVES, train=interrupted, n_skipped=1),
    "adapter": Job(lora_classifier, EVALUATES),
    "adapter off as the reference": Job(lora_classifier, EVALUATES, kind=WithReference),
    "gradient checkpointing": Job(classifier, EVALUATES | {"gradient_checkpointing": True}),
    "accumulation": Job(classifier, EVALUATES | {"gradient_accumulation_steps": 2}),
    "bfloat16": Job(classifier, EVALUATES | {"bf16": True}),
    "blocks compiled before": Job(classifier, EVALUATES, prepare=compile_blocks),
    "blocks compiled within": Job(classifier, EVALUATES, callbacks=lambda made: [CompilesLater()]),
    "all compiled": Job(
        classifier, EVALUATES | {"torch_compile": True, "torch_compile_backend": "eager"}, n_skipped=1, watched=False
    ),
    "generation in an evaluation, T5": seq2seq("t5", "T5ForConditionalGeneration"),
    "generation in an evaluation, BART": seq2seq("bart", "BartForConditionalGeneration"),
    "samples": Job(generator("llama", "LlamaForCausalLM"), EVALUATES, callbacks=lambda made: [Samples()], n_skipped=-1),
    "best checkpoint": Job(classifier, KEEPS_THE_BEST),
    "early stopping": Job(classifier, KEEPS_THE_BEST, callbacks=lambda made: [EarlyStoppingCallback(1)]),
}
SLOW = {
    "all compiled",
    "bfloat16",
    "blocks compiled before",
    "early stopping",
    "gradient checkpointing",
    "several evaluation sets",
    "evaluation before the first step",
    "generation in an evaluation, BART",
    "accumulation",
    "adapter",
    "blocks compiled within",
}


def arguments_of(kind: type[TrainingArguments], folder: Path, **settings: Any) -> TrainingArguments:
    plain = arguments(folder, **{name: value for name, value in settings.items() if name != "predict_with_generate"})
    return kind(**{**{name: getattr(plain, name) for name in ARGUMENTS}, **settings, "output_dir": str(folder)})


ARGUMENTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "max_steps",
    "logging_steps",
    "learning_rate",
    "report_to",
    "use_cpu",
    "disable_tqdm",
    "save_strategy",
    "dataloader_pin_memory",
)


def data(model: nn.Module, n: int, seed: int) -> list[dict[str, Tensor]]:
    if hasattr(model, "classifier") or (hasattr(model, "base_model") and isinstance(model, peft.PeftModel)):
        return samples(n, seed)
    return [row | {"labels": row["input_ids"]} for row in samples(n, seed)]


@dataclass
class Ran:
    losses: list[float]
    weights: dict[str, Tensor]
    trainer: Any
    callback: ConeCallback | None


def run(job: Job, folder: Path, how: str) -> Ran:
    torch.manual_seed(0)
    model = job.model()
    made: dict[str, Any] = {}
    callback = None if how == "bare" else ConeCallback(every=1)
    others = job.callbacks(made)
    settings = job.arguments(folder, **{"learning_rate": 1e-2, "max_steps": 4, **job.settings})
    if how == "bare" and job.settings.get("metric_for_best_model") == BEST:
        # What the best is chosen by is not there without the watch: the same job, without a choice.
        settings.load_best_model_at_end, settings.metric_for_best_model = False, None
        others = []
    sets = {"a": data(model, 8, 3), "b": data(model, 6, 4)}
    trainer = job.kind(
        model,
        settings,
        train_dataset=data(model, 48, 1),
        eval_dataset=sets if job.several else sets["a"],
        callbacks=[*others, *([callback] if how == "callbacks=" else [])],
        compute_metrics=job.compute_metrics,
    )
    made["trainer"], trainer.recording = trainer, callback is not None
    if how == "add_to":
        callback.add_to(trainer)  # type: ignore[union-attr]
    job.prepare(trainer)
    job.train(trainer)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return Ran(losses, {name: value.clone() for name, value in model.state_dict().items()}, trainer, callback)


def names_with_reason(job: str) -> Any:
    return pytest.param(job, marks=pytest.mark.slow) if job in SLOW else job


@pytest.mark.parametrize("how", ["add_to", pytest.param("callbacks=", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [names_with_reason(name) for name in JOBS])
def test_a_job_is_what_it_is_without_the_watch(name: str, how: str, tmp_path: Path) -> None:
    job = JOBS[name]
    bare, watched = run(job, tmp_path / "bare", "bare"), run(job, tmp_path / "watched", how)
    history, seen = watched.trainer.state.log_history, watched.trainer.seen
    chosen = job.settings.get("metric_for_best_model") == BEST
    assert watched.losses == bare.losses[: len(watched.losses)]
    if not chosen:
        assert len(watched.losses) == len(bare.losses)
        assert all(torch.equal(value, bare.weights[key]) for key, value in watched.weights.items())
    assert watched.callback is not None
    n_skipped = sum(watched.callback.skipped.values())
    if job.n_skipped >= 0:
        assert n_skipped == job.n_skipped, watched.callback.skipped
    assert "forward" not in vars(watched.trainer.model) or job.settings.get("bf16")
    if not job.watched:
        assert not any(cone_of(log) for log in history)
        return

    precise = 2e-2 if job.settings.get("bf16") else 1e-6
    for log in (log for log in history if "loss" in log):
        steps = [seen.steps[step] for step in (log["step"] - 2, log["step"] - 1) if step in seen.steps]
        wanted = step_values(steps)
        got = cone_of(log)
        assert set(got) == set(wanted)
        for key, value in wanted.items():
            assert got[key] == pytest.approx(value, abs=precise), key
    evaluations = [log for log in history if any(key.startswith("eval_") and key.endswith("_loss") for key in log)]
    evaluations += [log for log in history if "eval_loss" in log and log not in evaluations]
    recomputed = [values for values in seen.evaluations if values]
    if name == "predict inside training":
        recomputed = recomputed_without_predictions(watched.trainer, recomputed)
    assert len(evaluations) == len(recomputed) > 0
    for log, wanted in zip(evaluations, recomputed, strict=True):
        prefix = next(key for key in log if key.endswith("cone/L0/anisotropy")).removesuffix("cone/L0/anisotropy")
        got = cone_of(log, prefix)
        assert set(got) == set(wanted)
        for key, value in wanted.items():
            assert got[key] == pytest.approx(value, abs=precise), key
    if chosen:
        scores = [log[f"eval_{BEST}"] for log in history if "eval_loss" in log]
        assert watched.trainer.state.best_metric == min(scores)


def recomputed_without_predictions(trainer: Any, found: list[dict[str, float]]) -> list[dict[str, float]]:
    """After each second of the predictions, one a step, comes an evaluation."""
    assert len(found) == 4 + 2
    return found[2::3]


def test_evaluations_outside_training_and_predictions_have_values(tmp_path: Path) -> None:
    model = classifier()
    trainer = RecordedTrainer(model, arguments(tmp_path), train_dataset=samples(24), eval_dataset=samples(8, seed=3))
    trainer.recording = True
    callback = ConeCallback(layers=[-1]).add_to(trainer)
    metrics = trainer.evaluate()
    assert_close(cone_of(metrics, "eval_"), layer_of(trainer.seen.evaluations[0]))
    assert_close(cone_of(trainer.state.log_history[-1], "eval_"), layer_of(trainer.seen.evaluations[0]))
    predicted = trainer.predict(samples(6, seed=4)).metrics
    assert_close(cone_of(predicted, "test_"), layer_of(trainer.seen.evaluations[1]))
    assert "forward" not in vars(model)
    trainer.train()
    assert_close(cone_of(trainer.evaluate(metric_key_prefix="after"), "after_"), layer_of(trainer.seen.evaluations[2]))
    loader = trainer.get_eval_dataloader()
    by_position = trainer.evaluation_loop(loader, "Evaluation", True, None, "own").metrics
    assert_close(cone_of(by_position, "own_"), layer_of(trainer.seen.evaluations[3]))
    assert callback.skipped == {}
    assert "forward" not in vars(model)


def layer_of(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith(f"cone/L{LAYERS}/")}


@pytest.mark.parametrize("how", ["add_to", "callbacks="])
def test_a_metric_of_ones_own_that_ends_like_a_duration(how: str, tmp_path: Path) -> None:
    def compute_metrics(prediction: Any) -> dict[str, float]:
        return {"model_runtime": 1.0, "accuracy": 0.5}

    callback = ConeCallback(every=1)
    trainer = RecordedTrainer(
        classifier(),
        arguments(tmp_path, max_steps=2, **EVALUATES),
        train_dataset=samples(8),
        eval_dataset=samples(8, seed=3),
        compute_metrics=compute_metrics,
        callbacks=[callback] if how == "callbacks=" else [],
    )
    trainer.recording = True
    if how == "add_to":
        callback.add_to(trainer)
    trainer.train()
    (log,) = (log for log in trainer.state.log_history if "eval_model_runtime" in log)
    assert_close(cone_of(log, "eval_"), trainer.seen.evaluations[0])
    assert not [name for name in log if "runtime_cone" in name or "model_cone" in name]


def test_what_goes_wrong_in_the_callback_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no value")

    monkeypatch.setattr("cone_kernels.integrations.watch.cone_scalars", fail)
    monkeypatch.setattr("cone_kernels.integrations.watch.StepMeans.add", fail)
    for strict in (False, True):
        callback = ConeCallback(every=1, strict=strict)
        trainer = Trainer(
            classifier(), arguments(tmp_path, **EVALUATES), train_dataset=samples(24), eval_dataset=samples(8)
        )
        callback.add_to(trainer)
        with pytest.raises(RuntimeError, match="no value") if strict else contextlib.nullcontext():
            trainer.train()
    assert caplog.text.count("no value") == 1
    with pytest.raises(AttributeError, match="no"):
        Trainer(
            classifier(), arguments(tmp_path), train_dataset=samples(8), callbacks=[ConeCallback(module="no.such")]
        ).train()
