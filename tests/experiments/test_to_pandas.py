"""Every result as a flat table: the numbers of its JSON, ready to plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cone_kernels import extras
from cone_kernels.experiments import rows, run, vectors
from cone_kernels.experiments.layers_table import layer_rows
from cone_kernels.experiments.result import ExperimentResult
from tests.support.tiny_checkpoints import save_checkpoint

pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")
TEXTS = [f"w{4 + i % 50} w{5 + i * 7 % 60} w{6 + i * 3 % 70}" for i in range(30)]


def number(value: float | None) -> float:
    return math.nan if value is None else value


@pytest.mark.usefixtures("undrawn")
def test_of_a_run_and_of_each_of_its_experiments(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        save_checkpoint(tmp_path / name, seed=seed)
    found = run([tmp_path / "one", tmp_path / "two"], TEXTS, tmp_path / "out", k=2)
    whole, written = found.to_pandas(), layer_rows(found.to_dict())
    assert list(whole.columns) == list(written[0])
    assert len(whole) == len(written)
    np.testing.assert_equal(
        whole["sentence_anisotropy"].to_numpy(), [number(row["sentence_anisotropy"]) for row in written]
    )

    every = [found, *(result for model in found.models for result in (*model.results.values(), *model.centerings))]
    for result in every:
        table, arrow = result.to_pandas(), pyarrow.table(result)
        assert arrow.column_names == list(table.columns)
        assert arrow.num_rows == len(table) > 0
    arrow = pyarrow.table(found)["sentence_anisotropy"].to_numpy()
    np.testing.assert_array_equal(arrow, whole["sentence_anisotropy"].to_numpy())

    model = found.models[0]
    layers, data = model.layers.to_pandas(), model.layers.to_dict()
    assert set(layers["model"]) == {data["model"]["name"]}
    assert layers["layer"].tolist() == [row["layer"] for row in data["layers"]]
    for level in ("sentence", "token"):
        assert layers[f"{level}_stderr"].tolist() == [row[level]["stderr"] for row in data["layers"]]
    pooling = model.results["pooling"].to_pandas()
    assert pooling["gap_value"].tolist() == [
        row["gap"]["value"] for row in model.results["pooling"].to_dict()["layers"]
    ]
    axis = model.results["axis"].to_pandas()
    assert axis["eigenvalue"].tolist() == [one.eigenvalue for one in model.results["axis"].components]  # type: ignore[attr-defined]
    for centering in model.centerings:
        (after,) = centering.to_pandas()["after_value"]
        assert after == centering.to_dict()["after"]["value"]
    assert found.rotation is not None
    assert found.rotation.to_pandas()["name"].tolist() == [row["name"] for row in found.rotation.to_dict()["models"]]


def test_of_vectors_and_of_rows() -> None:
    x = np.random.default_rng(0).normal(size=(40, 5))
    assert vectors(x).to_pandas()["sentence_anisotropy"].tolist() == [vectors(x).level.anisotropy]
    assert rows(x, x).to_pandas()["verdict"].tolist() == ["same up to rounding"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pandas is not installed.*cone_kernels\[pandas\]"):
        ExperimentResult.to_pandas(Bare())


class Bare(ExperimentResult):
    """One row of its own."""

    table = None

    def to_dict(self) -> dict[str, Any]:
        return {"value": 1.0}

    def summary(self) -> tuple[str, ...]:
        return ()
