"""What the package does inside training jobs and other libraries: probe, loss, callbacks, metric, evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.product.case import Case, Place
from bench.gpu.product.differences import Tolerance
from cone_kernels import (
    Centering,
    ConeProbe,
    alignment_loss,
    isoscore_loss,
    isotropy_loss,
    metrics,
    uniformity_loss,
)
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.names import METHODS
from cone_kernels.runs.measure import measure

BATCH, STEPS = 16, 4
# A gradient that has come through all layers, as a share of its largest entry.
_GRADIENT = Tolerance(1e-3, 1e-2)


def integration_cases() -> list[Case]:
    """Each integration."""
    return [
        Case("Trainer callback", _trainer, needs=("accelerate",)),
        Case("Lightning callback", _lightning, needs=("lightning",)),
        Case("sentence-transformers evaluator", _evaluator, needs=("sentence_transformers",)),
        Case("sentence-transformers centering module", _centering_module, needs=("sentence_transformers",)),
        Case("torchmetrics metric", _metric, needs=("torchmetrics",)),
        *(Case(f"{loss} loss and its gradient", _loss(loss), tolerance=_GRADIENT) for loss in _LOSSES),
        *(Case(f"ConeProbe, padded on the {side}", _probe(side, masks=None)) for side in ("left", "right")),
        *(
            Case(f"ConeProbe, masks on {where}", _probe("right", masks=where), _probe("right", masks="the CPU"))
            for where in ("the CPU", "the model's device")
        ),
    ]


def _texts(place: Place, count: int) -> list[str]:
    return place.corpus.read_text(encoding="utf-8").splitlines()[:count]


def _batches(place: Place, loaded: LoadedModel, side: str = "right", count: int = STEPS) -> Iterator[dict[str, Tensor]]:
    """Padded batches on the CPU, each with the tokens that the tokenizer adds."""
    loaded.tokenizer.padding_side = side
    texts = _texts(place, BATCH * count)
    for at in range(0, len(texts), BATCH):
        options = {"padding": True, "return_tensors": "pt", "return_special_tokens_mask": True}
        encoded = loaded.tokenizer(texts[at : at + BATCH], **options)
        yield {name: encoded[name] for name in ("input_ids", "attention_mask", "special_tokens_mask")}


def _probe(side: str, masks: str | None) -> Any:
    """A probe with all poolings and second moments; `masks`: where those lie that are given to `next_batch`."""

    def results(place: Place, device: str) -> Any:
        loaded = load_model(str(place.models[0]), device=device)
        where = torch.device(device if masks == "the model's device" else "cpu")
        with ConeProbe(loaded.model, second_moment=True, poolings="all") as probe, torch.inference_mode():
            for batch in _batches(place, loaded, side):
                special = batch.pop("special_tokens_mask").to(where)
                given = {} if masks is None else {"mask": batch["attention_mask"].to(where)}
                probe.next_batch(special=special, **given)
                loaded.model(**{name: value.to(device) for name, value in batch.items()})
        state = probe.state
        levels = {"sentence": state.sentence, "token": state.token, **state.poolings}
        figures = {name: metrics.anisotropy(level) for name, level in levels.items()}
        return figures | {"covariance": metrics.covariance(state.sentence)}

    return results


def _loss(name: str) -> Any:
    """The loss over all layers, and its gradient in all weights, one after the other."""

    def results(place: Place, device: str) -> Any:
        loaded = load_model(str(place.models[0]), device=device)
        batch = next(_batches(place, loaded))
        del batch["special_tokens_mask"]
        inputs = {name: value.to(device) for name, value in batch.items()}
        hidden = loaded.model(**inputs, output_hidden_states=True).hidden_states
        value = _LOSSES[name](hidden, inputs["attention_mask"], layers=range(len(hidden)))
        value.backward()
        gradients = [weight.grad.flatten().cpu() for weight in loaded.model.parameters() if weight.grad is not None]
        return {"loss": value.item(), "gradient": torch.cat(gradients)}

    return results


def _alignment(hidden: Any, mask: Tensor, **options: Any) -> Tensor:
    """That of each sentence and the next one."""
    first = torch.arange(len(mask) - 1, device=mask.device)
    return alignment_loss(hidden, mask, pairs=torch.stack([first, first + 1], 1), **options)


_LOSSES = {
    "isotropy": isotropy_loss,
    "IsoScore": isoscore_loss,
    "uniformity": uniformity_loss,
    "alignment": _alignment,
}


def _metric(place: Place, device: str) -> Any:
    from cone_kernels.integrations.torchmetrics import MeanPairwiseCosine

    rows = torch.randn(4, 100, 64, generator=torch.Generator().manual_seed(0)) + 0.3
    metric = MeanPairwiseCosine(dim=64).to(device)
    for block in rows.to(device):
        metric.update(block)
    return {"value": float(metric.compute()), "stderr": float(metric.stderr())}


def _sentence_transformer(place: Place, device: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    transformer = Transformer(str(place.models[0]))
    return SentenceTransformer(modules=[transformer, Pooling(_width(transformer.auto_model))], device=device)


def _width(model: nn.Module) -> int:
    return int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]


def _evaluator(place: Place, device: str) -> Any:
    from cone_kernels.integrations.sentence_transformers_evaluator import ConeEvaluator

    evaluator = ConeEvaluator(_texts(place, 100), token=True, pooling_gap=True, name="dev")
    return evaluator(_sentence_transformer(place, device))


def _centering_module(place: Place, device: str) -> Any:
    """What `encode` gives after a centering by each method, which was fitted on the same device."""
    from cone_kernels.integrations.sentence_transformers import CenteringModule

    texts = _texts(place, 200)
    model, found = _sentence_transformer(place, device), {}
    state = measure(load_model(str(place.models[0]), device=device), texts, second_moment=True).state
    for method in METHODS:
        model.append(CenteringModule(Centering.fit(state, method=method)).to(device))
        found[method] = model.encode(texts[:20], convert_to_tensor=True)
        del model[-1]
    return found


def _classifier(place: Place) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    folder = str(place.models[0])
    model: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    return model


def _samples(place: Place) -> list[dict[str, Tensor]]:
    """Sentences of training, padded alike, with labels."""
    loaded = load_model(str(place.models[0]), device="cpu")
    texts = _texts(place, BATCH * STEPS)
    encoded = loaded.tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")
    rows = zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    labels = [torch.tensor(index % 2) for index in range(len(texts))]
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for (ids, mask), label in zip(rows, labels, strict=True)
    ]


def _trainer(place: Place, device: str) -> Any:
    """The logs of a training at a learning rate of 0, and of its evaluation."""
    from transformers import Trainer, TrainingArguments

    from cone_kernels.integrations.trainer import ConeCallback

    options: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "seed": 0}
    arguments = TrainingArguments(
        str(place.scratch),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        logging_steps=STEPS,
        eval_strategy="steps",
        learning_rate=0.0,
        use_cpu=device == "cpu",
        **options,
    )
    data = _samples(place)
    trainer = Trainer(_classifier(place), arguments, train_dataset=data, eval_dataset=data)
    ConeCallback(every=1, token=True).add_to(trainer)
    trainer.train()
    return _of_the_cone({name: value for log in trainer.state.log_history for name, value in log.items()})


def _lightning(place: Place, device: str) -> Any:
    import lightning.pytorch

    from cone_kernels.integrations.lightning import ConeCallback

    class Classifier(lightning.pytorch.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = _classifier(place)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.model(**batch).loss
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        max_steps=STEPS,
        log_every_n_steps=STEPS,
        logger=False,
        callbacks=[ConeCallback("model", every=1, token=True)],
        default_root_dir=str(place.scratch),
        **options,
    )
    loader = torch.utils.data.DataLoader(_samples(place), batch_size=BATCH)
    trainer.fit(Classifier(), loader, loader)
    return _of_the_cone({name: float(value) for name, value in trainer.callback_metrics.items()})


def _of_the_cone(logged: dict[str, Any]) -> dict[str, float]:
    """What a callback has logged.

    Raises:
        ValueError: that is nothing of an evaluation, or nothing of training.
    """
    found = {name: value for name, value in logged.items() if "cone/" in name}
    prefixes = {name.partition("cone/")[0] for name in found}
    if len(prefixes) != 2:
        raise ValueError(f"logged: got {sorted(logged)}; it must have cone/ of training and of an evaluation")
    return found
