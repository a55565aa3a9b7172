"""ConeEvaluator under sentence-transformers: alone, in its trainer, on flattened inputs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.evaluation import SequentialEvaluator
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MSELoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import DataCollatorWithFlattening

from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.sentence_transformers_evaluator import ConeEvaluator
from cone_kernels.probe.cone_probe import ConeProbe
from tests.support.recording_probe import probed
from tests.support.tiny_checkpoints import WORDS, save_checkpoint
from tests.support.tiny_models import LAYERS

pytestmark = pytest.mark.usefixtures("one_thread")


def words(n: int, seed: int = 0) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 9, (n,), generator=generator).tolist()
    picks = [torch.randint(0, len(WORDS), (size,), generator=generator).tolist() for size in sizes]
    return [" ".join(WORDS[pick] for pick in row) for row in picks]


def sentence_transformer(folder: Path, architecture: str = "bert") -> SentenceTransformer:
    save_checkpoint(folder, architecture)
    return around_transformer(folder)


def around_transformer(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu")


def scalars_by_hand(model: SentenceTransformer, sentences: list[str], **options: Any) -> dict[str, float]:
    batch = model[0].tokenizer(sentences, padding=True, return_tensors="pt", return_token_type_ids=False)
    return cone_scalars(probed(model[0].auto_model.eval(), dict(batch)), **options)


def values_of(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "stderr" not in name}


def test_metrics_primary_metric_and_csv(tmp_path: Path) -> None:
    model = sentence_transformer(tmp_path / "model")
    evaluator = ConeEvaluator(words(20), name="dev", token=True, pooling_gap=True, batch_size=6)
    assert evaluator.greater_is_better is False
    for epoch in (1, 2):
        metrics = evaluator(model, str(tmp_path), epoch=epoch, steps=10 * epoch)
    wanted = scalars_by_hand(model, words(20), token=True, pooling_gap=True)
    # encode sorts sentences by length, so the groups of the standard errors are others.
    assert values_of(metrics) == pytest.approx({f"dev_{k}": v for k, v in values_of(wanted).items()}, abs=1e-6)
    assert evaluator.primary_metric == f"dev_cone/L{LAYERS}/anisotropy"
    with open(tmp_path / "cone_evaluation_dev_results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["steps"]) for row in rows] == [("1", "10"), ("2", "20")]
    assert {name: float(rows[1][name]) for name in wanted} == {k: metrics[f"dev_{k}"] for k in wanted}
    assert "forward" not in model[0].auto_model.__dict__
    assert "Cone" in evaluator.description


def test_sequential_evaluator_takes_the_primary_metric(tmp_path: Path) -> None:
    model = sentence_transformer(tmp_path / "model")
    evaluators = [ConeEvaluator(words(8, seed), name=f"e{seed}", primary_layer=seed) for seed in (1, 2)]
    metrics = SequentialEvaluator(evaluators, main_score_function=max)(model)
    wanted = [scalars_by_hand(model, words(8, seed))[f"cone/L{seed}/anisotropy"] for seed in (1, 2)]
    assert metrics["sequential_score"] == pytest.approx(max(wanted), abs=1e-6)


def arguments(folder: Path, **settings: Any) -> SentenceTransformerTrainingArguments:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return SentenceTransformerTrainingArguments(str(folder), **(options | settings))


def test_chooses_the_best_checkpoint_in_the_trainer(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")  # the trainer takes nothing else
    model = sentence_transformer(tmp_path / "model")
    name = f"dev_cone/L{LAYERS}/anisotropy"
    trainer = SentenceTransformerTrainer(
        model,
        arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model=f"eval_{name}", greater_is_better=False),
        train_dataset=datasets.Dataset.from_dict({"sentence": words(32), "label": torch.zeros(32, 32).tolist()}),
        loss=MSELoss(model),
        evaluator=ConeEvaluator(words(12, 5), name="dev"),
    )
    trainer.train()
    curve = {log["step"]: log[f"eval_{name}"] for log in trainer.state.log_history if f"eval_{name}" in log}
    assert list(curve) == [2, 4]
    assert trainer.state.best_metric == min(curve.values())
    # The best weights are loaded: another evaluation gives the best value again.
    assert trainer.evaluator(trainer.model)[name] == pytest.approx(min(curve.values()), abs=1e-6)


def test_losses_that_run_each_batch_twice_are_counted_once(tmp_path: Path) -> None:
    # Without gradients first, and again within the backward pass.
    model = sentence_transformer(tmp_path / "model").train()
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=4)
    columns = words(16), words(16, 1)
    with ConeProbe(model[0].auto_model) as probe:
        loss([model.preprocess(column) for column in columns], None).backward()
    assert probe.n_sentences == 32
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_flattened_inputs_give_what_padded_ones_give(tmp_path: Path) -> None:
    # sentence-transformers flattens where flash attention is there. Llama's mask for plain attention keeps the
    # sentences of one row apart too, so that its flattening can be turned on here by hand.
    model = sentence_transformer(tmp_path / "model", "llama")
    model[0].auto_model.config.use_cache = False  # with one, transformers 5.8 makes a mask for one sentence
    # The library orders flattened sentences in another way: of so few each is a jackknife group of its own.
    padded = ConeEvaluator(words(16))(model)
    transformer = model[0]
    transformer.data_collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
    transformer._flatten_position_offset = transformer._infer_flatten_position_offset()
    transformer.can_flatten_inputs = True
    shapes = []
    hook = transformer.auto_model.embed_tokens.register_forward_hook(lambda m, args, out: shapes.append(out.shape))
    flattened = ConeEvaluator(words(16))(model)
    hook.remove()
    assert all(shape[0] == 1 for shape in shapes)
    assert flattened == pytest.approx(padded, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sentences": ["one"]}, "sentences: got 1; it must be two"),
        ({"sentences": words(3), "layers": [1], "primary_layer": 2}, "primary_layer: got 2"),
    ],
)
def test_arguments_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConeEvaluator(**settings)
