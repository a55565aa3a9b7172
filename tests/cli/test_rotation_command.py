"""Experiment 4: what is said of four models, what the command prints, and the example."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cone_kernels.cli import main
from cone_kernels.experiments.axes_pair import AxesPair, Chance
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.rotation import rotation
from cone_kernels.experiments.rotation_result import ComparedModel, RotationResult
from cone_kernels.runs.measure import measure
from cone_kernels.statistics.directions import random_cosine_mean
from cone_kernels.statistics.subspaces import Overlap
from cone_kernels.terminal.rotation import print_rotation
from tests.experiments.test_rotation import SENTENCES
from tests.support.places import EXAMPLES
from tests.support.tiny_checkpoints import save_checkpoint

EXAMPLE = EXAMPLES / "rotation.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same architecture and width, with other weights."""
    folder = tmp_path_factory.mktemp("other")
    save_checkpoint(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path, other: Path) -> RotationResult:
    return rotation([folder, other], SENTENCES, k=3)


def compared(name: str, anisotropy: float = 0.7, hidden_size: int = 1024) -> ComparedModel:
    level = Level(anisotropy, 0.001, 1000, 0, 0, 1.0)
    return ComparedModel(name, name, "BertModel", None, hidden_size, 24, "block", level, 0.1, "one")


def pair_of(cosine: float, sentences: int = 1000) -> AxesPair:
    """Of two first axes, known to 0.01."""
    found = Overlap(1, cosine**2, cosine**2, 0.005, 0.02, 63)
    return AxesPair(found, 0.01, 0.005, (0.98, 0.99), Chance(0.002, 0.01), sentences)


def family(axis: list[list[float]], centered: list[list[float]], functional: list[list[float]]) -> RotationResult:
    """Four models, of which the last is no relation."""
    square = tuple(map(tuple, axis))
    chance = tuple((Chance(0.0249, 0.0612),) * 4 for _ in range(4))
    return RotationResult(
        models=tuple(map(compared, ("mxbai", "bge", "gte", "bert"))),
        corpus={},
        k=1,
        axis_cosine=square,
        pairs=tuple(tuple(None if i == j else pair_of(axis[i][j]) for j in range(4)) for i in range(4)),
        mean_cosine=square,
        principal_angles=((None,) * 4,) * 4,
        centered_anisotropy=tuple(map(tuple, centered)),
        centered_stderr=((0.001,) * 4,) * 4,
        functional_cosine=tuple(map(tuple, functional)),
        null=chance,
        p_value=square,
        reasons=(),
        manifest={},
    )


def test_summary_tells_families_apart() -> None:
    """On the published cosines of four models."""
    axis = [[1, 0.963, 0.97, 0.024], [0.963, 1, 0.98, 0.03], [0.97, 0.98, 1, 0.053], [0.024, 0.03, 0.053, 1]]
    centered = [[0.0, 0.02, 0.03, 0.68], [0.01, 0.0, 0.2, 0.7], [0.02, 0.02, 0.0, 0.9], [0.7, 0.71, 0.7, 0.0]]
    near = [[0.1] * 4] * 4
    found = family(axis, centered, near).summary()
    assert found == (
        "mxbai, bge and gte share their axis: |cos| 0.96 to 0.98 (from 0.96 to 0.99 with its error) between any two.",
        "The axes of mxbai, bge and gte on one side and bert on the other are no closer than chance: |cos| 0.02 to "
        "0.05 (from 0.00 to 0.11 with its error); of directions drawn from their covariances one pair in twenty has "
        "more than 0.10.",
        "Subtracting its own mean takes mxbai from a mean cosine of 0.700 to 0.000; those of bge and gte carry over: "
        "0.020 to 0.030; that of bert does not carry over: 0.680.",
        "Subtracting its own mean takes bge from a mean cosine of 0.700 to 0.000; that of mxbai carries over: 0.010; "
        "that of gte carries over in part: 0.200; that of bert does not carry over: 0.700.",
        "Subtracting its own mean takes gte from a mean cosine of 0.700 to 0.000; those of mxbai and bge carry over: "
        "0.020; that of bert makes the cone tighter: 0.900.",
        "Subtracting its own mean takes bert from a mean cosine of 0.700 to 0.000; those of mxbai, bge and gte do not "
        "carry over: 0.700 to 0.710.",
    )
    # A little closer than chance, and the same order of the sentences.
    axis[0][3] = axis[3][0] = 0.35
    open_cones = [[0.69] * 4] * 4
    differ = family(axis, open_cones, [[0.95] * 4] * 4).summary()
    assert differ[1].startswith(
        "The axes of mxbai, bge and gte on one side and bert on the other differ: |cos| 0.03 to 0.35 (from 0.00 to 0.36"
    )
    assert differ[2].startswith("Yet they order the same sentences alike")
    assert len(differ) == 3


