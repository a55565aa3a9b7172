"""A fixed set of texts measured while a model is trained, its changes, hooks and alerts, against plain torch."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from cone_kernels import ConeState, metrics
from cone_kernels.integrations.alerts import Alert, Alerts
from cone_kernels.integrations.held_out import HeldOut
from cone_kernels.integrations.lightning import ConeCallback as LightningCallback
from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.trainer import ConeCallback
from cone_kernels.integrations.watch import ConeWatch
from tests.integrations.test_lightning_callback import logged, module, trainer
from tests.integrations.test_lightning_jobs import loader
from tests.integrations.test_sentence_transformers_evaluator import words
from tests.integrations.test_sentence_transformers_jobs import trainer_of
from tests.integrations.test_trainer_callback import Recorder, arguments, samples
from tests.support.recording_probe import plain_anisotropy
from tests.support.step_values import sentences_of
from tests.support.tiny_checkpoints import save_checkpoint, word_tokenizer
from tests.support.tiny_models import LAYERS, ToyModel, tiny_model

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*")]

TEXTS = words(16, 5)  # each is a jackknife group of its own
EVALUATES = {"eval_strategy": "steps", "eval_steps": 5}
NAME = f"probe_cone/L{LAYERS}/anisotropy"


def dropping() -> nn.Module:
    """A classifier that drops at random, with a part that is frozen in evaluation mode."""
    model = tiny_model("bert", model_class="BertForSequenceClassification").train()
    model.bert.encoder.layer[0].eval()  # type: ignore[union-attr]
    return model


def vectors(model: Any) -> Tensor:
    """(16, d): the means of the texts' tokens in the last layer."""
    batch = word_tokenizer()(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    model = copy.deepcopy(model)
    return torch.stack([sentence[LAYERS].mean(0) for sentence in sentences_of(model, dict(batch))])


def error_of(left_out: Tensor) -> float:
    return math.sqrt((len(left_out) - 1) / len(left_out) * float((left_out - left_out.mean()).square().sum()))


def without_each(rows: Tensor) -> Tensor:
    kept = [torch.arange(len(rows)) != row for row in range(len(rows))]
    return torch.tensor([plain_anisotropy(rows[keep]) for keep in kept], dtype=torch.float64)


def assert_measured(values: dict[str, float], now: Tensor, before: Tensor) -> None:
    left_out = without_each(now), without_each(before)
    anisotropy = plain_anisotropy(now)
    assert values[NAME] == pytest.approx(anisotropy, abs=1e-6)
    assert values[f"{NAME}_stderr"] == pytest.approx(error_of(left_out[0]), abs=1e-6)
    assert values[f"{NAME}_change"] == pytest.approx(anisotropy - plain_anisotropy(before), abs=1e-6)
    assert values[f"{NAME}_change_stderr"] == pytest.approx(error_of(left_out[0] - left_out[1]), abs=1e-6)


class Weights(TrainerCallback):
    """Copies of the model by the number of steps made, and the modes of its parts."""

    def __init__(self) -> None:
        self.models: dict[int, Any] = {}
        self.modes: list[list[bool]] = []

    def copy(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.models[state.global_step] = copy.deepcopy(model)
        self.modes.append([part.training for part in model.modules()])

    on_train_begin = on_step_end = copy


@pytest.mark.parametrize("how", ["add_to", "callbacks="])
def test_trainer(how: str, tmp_path: Path) -> None:
    found: list[tuple[str, ConeState]] = []
    options: dict[str, Any] = {
        "every": 2, "layers": [-1], "probe_texts": TEXTS, "probe_every": 2, "tokenizer": word_tokenizer(),
        "on_state": lambda name, state: found.append((name, state)), "second_moment": True,
    }  # fmt: skip
    losses, weights, modes, history = [], [], [], []
    for watched in (False, True):
        torch.manual_seed(0)
        model, copies, recorder = dropping(), Weights(), Recorder()
        settings = {"learning_rate": 1e-2, "max_steps": 5, "logging_steps": 1, **EVALUATES}
        callback = ConeCallback(**options)
        given = [callback] if watched and how == "callbacks=" else []
        job = Trainer(
            model, arguments(tmp_path, **settings), train_dataset=samples(24), eval_dataset=samples(8, seed=3),
            callbacks=[copies, *given, recorder],
        )  # fmt: skip
        if watched and how == "add_to":
            callback.add_to(job)
        job.train()
        history = job.state.log_history
        losses.append([log["loss"] for log in history if "loss" in log])
        weights.append(model.state_dict())
        modes.append(copies.modes)
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert modes[0] == modes[1]
    assert callback.skipped == {}
    measured = {log["step"]: log for log in history if NAME in log}
    assert list(measured) == [0, 2, 4]
    assert not any("loss" in log for log in measured.values())
    for step, values in measured.items():
        assert_measured(values, vectors(copies.models[step]), vectors(copies.models[0]))
        assert values[f"{NAME.removesuffix('anisotropy')}rank_me"] > 1
    assert sum(NAME in log for log in recorder.logs) == (3 if how == "add_to" else 0)
    # The states: of each watched step, of the texts, and of the evaluation.
    assert [name for name, _ in found] == ["probe", "train", "probe", "train", "probe", "train", "eval"]
    assert callback.states == {"eval": found[6][1], "probe": found[4][1]}
    assert [int(state.sentence.count.sum()) for name, state in found] == [16, 4, 16, 4, 16, 4, 8]
    assert f"eval_cone/L{LAYERS}/rank_me" in next(log for log in history if "eval_loss" in log)
    assert float(metrics.anisotropy(found[0][1].sentence)) == pytest.approx(measured[0][NAME], abs=1e-12)


def test_sentence_transformers(tmp_path: Path) -> None:
    settings = {"save_strategy": "no", "max_steps": 2}
    save_checkpoint(tmp_path / "model")
    bare, watched = (
        trainer_of(tmp_path / "model", tmp_path / name, "bare", **settings) for name in ("bare", "watched")
    )
    callback = ConeCallback(every=1, probe_texts=TEXTS, probe_every=1).add_to(watched)  # with the model's tokenizer
    copies = Weights()
    watched.add_callback(copies)
    for one in (bare, watched):
        one.train()
    losses = [[log["loss"] for log in one.state.log_history if "loss" in log] for one in (bare, watched)]
    assert losses[0] == losses[1]
    measured = [log for log in watched.state.log_history if NAME in log]
    assert [log["step"] for log in measured] == [0, 1, 2]
    plain = {step: vectors(model[0].auto_model) for step, model in copies.models.items()}
    for log in measured:
        assert_measured(log, plain[log["step"]], plain[0])
    assert callback.skipped == {}


def test_lightning(tmp_path: Path) -> None:
    package = lightning.pytorch
    copies: list[Any] = []

    class Module(type(module(package))):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.02)

        def on_train_start(self) -> None:
            copies.append(copy.deepcopy(self.model))

        def on_train_batch_end(self, *args: Any) -> None:
            copies.append(copy.deepcopy(self.model))

    weights = []
    for watched in (False, True):
        torch.manual_seed(0)
        copies.clear()
        encoder = Module()
        encoder.model.train()
        encoder.tokenizer = word_tokenizer()
        callback = LightningCallback(every=1, layers=[-1], probe_texts=TEXTS, probe_every=2)
        fit = trainer(package, tmp_path / str(watched), *([callback] if watched else []), max_steps=4)
        fit.fit(encoder, loader(16, 1))
        weights.append(encoder.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert callback.skipped == {}
    assert fit.callback_metrics[NAME] == pytest.approx(plain_anisotropy(vectors(copies[4])), abs=1e-6)
    names = (NAME, f"{NAME}_stderr", f"{NAME}_change", f"{NAME}_change_stderr")
    columns = {name: logged(tmp_path / "True", name) for name in names}
    assert list(columns[NAME]) == [0, 2, 4]
    for step in (0, 2, 4):
        values = {name: column[step] for name, column in columns.items()}
        assert_measured(values, vectors(copies[step]), vectors(copies[0]))
    assert set(callback.states) == {"probe"}


def test_an_alert_stops_training_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {"probe_texts": TEXTS, "probe_every": 1, "tokenizer": word_tokenizer(), "reference": None}
    stop = Alert("probe_cone/L1/anisotropy", above=-2.0, stop=True)
    job = Trainer(dropping(), arguments(tmp_path), train_dataset=samples(24))
    ConeCallback(every=1, alerts=[stop], **texts).add_to(job)  # type: ignore[arg-type]
    job.train()
    assert job.state.global_step == 1
    assert caplog.text.count("above -2 by more than 2 standard errors; the training is stopped") == 1
    evaluated = Trainer(
        dropping(), arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=samples(24), eval_dataset=samples(8),
    )  # fmt: skip
    ConeCallback(alerts=[Alert("eval_cone/L1/anisotropy", below=2.0, stop=True)]).add_to(evaluated)
    evaluated.train()
    assert evaluated.state.global_step == 2
    fit = trainer(lightning.pytorch, tmp_path, LightningCallback(alerts=[stop], **texts), max_steps=4)
    encoder = module(lightning.pytorch)
    encoder.tokenizer = word_tokenizer()
    fit.fit(encoder, loader(16, 1))
    assert fit.global_step == 0  # the texts are beyond the bound before the first step


def test_alerts_are_crossed_beyond_their_error_alone(caplog: pytest.LogCaptureFixture) -> None:
    alerts = Alerts([Alert("a", above=0.9, errors=3.0, stop=True), Alert("b", below=0.1)])
    values = [(0.95, 0.02), (0.95, 0.01), (0.96, 0.01), (0.80, 0.01), (0.95, math.nan), (0.95, 0.01)]
    stops = [alerts.stops({"a": value, "a_stderr": error}, step) for step, (value, error) in enumerate(values)]
    assert stops == [False, True, True, False, False, True]
    assert [record.getMessage()[:6] for record in caplog.records] == ["step 1", "step 5"]  # said once while crossed
    assert not alerts.stops({"b": 0.05, "b_stderr": 0.01}, 6)
    assert caplog.messages[1:] == [
        "step 5: a is 0.9500 ± 0.0100 (standard error), above 0.9 by more than 3 standard errors; the training is "
        "stopped",
        "step 6: b is 0.0500 ± 0.0100 (standard error), below 0.1 by more than 2 standard errors",
    ]
    # Neither where its errors just reach the bound, nor on the other side.
    assert [Alert("a", above=0.5).crossed(value, 0.25) for value in (0.0, 1.0, 1.125)] == [False, False, True]
    assert [Alert("a", below=0.5).crossed(value, 0.25) for value in (1.0, 0.0, -0.125)] == [False, False, True]
    assert Alert("a", above=0.5, errors=0.0).crossed(0.625, 0.25)
    both = Alerts([Alert("a", above=0.9, stop=True), Alert("b", above=0.0)])  # one that stops is enough
    assert both.stops({"a": 0.95, "a_stderr": 0.01, "b": 0.05, "b_stderr": 0.01}, 0)
    with pytest.raises(ValueError, match="alerts: got b; it must be a value that is logged with a standard error"):
        alerts.stops({"b": 0.05}, 7)
    wrong: list[tuple[dict[str, float], str]] = [
        ({}, "above, below: got neither for a; exactly one of them must be given"),
        ({"above": 1.0, "below": 0.0}, "above, below: got both for a; exactly one of them must be given"),
        ({"above": math.inf}, "above, below: got inf for a; it must be finite"),
        ({"below": math.nan}, "above, below: got nan for a; it must be finite"),
        ({"above": 0.0, "errors": -1.0}, "errors: got -1.0 for a; it must be 0 or more"),
        ({"above": 0.0, "errors": math.inf}, "errors: got inf for a; it must be 0 or more"),
    ]
    for options, said in wrong:
        with pytest.raises(ValueError, match=f"^{said}$"):
            Alert("a", **options)
    with pytest.raises(TypeError, match="alerts: got str"):
        ConeWatch(alerts=["a"])  # type: ignore[list-item]


def test_a_saved_state_of_the_same_texts_is_the_reference(tmp_path: Path) -> None:
    before, after = tiny_model("bert"), tiny_model("bert", seed=1)
    saved = HeldOut(TEXTS, word_tokenizer()).measure(before)
    saved.save(tmp_path / "before.safetensors")
    for reference in (saved, tmp_path / "before.safetensors"):
        held_out = HeldOut(TEXTS, word_tokenizer(), reference, probe_options={"layers": [-1]})
        values = {f"probe_{name}": value for name, value in held_out.scalars_of(held_out.measure(after)).items()}
        assert_measured(values, vectors(after), vectors(before))
        # Of tokens and of the gap nothing is told that was not asked for.
        assert set(values) == {f"{NAME}{end}" for end in ("", "_stderr", "_change", "_change_stderr")}
    fewer = HeldOut(TEXTS[:8], word_tokenizer(), saved)
    with pytest.raises(ValueError, match="reference: got a state with other numbers of sentences"):
        fewer.scalars_of(fewer.measure(after))
    one = HeldOut(TEXTS, word_tokenizer(), probe_options={"layers": [1]}).measure(before)
    other = HeldOut(TEXTS, word_tokenizer(), one)
    with pytest.raises(ValueError, match=r"reference: got a state of layers \(1,\); it must have layers \[0, 2, 3\]"):
        other.scalars_of(other.measure(after))
    with pytest.raises(ValueError, match="tokenizer: got none"):
        ConeWatch(probe_texts=TEXTS).attach(before)
    for few in ("one", ["one"], []):
        with pytest.raises(ValueError, match=rf"probe_texts: got {re.escape(repr(few))}; it must be two texts or more"):
            ConeWatch(probe_texts=few)
    assert HeldOut(TEXTS[:2], word_tokenizer()).texts == TEXTS[:2]
    with pytest.raises(ValueError, match="probe_every: got 0"):
        ConeWatch(probe_texts=TEXTS, probe_every=0)


class Keeps(ToyModel):
    """Keeps what it makes in its first forward, as models keep tables of positions."""

    def start(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.table = torch.ones(8)
        return hidden * self.table


def test_what_a_model_keeps_of_a_measurement_can_be_trained_with() -> None:
    model = Keeps().train()
    model.config = type("Config", (), {"get_text_config": lambda self: self, "model_type": "toy"})()
    model.dtype = torch.float32
    state = HeldOut(TEXTS, word_tokenizer()).measure(model)
    assert int(state.sentence.count[0].sum()) == 16
    assert all(part.training for part in model.modules())
    hidden = model(torch.arange(4, 12)[None])["last_hidden_state"]
    hidden.square().mean().backward()
    assert float(model.embeddings.weight.grad.abs().sum()) > 0


def test_what_is_logged_of_the_shape_of_the_cone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.tensor([9.0, 5, 2, 1, 0.5, 0.1]) + 1
    state = ConeState.empty([4], 6, second_moment=True)
    state.update([x[:, None]], torch.ones(40, 1, dtype=torch.bool))
    found = {name.removeprefix("cone/L4/"): value for name, value in cone_scalars(state).items()}
    u = x / x.norm(dim=1, keepdim=True)
    own = (u.sum(0).square() - u.square().sum(0)) / (40 * 39)
    largest = own.topk(3).indices
    sigma = torch.linalg.svdvals(x)
    p, values = sigma / sigma.sum() + 1e-7, torch.linalg.eigvalsh(x.T.cov())
    share = values / values.sum()
    wanted = {
        "mean_norm": x.norm(dim=1).mean(),
        "norm_deviation": x.norm(dim=1).std(),
        "mean_deviation": x.std(0).mean(),
        "least_deviation": x.std(0).min(),
        "rogue_share": own[largest].sum() / own.sum(),
        "rogue_dimension": largest[0],
        "rank_me": (-p * p.log()).sum().exp(),
        "effective_rank": (-share * share.log()).sum().exp(),
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-9), name
    assert {"participation_ratio", "iso_score", "explained_variance_ratio", "anisotropy_without_rogue"} < set(found)
    assert set(cone_scalars(ConeState.empty([4], 6, second_moment=True))) == {
        "cone/L4/anisotropy", "cone/L4/anisotropy_stderr"
    }  # fmt: skip
