"""The example, a few steps of it on a tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support.places import EXAMPLES
from tests.support.tiny_checkpoints import WORDS, save_checkpoint
from tests.support.tiny_models import LAYERS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = EXAMPLES / "train_isotropic.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def text_file(folder: Path, n: int) -> Path:
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(WORDS), (n, 8), generator=generator).tolist()
    path = folder / "sentences.txt"
    path.write_text("\n".join(" ".join(WORDS[pick] for pick in row) for row in picks), encoding="utf-8")
    return path


def test_the_term_widens_the_cone(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--text", text_file(tmp_path, 400), "--plot", tmp_path / "curves.svg"]
    without, with_term = example.main([*map(str, arguments), "--steps", "8", "--learning-rate", "3e-3"])
    for run in (without, with_term):
        assert len(run.curves) == len(run.found) == 3
        assert all(curve.shape == (LAYERS + 1,) and not curve.isnan().any() for curve in run.curves)
    # Both begin with the same weights on the same sentences.
    assert torch.equal(without.curves[0], with_term.curves[0])
    assert without.found[0] == with_term.found[0]
    assert float(with_term.curves[-1][1:].mean()) < float(without.curves[-1][1:].mean()) - 0.05
    shown = capsys.readouterr().out
    assert f"{with_term.curves[-1][LAYERS]:.3f}" in shown
    assert "without" in (tmp_path / "curves.svg").read_text(encoding="utf-8")
    # Quality is told beside isotropy, with the error of the paired difference.
    difference = with_term.hits[-1] - without.hits[-1]
    stderr = difference.std() / len(difference) ** 0.5
    assert f"{float(difference.mean()):+.1%} ± {float(stderr):.1%} more sentences are found" in shown


@pytest.mark.parametrize(("weight", "sign"), [("5", 1), ("-5", -1)])
def test_both_signs_of_isoscore(example: ModuleType, tmp_path: Path, weight: str, sign: int) -> None:
    save_checkpoint(tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--text", text_file(tmp_path, 400), "--loss", "isoscore"]
    without, with_term = example.main([*map(str, arguments), "--weight", weight, "--steps", "6"])
    assert sign * float(with_term.scores[-1][1:].mean() - without.scores[-1][1:].mean()) > 0.005


def test_too_little_text(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="text: got 20 distinct sentences; it must have 280"):
        example.main(["--text", str(text_file(tmp_path, 20))])


@pytest.mark.parametrize("option", [["--steps", "1"], ["--weight", "0"], ["--weight", "-1"]])
def test_options_out_of_range(example: ModuleType, option: list[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(option)
