"""What may happen in jobs of TRL's trainers, each run bare and watched, as in test_trainer_jobs.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback

trl = pytest.importorskip("trl")  # not in requirements/oldest.txt

from cone_kernels.integrations.trainer import ConeCallback  # noqa: E402
from tests.integrations.test_trainer_callback import cone_of  # noqa: E402
from tests.integrations.test_trainer_jobs import BEST, EVALUATES, KEEPS_THE_BEST, Recorded  # noqa: E402
from tests.support.step_values import step_values  # noqa: E402
from tests.support.tiny_checkpoints import word_tokenizer  # noqa: E402
from tests.support.tiny_models import PAD, VOCAB, tiny_batch, tiny_model  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class RecordedHere(Recorded):
    def plain(self) -> Any:
        """A copy without the forward that TRL puts into the model: that of a copy would run the model itself."""
        plain = copy.deepcopy(self.model)
        for module in plain.modules():
            module.__dict__.pop("forward", None)
        return plain

    def taken(self, inputs: Any) -> dict[str, Tensor]:
        """The sentences of a batch, padded; of a flattened one each begins where the positions begin."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if mask is not None:
            return {"input_ids": ids, "attention_mask": mask}
        begins = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
        rows = [ids[0, start:end] for start, end in zip(begins, [*begins[1:], ids.shape[1]], strict=True)]
        rows = [row for row in rows if row.tolist() != [PAD]]
        return {
            "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD),
            "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }


class RecordedSFT(RecordedHere, trl.SFTTrainer):
    pass


class RecordedDPO(RecordedHere, trl.DPOTrainer):
    pass


def tokens(n: int, most: int, seed: int) -> list[list[int]]:
    """Token ids of n texts of 3 to `most` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, most + 1, (n,), generator=generator).tolist()
    return [torch.randint(4, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def texts(n: int, seed: int) -> Dataset:
    return Dataset.from_dict({"input_ids": tokens(n, 9, seed)})


def words(n: int, most: int, seed: int) -> list[str]:
    return [" ".join(f"w{token}" for token in row) + " " for row in tokens(n, most, seed)]


def answers(n: int, seed: int) -> Dataset:
    return Dataset.from_dict({"prompt": words(n, 5, seed), "completion": words(n, 5, seed + 50)})


def preferences(n: int, seed: int) -> Dataset:
    chosen, rejected = words(n, 5, seed + 50), words(n, 7, seed + 70)
    return Dataset.from_dict({"prompt": words(n, 4, seed), "chosen": chosen, "rejected": rejected})


def decoder() -> nn.Module:
    return tiny_model("llama", model_class="LlamaForCausalLM")


def older_decoder() -> nn.Module:
    return tiny_model("gpt2", model_class="GPT2LMHeadModel", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


LORA = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def lora() -> dict[str, Any]:
    return {"peft_config": peft.LoraConfig(**LORA, init_lora_weights=False)}


def trained_before() -> nn.Module:
    """With an adapter already: TRL makes a copy of it the reference."""
    torch.manual_seed(0)
    return peft.get_peft_model(decoder(), peft.LoraConfig(**LORA, init_lora_weights=False))


class Average(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        copy.deepcopy(model).eval()(**tiny_batch(seed=3))


@dataclass
class Job:
    """A job that is run twice.

    Attributes:
        kind, config: the trainer and its arguments.
        data: n samples, given a seed.
        settings: of the arguments.
        model: makes the model.
        options: makes further arguments of the trainer.
        callbacks: further ones.
        counts: how many sentences each step has; none where the packing decides.
    """

    kind: Callable[..., Any]
    config: Callable[..., Any]
    data: Callable[[int, int], Dataset]
    settings: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module] = decoder
    options: Callable[[], dict[str, Any]] = dict
    callbacks: Sequence[TrainerCallback] = ()
    counts: int | None = 4


def sft(data: Callable[[int, int], Dataset] = texts, **options: Any) -> Job:
    return Job(RecordedSFT, trl.SFTConfig, data, **options)


def dpo(**options: Any) -> Job:
    return Job(RecordedDPO, trl.DPOConfig, preferences, **{"counts": 8, **options})


def with_reference() -> dict[str, Any]:
    return {"ref_model": decoder()}


FLAT = {"padding_free": True, "max_length": None}
JOBS: dict[str, Job] = {
    "SFT": sft(settings=EVALUATES),
    "SFT, completions": sft(answers, settings=EVALUATES),
    "SFT, padding-free": sft(settings=EVALUATES | FLAT),
    "SFT, padding-free in eights": sft(settings=EVALUATES | FLAT | {"pad_to_multiple_of": 8}),
    "SFT, packed": sft(settings=EVALUATES | {"packing": True, "max_length": 16}, counts=None),
    "SFT, packed across rows": sft(
        settings=EVALUATES | {"packing": True, "packing_strategy": "wrapped", "max_length": 16}
    ),
    "SFT, adapter": sft(settings=EVALUATES, options=lora),
    "SFT, GPT-2": sft(settings=EVALUATES, model=older_decoder),
    "SFT, moving average": sft(settings=EVALUATES, callbacks=[Average()]),
    "SFT, accumulation": sft(settings=EVALUATES | {"gradient_accumulation_steps": 2}, counts=8),
    "SFT, best checkpoint": sft(settings=KEEPS_THE_BEST),
    "DPO": dpo(settings=EVALUATES, options=with_reference),
    "DPO, adapter": dpo(settings=EVALUATES, options=lora),
    "DPO, adapter of before": dpo(settings=EVALUATES, model=trained_before),
    "DPO, reference computed before": dpo(settings=EVALUATES | {"precompute_ref_log_probs": True}, options=lora),
    "DPO, without checkpointing": dpo(settings=EVALUATES | {"gradient_checkpointing": False}, options=lora),
}


SLOW = {
    "SFT",
    "SFT, padding-free",
    "SFT, packed across rows",
    "SFT, GPT-2",
    "SFT, accumulation",
    "DPO",
    "DPO, reference computed before",
    "DPO, without checkpointing",
}


@dataclass
class Ran:
    losses: list[float]
    weights: dict[str, Tensor]
    trainer: Any
    callback: ConeCallback | None


def run(job: Job, folder: Path, how: str) -> Ran:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        **job.settings,
    }
    if how == "bare" and settings.get("metric_for_best_model") == BEST:
        settings |= {"load_best_model_at_end": False, "metric_for_best_model": None}
    callback = None if how == "bare" else ConeCallback(every=1)
    trainer = job.kind(
        job.model(),
        args=job.config(str(folder), **settings),
        # Enough for four steps of four, also of rows that several texts are packed into; and two batches.
        train_dataset=job.data(64, 1),
        eval_dataset=job.data(10, 2),  # the last batch is of two samples, which some jobs make four rows of
        processing_class=word_tokenizer(special=False),
        callbacks=[*job.callbacks, *([callback] if how == "callbacks=" else [])],
        **job.options(),
    )
    trainer.recording = callback is not None
    if how == "add_to":
        callback.add_to(trainer)  # type: ignore[union-attr]
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return Ran(losses, {name: value.clone() for name, value in trainer.model.state_dict().items()}, trainer, callback)


@pytest.mark.parametrize("how", ["add_to", pytest.param("callbacks=", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in JOBS]
)
def test_a_job_is_what_it_is_without_the_watch(name: str, how: str, tmp_path: Path) -> None:
    job = JOBS[name]
    bare, watched = run(job, tmp_path / "bare", "bare"), run(job, tmp_path / "watched", how)
    chosen = job.settings.get("metric_for_best_model") == BEST
    assert watched.losses == bare.losses
    if not chosen:
        assert all(torch.equal(value, bare.weights[key]) for key, value in watched.weights.items())
    assert watched.callback is not None
    assert watched.callback.skipped == {}

    history, seen = watched.trainer.state.log_history, watched.trainer.seen
    assert sorted(seen.steps) == [0, 1, 2, 3]
    assert job.counts is None or {len(step) for step in seen.steps.values()} == {job.counts}
    logs = [log for log in history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        wanted = step_values([seen.steps[step] for step in (log["step"] - 2, log["step"] - 1)])
        assert cone_of(log) == pytest.approx(wanted, abs=1e-6)
    evaluations = [log for log in history if "eval_loss" in log]
    assert len(evaluations) == len(seen.evaluations) == 2
    for log, wanted in zip(evaluations, seen.evaluations, strict=True):
        assert cone_of(log, "eval_") == pytest.approx(wanted, abs=1e-6)
    if chosen:
        assert watched.trainer.state.best_metric == min(log[f"eval_{BEST}"] for log in evaluations)
