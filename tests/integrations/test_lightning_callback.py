"""The Lightning callback in both packages that carry Lightning, against a probe on the same batches by hand."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from cone_kernels.integrations.lightning import ConeCallback
from cone_kernels.integrations.scalars import cone_scalars
from tests.support.gloo_ranks import run_ranks
from tests.support.recording_probe import probed
from tests.support.step_values import Sentence, sentences_of, step_values
from tests.support.tiny_models import LAYERS, tiny_batch, tiny_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available"),
]

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def rows(n: int, seed: int) -> list[dict[str, Tensor]]:
    batch = tiny_batch(sentences=n, seed=seed)
    return [{name: value[row] for name, value in batch.items()} for row in range(n)]


def batches(data: list[dict[str, Tensor]], size: int = 4) -> list[dict[str, Tensor]]:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [{name: torch.stack([row[name] for row in part]) for name in part[0]} for part in parts]


def module(package: ModuleType, learning_rate: float = 0.0) -> Any:
    class Encoder(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model: nn.Module = tiny_model("bert", **NO_DROPOUT)
            self.head = nn.Linear(32, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            output = self.model(**batch)
            return self.head(output.last_hidden_state).square().mean() + output.pooler_output.square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=learning_rate)

    return Encoder()


def trainer(package: ModuleType, folder: Path, *callbacks: Any, **settings: Any) -> Any:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 6,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 1,
        "logger": package.loggers.CSVLogger(str(folder), name="", version=""),
    }
    return package.Trainer(default_root_dir=str(folder), callbacks=list(callbacks), **(options | settings))


def loaders(n_training: int = 48, n_validation: int = 10) -> tuple[Any, Any]:
    sets = rows(n_training, 1), rows(n_validation, 7)
    return tuple(torch.utils.data.DataLoader(data, batch_size=4) for data in sets)  # type: ignore[return-value]


def logged(folder: Path, name: str) -> dict[int, float]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=lambda package: package.__name__)
@pytest.mark.parametrize(("every", "accumulation"), [(1, 1), (2, 1), (1, 2)])
def test_training_and_validation_values(package: ModuleType, every: int, accumulation: int, tmp_path: Path) -> None:
    encoder = module(package)
    options = {"layers": [0, LAYERS], "token": True, "pooling_gap": True}
    settings = {"accumulate_grad_batches": accumulation, "val_check_interval": 6 * accumulation, "max_steps": 6}
    fit = trainer(package, tmp_path, ConeCallback(every=every, **options), **settings)
    training, validation = loaders()
    fit.fit(encoder, training, validation)

    model, data = encoder.model.eval(), batches(rows(48, 1))
    # Lightning numbers a log by the step before it is counted.
    for at in (1, 3, 5):
        steps: list[list[Sentence]] = []
        for step in (at - 1, at):
            parts = data[step * accumulation : (step + 1) * accumulation]
            if step % every == 0:
                steps.append([sentence for part in parts for sentence in sentences_of(model, part)])
        for name, value in step_values(steps, **options).items():
            values = logged(tmp_path, name)
            assert sorted(values) == [1, 3, 5]
            assert values[at] == pytest.approx(value, abs=1e-6), name
    for name, value in cone_scalars(probed(model, *batches(rows(10, 7))), **options).items():
        assert list(logged(tmp_path, f"val_{name}").values()) == pytest.approx([value], abs=1e-6)
    assert "forward" not in model.__dict__


def test_model_checkpoint_monitors_it(tmp_path: Path) -> None:
    package = lightning.pytorch
    monitor = f"val_cone/L{LAYERS}/anisotropy"
    checkpoint = package.callbacks.ModelCheckpoint(tmp_path, monitor=monitor, mode="min", filename="best")
    encoder = module(package, learning_rate=0.5)
    settings = {"enable_checkpointing": True, "val_check_interval": 2}
    fit = trainer(package, tmp_path, ConeCallback(), checkpoint, **settings)
    training, validation = loaders(24)
    fit.fit(encoder, training, validation)
    values = logged(tmp_path, monitor)
    assert len(values) == 3
    assert float(checkpoint.best_model_score) == pytest.approx(min(values.values()), abs=1e-6)
    weights = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    encoder.load_state_dict(weights)
    wanted = cone_scalars(probed(encoder.model.eval(), *batches(rows(10, 7))))
    assert min(values.values()) == pytest.approx(wanted[monitor.removeprefix("val_")], abs=1e-6)


def test_validate_alone_and_after_an_error(tmp_path: Path) -> None:
    package = lightning.pytorch
    encoder = module(package)
    callback = ConeCallback(layers=[1])
    broken = torch.utils.data.DataLoader([{"input_ids": torch.full((3,), 10_000)}] * 4, batch_size=4)
    with pytest.raises(IndexError, match="index out of range"):
        trainer(package, tmp_path, callback).fit(encoder, broken)
    assert "forward" not in encoder.model.__dict__
    (metrics,) = trainer(package, tmp_path, callback).validate(encoder, loaders()[1], verbose=False)
    wanted = cone_scalars(probed(encoder.model.eval(), *batches(rows(10, 7))), layers=[1])
    assert metrics["val_cone/L1/anisotropy"] == pytest.approx(wanted["cone/L1/anisotropy"], abs=1e-6)
    assert "forward" not in encoder.model.__dict__


def test_no_such_module(tmp_path: Path) -> None:
    package = lightning.pytorch
    with pytest.raises(AttributeError, match="encoder"):
        trainer(package, tmp_path, ConeCallback("encoder")).fit(module(package), loaders()[0])


def fitted_on_ranks(folder: str) -> dict[str, dict[int, float]]:
    package = lightning.pytorch
    path = Path(folder)
    settings = {"devices": 2, "strategy": "ddp", "max_steps": 2, "num_sanity_val_steps": 0, "val_check_interval": 2}
    fit = trainer(package, path, ConeCallback(every=1), **settings)
    assert fit.world_size == 2
    fit.fit(module(package), *loaders(16, 11))
    names = [f"cone/L{layer}/anisotropy" for layer in range(LAYERS + 1)]
    fit.strategy.barrier()
    return {name: logged(path, name) for prefix in ("", "val_") for name in (f"{prefix}{name}" for name in names)}


@pytest.mark.filterwarnings("ignore:.*")
def test_values_are_those_of_all_ranks_and_of_each_sample_once(tmp_path: Path) -> None:
    # Eleven validation samples for two ranks: one is repeated.
    model = tiny_model("bert", **NO_DROPOUT)
    # Lightning shuffles what it trains on, by its seed of 0, and deals it out to the ranks in turn.
    samplers = [DistributedSampler(range(16), 2, rank, shuffle=True) for rank in range(2)]  # type: ignore[arg-type]
    orders, data = [list(sampler) for sampler in samplers], rows(16, 1)
    steps = [[data[row] for order in orders for row in order[at : at + 4]] for at in (0, 4)]
    training = step_values([sentences_of(model, batch) for step in steps for batch in batches(step, 8)])
    validation = cone_scalars(probed(model, *batches(rows(11, 7))))
    values = run_ranks(fitted_on_ranks, 2, str(tmp_path))[0]
    for layer in range(LAYERS + 1):
        name = f"cone/L{layer}/anisotropy"
        assert list(values[name].values()) == pytest.approx([training[name]], abs=1e-6)
        assert list(values[f"val_{name}"].values()) == pytest.approx([validation[name]], abs=1e-6)
