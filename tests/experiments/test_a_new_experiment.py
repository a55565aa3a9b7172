"""An experiment that has only what docs/adding_an_experiment.md asks for is whole: command, terminal, page, table."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from cone_kernels import experiments, metrics
from cone_kernels.cli import group, main
from cone_kernels.experiments.result import ExperimentResult
from cone_kernels.names import EXPERIMENTS, Experiment
from cone_kernels.report import figure, figures, tables
from cone_kernels.report.inline import Parts, count, significant
from cone_kernels.report.node import Node
from cone_kernels.report.table import Column, Table
from cone_kernels.runs.measure import measured
from cone_kernels.runs.measurement import Measurement
from tests.support.tiny_checkpoints import save_checkpoint

TEXTS = ["w5 w6", "w7 w8 w9", "w10", "w11 w12 w5", "w6 w13 w14 w15", "w9 w20 w21"]


@dataclass(frozen=True)
class NormsResult(ExperimentResult):
    model: dict[str, Any]
    corpus: dict[str, Any]
    norms: list[float]
    manifest: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "experiment": "norms",
            "model": self.model,
            "corpus": self.corpus,
            "layers": [{"layer": at, "mean_norm": norm} for at, norm in enumerate(self.norms)],
            "summary": list(self.summary()),
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        return (f"Layer {self.norms.index(max(self.norms))} has the longest vectors.",)


def norms(model: Any = None, corpus: Any = None, *, state: Any = None, save_state: Any = None, **options: Any) -> Any:
    return norms_of(measured(model, corpus, state, save_state=save_state, **options))


def norms_of(measurement: Measurement) -> NormsResult:
    lengths = metrics.mean_norm(measurement.state.sentence).tolist()
    return NormsResult(measurement.model, measurement.corpus, lengths, measurement.manifest)


def norms_tables(result: Node) -> list[Table]:
    rows: list[list[Parts]] = [[[count(row["layer"])], [significant(row["mean_norm"])]] for row in result["layers"]]
    columns = [Column("layer", ("layer",)), Column("mean norm", ("mean_norm",))]
    return [Table("norms", ["How long they are"], columns, rows, [["A note."]])]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and a corpus, and the experiment where its four files would put it."""
    module = ModuleType("cone_kernels.experiments.norms")
    vars(module).update(norms=norms, norms_of=norms_of)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(experiments, "norms", norms, raising=False)
    monkeypatch.setitem(EXPERIMENTS, "norms", Experiment("Norms", "How long are vectors?", "norms", "each model"))
    monkeypatch.setitem(tables.TABLES, "norms", norms_tables)
    monkeypatch.setitem(figures.PANELS, "norms", figures._none)
    monkeypatch.setattr(group, "COMMANDS", (*group.COMMANDS, "norms"))
    monkeypatch.setitem(group._EXPERIMENTS, "norms", "norms")
    save_checkpoint(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS))
    return tmp_path


def cone(*arguments: str | Path) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_its_tables_and_writes_json_and_the_state(folder: Path) -> None:
    source = ("--model", folder / "model", "--corpus", folder / "corpus.txt")
    printed = cone("norms", *source, "--json", folder / "norms.json", "--save-state", folder / "state")
    values = [row["mean_norm"] for row in json.loads((folder / "norms.json").read_text())["layers"]]
    lines = printed.splitlines()
    assert [line.strip() for line in lines[:2]] == ["How long they are", "layer  mean norm"]
    shown = [float(line.split()[1]) for line in lines[2 : 2 + len(values)]]
    assert shown == pytest.approx(values, rel=1e-3)
    assert "A note." in lines
    assert lines[-1] == f"Layer {values.index(max(values))} has the longest vectors."
    assert cone("norms", "--state", folder / "state") == printed
    assert "How long are vectors?" in cone("--help")


def test_a_run_makes_it_and_its_page_and_table_show_it(folder: Path) -> None:
    found = experiments.run([folder / "model"], folder / "corpus.txt", folder / "out", table="csv", k=1, top=2)
    result = found.models[0].results["norms"]
    assert list(found.to_dict()["models"][0]) == ["layers", "pooling", "axis", "norms"]
    assert result.summary()[0] in found.summary()
    page = (folder / "out" / "report.html").read_text()
    said = ("How long are vectors?", "How long they are", *result.summary())
    for part in ('href="#norms"', '<section id="norms"', *said):
        assert part in page
    rows = list(csv.DictReader((folder / "out" / "layers.csv").open()))
    assert [float(row["norms_mean_norm"]) for row in rows] == result.norms


def test_without_figures_it_says_so(folder: Path) -> None:
    found = norms(folder / "model", TEXTS)
    with pytest.raises(ValueError, match="result: got an experiment 'norms' with nothing to draw"):
        figure(found.to_dict())
    assert "How long they are" in found._repr_html_()
