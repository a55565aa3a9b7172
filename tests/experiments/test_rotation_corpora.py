"""One model over several corpora: what moves with the corpus, on rows whose relation is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from click.testing import CliRunner
from torch import Tensor

from cone_kernels.cli import main
from cone_kernels.experiments.rotation import rotation, rotation_of
from cone_kernels.experiments.rotation_result import RotationResult
from cone_kernels.report import write_report
from cone_kernels.sums import jackknife_blocks, jackknife_groups
from tests.experiments.test_rotation import SENTENCES, of_rows, orthogonal
from tests.support.moment_cases import normal
from tests.support.recording_probe import plain_anisotropy
from tests.support.tiny_checkpoints import save_checkpoint

D = 12
SPREAD = torch.linspace(0.4, 1, D, dtype=torch.float64)
SPREAD[-1] = 4.0
MEAN = torch.linspace(-1, 1.5, D, dtype=torch.float64)


def rows(seed: int, mean: Tensor = MEAN, n: int = 1200) -> Tensor:
    return normal(n, D, dtype=torch.float64, seed=seed, shift=0) * SPREAD + mean


def over(*corpora: Tensor) -> RotationResult:
    return rotation_of([of_rows(x, "m", str(at)) for at, x in enumerate(corpora)], k=2, over_corpora=True)


def test_two_samples_of_one_corpus_move_nothing() -> None:
    found = over(rows(1), rows(2))
    assert found.corpora is not None
    assert found.verdict[0][1] == "share"
    means = found.corpora.means[0][1]
    assert means is not None
    assert means.verdict == "share"
    claims = [found.corpora.carried[i][j] for i, j in ((0, 1), (1, 0))]
    assert all(claim is not None and claim.verdict == "undecided" for claim in claims)
    first, *others = found.summary()
    assert "the axis of m at layer 0 stays" in first
    assert "the mean stays" in first
    assert "not told from that of another half of its own sentences" in others[0]


def test_a_turned_axis_and_another_mean_move() -> None:
    turn = orthogonal(D, 3)
    found = over(rows(1), (rows(2) - MEAN) @ turn + MEAN.flip(0))
    assert found.verdict[0][1] == "differ"
    assert found.corpora is not None
    means, claim = found.corpora.means[0][1], found.corpora.carried[0][1]
    assert means is not None
    assert claim is not None
    assert means.verdict == "differ"
    assert claim.verdict == "greater"
    assert "the axis of m at layer 0 moves with the corpus" in found.summary()[0]
    assert "the mean moves with the corpus" in found.summary()[0]
    assert "more than that of another half" in found.summary()[1]


def test_numbers_are_those_of_a_plain_computation() -> None:
    a, b = rows(1, n=200), rows(2, MEAN + 1, n=150)
    found = over(a, b)
    assert found.corpora is not None
    units = [torch.nn.functional.normalize(x, dim=1).mean(0) for x in (a, b)]
    cosine = float(torch.cosine_similarity(*units, dim=0))
    means = found.corpora.means[0][1]
    assert means is not None
    assert means.overlap.value == pytest.approx(cosine**2, rel=1e-12)
    assert found.centered_anisotropy[0][1] == pytest.approx(plain_anisotropy(a - b.mean(0)), abs=1e-12)
    assert found.to_dict()["corpora"]["carried"][0][1]["estimate"] == found.centered_anisotropy[0][1]
    for (i, j), said in zip(((0, 1), (1, 0)), found.summary()[1:], strict=True):
        own = found.corpora.halves[i]
        assert (
            f" a mean cosine of {found.centered_anisotropy[i][j]:.4f} (s.e. {found.centered_stderr[i][j]:.4f}), "
            in said
        )
        assert said.endswith(
            f" that of another half of its own sentences ({own.anisotropy:.4f}, s.e. {own.stderr:.4f})."
        )
    for x, level, alike in zip((a, b), found.corpora.halves, means.halves, strict=True):
        groups = jackknife_groups(torch.arange(len(x)))
        half = jackknife_blocks(torch.bincount(groups, minlength=64))[groups] % 2
        unit = torch.nn.functional.normalize(x, dim=1)
        both = torch.cosine_similarity(unit[half == 0].sum(0), unit[half == 1].sum(0), dim=0)
        assert alike == pytest.approx(float(both) ** 2, rel=1e-12)
        # The one half is centred by the mean of the other.
        assert level.count == int((half == 0).sum())
        assert level.anisotropy == pytest.approx(plain_anisotropy(x[half == 0] - x[half == 1].mean(0)), abs=1e-12)
    turned = found.corpora.means[1][0]
    assert turned is not None
    assert turned.halves == means.halves[::-1]
    claim = found.corpora.carried[0][1]
    assert claim is not None
    assert claim.null == found.corpora.halves[0].anisotropy
    # Both have an error, and what is left of two corpora is judged together (Šidák).
    error = math.hypot(found.centered_stderr[0][1], found.corpora.halves[0].stderr)
    blocks = int(jackknife_blocks(torch.bincount(jackknife_groups(torch.arange(200)), minlength=64)).max()) + 1
    assert claim.bound == pytest.approx(error * scipy.stats.t.ppf(0.5 + 0.95**0.5 / 2, blocks - 1), rel=1e-6)


def test_a_mean_that_moves_a_little_is_said_to() -> None:
    step = torch.zeros(D, dtype=torch.float64)
    step[0] = 0.5
    found = over(rows(1, n=4000), rows(2, MEAN + step, n=4000))
    assert "the mean moves with the corpus, but stays above |cos| 0.9" in found.summary()[0]


@pytest.mark.parametrize("n", [2, 3, 6])
def test_few_sentences_are_said_to_be_few(n: int) -> None:
    """No halves of one block of sentences, and no number in words that is not known."""
    found = over(rows(1, n=n), rows(2, n=n))
    assert found.summary() == (
        "rows (1) and rows (2) have too few sentences to tell whether the axis and the mean of m at layer 0 move with "
        "the corpus.",
    )
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


def test_the_command_and_its_report(folder: Path, tmp_path: Path) -> None:
    for name, sentences in (("a.txt", SENTENCES[:20]), ("b.txt", SENTENCES[20:])):
        (tmp_path / name).write_text("\n".join(sentences), encoding="utf-8")
    arguments = ["rotation", "--model", folder, "--corpus", tmp_path / "a.txt", "--corpus", tmp_path / "b.txt"]
    shown = CliRunner().invoke(main, [*map(str, arguments), "--k", "2", "--json", str(tmp_path / "r.json")])
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "r.json").read_text())
    assert [model["name"] for model in found["models"]] == ["a.txt", "b.txt"]
    assert found["corpus"]["sentences"] == 40
    assert found["corpora"]["model"] == folder.name
    assert f"From a.txt to b.txt the axis of {folder.name}" in " ".join(found["summary"])
    assert "corpus" in shown.output
    write_report(found, tmp_path / "report.html")
    assert "The corpora compared" in (tmp_path / "report.html").read_text(encoding="utf-8")
    # Several models over several corpora read them as one, as ever.
    both = [*map(str, arguments), "--model", str(folder), "--layer", "0", "--layer", "1"]
    shown = CliRunner().invoke(main, [*both, "--k", "2", "--json", str(tmp_path / "joined.json")])
    assert shown.exit_code == 0, shown.output
    joined = json.loads((tmp_path / "joined.json").read_text())
    assert "corpora" not in joined
    assert joined["corpus"]["sentences"] == 40


def test_what_does_not_go_together(folder: Path) -> None:
    with pytest.raises(
        ValueError, match="corpora: got them with 2 models, 0 states; they must come with one model alone"
    ):
        rotation([folder, folder], corpora=[SENTENCES[:20], SENTENCES[20:]])
    with pytest.raises(ValueError, match="and a corpus; they must come with one model alone"):
        rotation([folder], SENTENCES, corpora=[SENTENCES[:20], SENTENCES[20:]])
    with pytest.raises(ValueError, match="corpora: got 1; it must be at least two"):
        rotation([folder], corpora=[SENTENCES])
    for layer in ([0, 1], [0, 1, 1]):
        with pytest.raises(ValueError, match=r"^layer: got \[0, 1.*\] with corpora; it must be one, for only"):
            rotation([folder], corpora=[SENTENCES[:20], SENTENCES[20:]], layer=layer)
    with pytest.raises(ValueError, match="corpora: got the same sentences twice"):
        rotation([folder], corpora=[SENTENCES, SENTENCES])
