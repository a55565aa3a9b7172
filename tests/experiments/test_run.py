"""`cone run`: one pass of each model, one folder with everything, the same numbers as the experiments alone."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pyarrow import parquet
from rich.console import Console

from cone_kernels import ConeState
from cone_kernels.cli import main
from cone_kernels.experiments import axis, center, layers, pooling, rotation, run
from cone_kernels.experiments.axis_vectors import AxisVectors
from cone_kernels.experiments.layers_table import encoded_table, layer_rows, table_format
from cone_kernels.experiments.run import RunResult
from cone_kernels.models import load_model
from cone_kernels.names import QUALITY_NOT_MEASURED
from cone_kernels.report import _draw_wide, fragment
from cone_kernels.report.figures.panel import Panel
from cone_kernels.terminal.run import print_run
from tests.support.of_sums import of_sums
from tests.support.tiny_checkpoints import THREE_LENGTHS, save_checkpoint, word_tokenizer
from tests.support.tiny_models import tiny_model
from tests.support.undrawn import DRAWN_BY, undrawn

TEXTS = [" ".join(f"w{4 + (i * 7 + j * 3) % 90}" for j in range(THREE_LENGTHS[i % 3])) for i in range(40)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        save_checkpoint(base / name, seed=seed)
    return [base / "one", base / "two"]


def drawn_of_several(panel: Panel, prefix: str) -> str:
    return _draw_wide(panel, prefix) if prefix.endswith("-all") else undrawn(panel, prefix)


@pytest.fixture(scope="module")
def ran(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        # What is of one model is drawn where a run makes a new experiment, and the first figure in the notebook below.
        patch.setattr(DRAWN_BY, drawn_of_several)
        return run(folders, TEXTS, tmp_path_factory.mktemp("run") / "out", k=2, pooling=["mean", "cls"])


@pytest.fixture(scope="module")
def out(ran: RunResult) -> Path:
    return ran.out


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def without_manifest(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("manifest", "vectors_file")}


def test_gives_what_the_experiments_give_alone(folders: list[Path], results: dict[str, Any]) -> None:
    models = [load_model(folder) for folder in folders]
    for model, found in zip(models, results["models"], strict=True):
        alone = {
            "layers": layers(model, TEXTS, second_moment=True),
            "pooling": pooling(model, TEXTS, pooling=["mean", "cls"]),
            "axis": axis(model, TEXTS, k=2),
        }
        for name, result in alone.items():
            assert without_manifest(found[name]) == without_manifest(result.to_dict()), name
    compared = without_manifest(results["rotation"])
    assert compared == without_manifest(rotation(models, TEXTS, k=2).to_dict())
    fixed = {method: center(models[1], TEXTS, method=method) for method in ("mean", "all-but-the-top", "whitening")}
    for found in results["centering"][3:]:
        assert without_manifest(found) == without_manifest(fixed[found["method"]].to_dict())


def test_writes_everything_and_says_what_is_in_it(out: Path, folders: list[Path], results: dict[str, Any]) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {*manifest["files"], "manifest.json"}
    assert list(manifest["files"]) == [
        *(f"{kind}/{name}.safetensors" for name in ("one", "two") for kind in ("states", "axes")),
        *("results.json", "layers.parquet", "report.html"),
    ]
    for name, sha256 in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
    assert [model["model"]["weights_sha256"] for model in manifest["models"]] == [
        load_model(folder).info["weights_sha256"] for folder in folders
    ]
    assert manifest["models"][0]["model"]["attention"] == "sdpa"
    assert manifest["corpus"]["fingerprint"] == results["models"][0]["layers"]["corpus"]["fingerprint"]
    assert manifest["options"]["pooling"] == ["mean", "cls"]
    assert (manifest["device"], manifest["options"]["errors"]) == ("cpu", "replace")
    assert (out / "report.html").read_text().count("<svg") > 0  # of both models


@pytest.mark.parametrize("width", [50, 160])
def test_the_command_ends_with_the_answer_for_every_model(ran: RunResult, results: dict[str, Any], width: int) -> None:
    shown = io.StringIO()
    print_run(Console(file=shown, width=width), ran)
    lines = shown.getvalue().splitlines()
    for model in results["models"]:
        last, peak = model["layers"]["layers"][-1]["sentence"], model["layers"]["shape"]["peak"]
        numbers = [f"{peak['anisotropy']:.3f} at layer {peak['layer']}", f"{last['anisotropy']:.3f} ± "]
        assert all(any(number in line for line in lines) for number in numbers)
    assert sum(line.startswith(("one", "two")) for line in lines) == 2
    assert any(line.startswith("  peak ") for line in lines) == (width == 50)
    assert str(ran.out / "report.html") in shown.getvalue()
    assert len(lines) < 30


def test_a_notebook_shows_the_answer_for_every_model(ran: RunResult, results: dict[str, Any]) -> None:
    assert ran._repr_html_() == fragment(ran.to_dict())
    assert f"{results['models'][0]['layers']['shape']['peak']['anisotropy']:.3f}" in ran._repr_html_()


def test_state_and_vectors_can_be_read_again(out: Path, results: dict[str, Any]) -> None:
    state = ConeState.load(out / "states" / "two.safetensors")
    rows = zip(layers(state=state).to_dict()["layers"], results["models"][1]["layers"]["layers"], strict=True)
    assert all(of_sums(one) == of_sums(other) for one, other in rows)
    vectors = AxisVectors.load(out / results["models"][1]["axis"]["vectors_file"])
    assert vectors.centered.shape == (2, 32)
    torch.testing.assert_close(vectors.centered @ vectors.centered.T, torch.eye(2, dtype=torch.float64))


def test_table_has_a_row_for_each_model_and_layer(out: Path, results: dict[str, Any]) -> None:
    rows = parquet.read_table(out / "layers.parquet").to_pylist()
    keys = [(Path(row["model"]).name, row["layer"]) for row in rows]
    assert keys == [(model, layer) for model in ("one", "two") for layer in range(4)]
    layer = results["models"][1]["layers"]["layers"][2]
    pooled = results["models"][1]["pooling"]["layers"][2]
    row = rows[6]
    assert (row["sentence_anisotropy"], row["token_stderr"]) == (
        layer["sentence"]["anisotropy"],
        layer["token"]["stderr"],
    )
    assert (row["gap"], row["predicted_stderr"]) == (pooled["gap"]["value"], pooled["predicted"]["stderr"])
    assert row["cls_anisotropy"] == pooled["poolings"]["cls"]["anisotropy"]
    assert row["participation_ratio"] == layer["geometry"]["participation_ratio"]


def test_a_row_has_the_numbers_of_its_layer_and_nothing_where_there_are_none() -> None:
    numbers = iter(range(1000))
    fields = ("anisotropy", "stderr", "mean_norm", "count", "n_zero", "n_nonfinite")
    geometry = ("participation_ratio", "iso_score", "explained_variance_ratio", "effective_rank", "rank_me")
    layers: list[dict[str, Any]] = []
    pooled, wanted, axis = [], [], []
    for at in range(3):
        levels = {level: {name: next(numbers) for name in fields} for level in ("sentence", "token")}
        without = {f"anisotropy_without_rogue{end}": next(numbers) for end in ("", "_stderr")}
        estimates = {
            name: {"value": next(numbers), "stderr": next(numbers)}
            for name in ("gap", "within", "between", "predicted")
        }
        poolings = {name: {"anisotropy": next(numbers), "stderr": next(numbers)} for name in ("mean", "cls")}
        layers.append({"layer": at, "name": f"layer.{at}", **levels, **without, "geometry": None, "population": None})
        pooled.append({"layer": at, **estimates, "poolings": poolings})
        axis.append({"layer": at, "share": 0.5 + at, "unknown": None, "words": ["w"]})
        wanted.append(
            {"model": "tiny", "layer": at, "name": f"layer.{at}"}
            | {f"{level}_{name}": value for level, found in levels.items() for name, value in found.items()}
            | without
            | {name: found["value"] for name, found in estimates.items()}
            | {f"{name}_stderr": found["stderr"] for name, found in estimates.items()}
            | {f"{name}_{key}": value for name, found in poolings.items() for key, value in found.items()}
            | dict.fromkeys((*geometry, "participation_ratio_corrected", "participation_ratio_corrected_stderr"))
            | {"axis_share": 0.5 + at, "axis_unknown": None}
        )
    layers[1] |= {"geometry": dict.fromkeys(geometry, 7.5), "population": {"participation_ratio": None}}
    wanted[1] |= dict.fromkeys(geometry, 7.5)
    layers[2]["population"] = {"participation_ratio": {"value": 9.5, "stderr": 0.25}}
    wanted[2] |= {"participation_ratio_corrected": 9.5, "participation_ratio_corrected_stderr": 0.25}
    model = {"layers": {"model": {"name": "tiny"}, "layers": layers}, "pooling": {"layers": pooled}}
    rows = layer_rows({"models": [model | {"axis": {"layers": axis}}]})
    assert rows == wanted
    assert len({tuple(row) for row in rows}) == 1


def test_a_table_in_both_formats() -> None:
    rows = [{"name": "a, b", "value": 0.25}, {"name": "c", "value": None}]
    assert encoded_table(rows, "csv") == b'name,value\r\n"a, b",0.25\r\nc,\r\n'
    assert encoded_table(rows[1:], "csv") == b"name,value\r\nc,\r\n"
    assert parquet.read_table(io.BytesIO(encoded_table(rows, "parquet"))).to_pylist() == rows
    assert [table_format(one) for one in (None, "parquet", "csv")] == ["parquet", "parquet", "csv"]


@pytest.mark.usefixtures("undrawn")
def test_one_model_as_csv_by_the_command_line(folders: list[Path], tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "out"
    corpus.write_text("\n".join(TEXTS))
    arguments = ["run", "--model", str(folders[0]), "--corpus", str(corpus), "--out", str(out), "--table", "csv"]
    done = CliRunner().invoke(main, [*arguments, "--k", "1", "--json", "-"])
    assert done.exit_code == 0
    results = json.loads((out / "results.json").read_text())
    assert json.loads(done.stdout) == results
    assert results["rotation"] is None
    with (out / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    anisotropy = [layer["sentence"]["anisotropy"] for layer in results["models"][0]["layers"]["layers"]]
    assert [float(row["sentence_anisotropy"]) for row in rows] == anisotropy
    # Another run into the same folder is refused, and replaces all of this one where that is asked for.
    (out / "axes" / "notes.txt").write_text("mine")
    (out / "states" / "other.safetensors").write_text("of a run of two models")
    before = (out / "manifest.json").read_bytes()
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "out holds a run, with manifest.json; overwrite=True (--overwrite) replaces it" in refused.stderr
    assert (out / "manifest.json").read_bytes() == before
    again = [argument if argument != "csv" else "parquet" for argument in arguments]
    assert CliRunner().invoke(main, [*again, "--overwrite"]).exit_code == 0
    names = sorted(str(file.relative_to(out)) for file in out.rglob("*.*"))
    kept = ["layers.parquet", "manifest.json", "report.html", "results.json", "states/one.safetensors"]
    assert names == ["axes/notes.txt", "axes/one.safetensors", *kept]
    # The report once more from the results alone.
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert CliRunner().invoke(main, ["report", str(out)]).exit_code == 0
    assert (out / "report.html").read_bytes() == page


@pytest.mark.usefixtures("undrawn")
def test_models_of_one_name_get_files_of_their_own(folders: list[Path], tmp_path: Path) -> None:
    found = run([folders[0], folders[0]], iter(TEXTS), tmp_path, k=1, table="csv")
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["one-2.safetensors", "one.safetensors"]
    assert found.rotation is not None
    assert found.rotation.to_dict()["axis_cosine"][0][1] == pytest.approx(1)


def test_refusals_come_before_the_run(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"model: got .*; it must be a sequence of models"):
        run(str(folders[0]), TEXTS, tmp_path)
    with pytest.raises(ValueError, match="model: got none"):
        run([], TEXTS, tmp_path)
    with pytest.raises(ValueError, match="table: got 'xml'"):
        run(folders, TEXTS, tmp_path, table="xml")  # type: ignore[arg-type]

    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        run(folders, TEXTS, tmp_path / "file")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "report.html").touch()
    with pytest.raises(FileExistsError, match=r"out: .*earlier holds a run, with report\.html; overwrite=True"):
        run([tmp_path / "no model"], TEXTS, tmp_path / "earlier")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="pyarrow is not installed"):
        run(folders, TEXTS, tmp_path / "out", table="parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_without_pyarrow_the_table_is_csv(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run(folders[:1], TEXTS, tmp_path / "out", k=1)
    assert (tmp_path / "out" / "layers.csv").exists()
    assert not (tmp_path / "out" / "layers.parquet").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_layer_that_overflows_costs_the_axis_alone(folders: list[Path], tmp_path: Path) -> None:
    """A norm that leaves float16: the rest is measured and written, and what is missing says why."""
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight.mul_(1e6)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path / "big")
    word_tokenizer().save_pretrained(tmp_path / "big")
    found = run([tmp_path / "big", folders[0]], TEXTS, tmp_path / "out", dtype="float16")
    big, other = found.to_dict()["models"]
    reason = f"layer 3 has 0 sentence vectors to use, and two are needed: {len(TEXTS)} are not finite and 0 are zero"
    assert big["undefined"] == {"axis": f"{reason}; bfloat16 has no such end as float16 has at 65,504"}
    assert ("axis" in big, "axis" in other, "undefined" in other) == (False, True, False)
    assert (found.rotation, len(found.models[0].centerings), len(found.models[1].centerings)) == (None, 0, 3)
    layers = big["layers"]["layers"]
    assert [row["sentence"]["anisotropy"] is None for row in layers] == [False, False, False, True]
    assert big["layers"]["shape"]["crash"] is None
    each = [line for model in found.models for result in model.results.values() for line in result.summary()]
    assert found.summary() == (*each, QUALITY_NOT_MEASURED)
    compared: Any = SimpleNamespace(summary=lambda: ("They are alike.",))
    assert replace(found, rotation=compared).summary() == (*each, "They are alike.", QUALITY_NOT_MEASURED)
    said = " ".join(found.models[0].layers.summary())
    assert "How it ends cannot be told: there is no mean cosine, or no error of one, at layer 3." in said
    assert "crash" not in said
    assert not any("At the last layer" in line for line in found.models[0].pooling.summary())
    names = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*"))
    files = ["layers.parquet", "manifest.json", "report.html", "results.json"]
    assert names == ["axes/one.safetensors", *files, "states/big.safetensors", "states/one.safetensors"]