def test_repr_and_notebook(result: RotationResult) -> None:
    text = repr(result)
    assert text.startswith("RotationResult(2 models, |cos| of their axes)")
    assert f"{result.axis_cosine[0][1]:.4f}" in text
    assert f"{result.axis_cosine[0][1]:.3f}" in result._repr_html_()
    assert result.plot().get_axes()


def cone_rotation(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["rotation", *(str(argument) for argument in arguments)])


def test_command(folder: Path, other: Path, tmp_path: Path) -> None:
    corpus, report, state = tmp_path / "corpus.txt", tmp_path / "r.json", tmp_path / "saved.safetensors"
    corpus.write_text("\n".join([*SENTENCES, ""]))
    measure(folder, SENTENCES, second_moment=True, save_state=state)
    arguments = ["--model", folder, "--model", other, "--corpus", corpus, "--state", state, "--k", "2"]
    done = cone_rotation(*arguments, "--json", report)
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    tables = {
        "|cos| of the axes": "axis_cosine",
        "|cos| of the means": "mean_cosine",
        "|r| along the axes": "functional_cosine",
    }
    for title, name in tables.items():
        at = next(number for number, line in enumerate(lines) if title in line)
        assert lines[at].split()[-3:] == ["A", "B", "C"]
        for row, line in zip(found[name], lines[at + 1 : at + 4], strict=True):
            assert line.split()[-3:] == ["-" if value is None else f"{value:.4f}" for value in row]
    assert f"A B {' '.join(f'{angle:6.2f}' for angle in found['principal_angles'][0][1])}" in done.stdout
    said = " ".join(done.stdout.split())
    assert all(sentence in said for sentence in (*found["summary"], *found["reasons"]))
    assert [model["name"] for model in found["models"]][2] == "saved"
    assert "40 sentences, 400 tokens" in done.stderr
    alone = json.loads(cone_rotation(*arguments, "--json", "-", "--layer", "1").stdout)
    assert [model["layer"] for model in alone["models"]] == [1, 1, 1]


def test_many_long_names_fit_into_eighty_columns(result: RotationResult) -> None:
    models = tuple(replace(result.models[0], name=f"an-organisation/a-model-with-a-long-name-{i}") for i in range(5))
    square = ((0.1234,) * 5,) * 5
    console = Console(width=80, record=True)
    many = replace(
        result,
        models=models,
        axis_cosine=square,
        pairs=tuple(tuple(None if i == j else pair_of(0.3) for j in range(5)) for i in range(5)),
        mean_cosine=square,
        functional_cosine=square,
        centered_anisotropy=square,
        centered_stderr=square,
        principal_angles=(((90.0,) * 4,) * 5,) * 5,
        null=((Chance(0.1, 0.2),) * 5,) * 5,
    )
    with console.capture() as capture:
        print_rotation(console, many)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("0.1234") == 5 for line in lines) == 20


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "m", "--corpus", "c.txt"],
        ["--model", "m", "--model", "n"],
        ["--state", "a", "--state", "b", "--corpus", "c.txt"],
        ["--state", "a", "--state", "b", "--k", "0"],
        ["--state", "a", "--state", "b", "--layer", "1", "--layer", "2", "--layer", "3"],
        ["--state", "a", "--state", "b", "--json", "a"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = cone_rotation(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_example(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES))
    arguments = ["rotation.py", "--model", folder, "--model", other, "--corpus", corpus]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    wanted = rotation([folder, other], corpus)
    printed = capsys.readouterr().out
    assert f"|cos| of the axes    {wanted.axis_cosine[0][1]:.3f} ({random_cosine_mean(32):.3f} by chance)" in printed
    assert all(sentence in printed for sentence in wanted.summary())
