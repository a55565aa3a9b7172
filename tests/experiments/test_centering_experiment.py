"""The cone before and after a centering: the experiment, its command, its example."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from cone_kernels.centering import Centering, check_method
from cone_kernels.cli import main
from cone_kernels.cli.center import center as command
from cone_kernels.experiments.centering import center, center_of
from cone_kernels.experiments.centering_result import CenteringResult
from cone_kernels.experiments.held_out import Judged
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.vectors import vectors
from cone_kernels.names import METHODS, QUALITY_NOT_MEASURED, CenteringMethod
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement
from cone_kernels.statistics.claims import Claim
from cone_kernels.sums import jackknife_blocks
from tests.support.moment_cases import GROUP_OF
from tests.support.places import EXAMPLES
from tests.support.recording_probe import plain_anisotropy
from tests.support.tiny_checkpoints import save_checkpoint
from tests.test_centering import cone, moments_of, plain

EXAMPLE = EXAMPLES / "centering.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


SENTENCES = [f"w{4 + i % 90} w{4 + i * i % 83} w{4 + i * 7 % 71}" for i in range(40)]


def test_minilm_before_and_after(minilm: Measurement, tmp_path: Path) -> None:
    rows = torch.cat([block for _, block in minilm.vectors[2].blocks()]).double()
    for method in METHODS:
        file = tmp_path / f"{method}.safetensors"
        found = center_of(minilm, layer=2, method=method, output=file)
        shrinkage = found.centering.shrinkage or 0.0
        wanted = torch.from_numpy(plain(rows, method, components=3, shrinkage=shrinkage))
        assert found.before.anisotropy == pytest.approx(plain_anisotropy(rows), abs=1e-9)
        assert found.after is not None
        assert found.after.anisotropy == pytest.approx(plain_anisotropy(wanted), abs=1e-6)
        groups = torch.tensor(GROUP_OF[:200])
        left = torch.tensor(
            [plain_anisotropy(wanted[groups != group]) for group in groups.unique()], dtype=torch.float64
        )
        wanted_stderr = ((len(left) - 1) * left.var(unbiased=False)).sqrt()
        assert found.after.stderr == pytest.approx(float(wanted_stderr), rel=1e-3)
        assert Centering.load(file) == found.centering
        assert found.file == str(file)
    assert found.before.anisotropy > 0.7
    assert abs(found.after.anisotropy) < 0.01
    assert isinstance(found.held_out, Judged)
    assert found.summary()[1].startswith("It opens the cone: ")
    assert "a small mean cosine is no quality; labelled pairs tell." in found.summary()[-1]


def test_result_is_strict_json(minilm: Measurement) -> None:
    found = center_of(minilm, layer=2, method="all-but-the-top")
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(data) == [
        "schema",
        "experiment",
        "model",
        "corpus",
        "layer",
        "layer_name",
        "method",
        "components",
        "shrinkage",
        "file",
        "fitted_on",
        "before",
        "after",
        "held_out",
        "dependence",
        "summary",
        "manifest",
    ]
    assert (data["schema"], data["experiment"]) == ("cone_kernels/centering/1", "centering")
    assert (data["method"], data["components"], data["shrinkage"], data["file"]) == ("all-but-the-top", 3, None, None)
    assert data["before"] == {"value": found.before.anisotropy, "stderr": found.before.stderr}
    assert data["fitted_on"] == {"state": None, "sentences": 200, "prompt": None}
    assert data["summary"] == list(found.summary())
    assert data["manifest"]["centering_fingerprint"] == found.centering.fingerprint()
    assert "CenteringResult(Centering(all-but-the-top of 3 components, 384 wide, layer 2" in repr(found)


def test_a_state_alone_has_no_after(minilm: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "minilm.safetensors"
    minilm.state.save(path)
    found = center(state=path, layer=2)
    assert found.after is None
    assert found.before.anisotropy == pytest.approx(center_of(minilm, layer=2).before.anisotropy, abs=1e-6)
    data = found.to_dict()
    assert data["after"] is None
    assert data["reason"].startswith("after: a saved state has no sentence vectors")
    assert found.summary() == (
        f"The centering was fitted on 200 sentences; the mean cosine of two sentences at layer 2 is "
        f"{found.before.anisotropy:.3f} without it.",
    )
    assert found.centering == center_of(minilm, layer=2).centering


def test_a_state_fits_and_a_corpus_measures(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    measure(folder, SENTENCES[:20], second_moment=True, save_state=path)
    found = center(folder, SENTENCES[20:], state=path, method="whitening")
    assert found.centering == center(state=path, method="whitening").centering
    kept = measure(folder, SENTENCES[20:], keep_vectors=[-1]).vectors[3]
    rows = torch.cat([block for _, block in kept.blocks()]).double()
    assert found.after is not None
    assert found.after.anisotropy == pytest.approx(plain_anisotropy(found.centering(rows)), abs=1e-9)
    assert found.fitted_on == {"state": "half", "sentences": 20, "prompt": None}
    # The state has what is fitted on.
    assert found.manifest["options"]["second_moment"] is False
    assert "measured on 20 sentences, fitted on the 20 sentences of half" in found.summary()[0]
    assert isinstance(found.held_out, Judged)
    assert (found.held_out.folds, found.held_out.fitted_on) == (1, 20)
    assert found.held_out.value == pytest.approx(found.after.anisotropy, abs=1e-9)
    assert found.held_out.before == pytest.approx(found.before.anisotropy, abs=1e-9)


def test_a_state_of_the_same_sentences_proves_nothing_on_them(folder: Path, tmp_path: Path) -> None:
    """What is fitted on the very rows is judged in quarters, also where the fit comes from a file."""
    path = tmp_path / "same.safetensors"
    texts = [f"{text} w{4 + at}" for at in range(4) for text in SENTENCES]
    measure(folder, texts, second_moment=True, save_state=path)
    plain, found = (center(folder, texts, state=state, method="whitening") for state in (None, path))
    assert isinstance(found.held_out, Judged)
    assert found.held_out.folds == 4
    assert found.held_out == plain.held_out
    rows = rows_around(0.5, 300)
    vectors(rows).state.save(path)
    plain, found = (center(vectors=rows, state=state) for state in (None, path))
    assert isinstance(found.held_out, Judged)
    assert found.held_out.folds == 4
    assert found.held_out == plain.held_out


def test_what_is_not_defined_has_a_reason(folder: Path) -> None:
    data = center(folder, ["w5 w6"]).to_dict()
    assert data["manifest"]["options"]["second_moment"] is False
    assert (data["before"], data["after"]) == ({"value": None, "stderr": None},) * 2
    assert data["reason"].count("a pair needs two") == 2
    assert data["held_out"] is None
    assert "held_out: there are too few rows to judge it on others than those it is fitted on: 1" in data["reason"]
    assert data["summary"] == []


def result(
    value: float, stderr: float = 0.01, bound: float = 0.02, before: float = 0.7, held_out: str | None = None
) -> CenteringResult:
    levels = [Level(one, stderr, 1000, 0, 0, 1.0) for one in (before + 0.1, -0.001)]  # of all rows
    centering = Centering.fit(moments_of(cone()))
    judged = Judged(value, stderr, before, Claim(value - before, 0.0, bound), 4, 300)
    cone_claim = Claim(before, 0.0, 0.05)
    fitted_on = {"state": None, "sentences": 400}
    return CenteringResult(
        {}, {}, 4, "block", levels[0], levels[1], fitted_on, cone_claim, held_out or judged, None, {}, centering
    )


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        ({"value": 0.01}, "It opens the cone: what is left is not told from 0."),
        ({"value": 0.14}, "It opens the cone: 20.0% of it is left."),
        # Two standard errors on either side of 0.
        ({"value": 0.02}, "It opens the cone: what is left is not told from 0."),
        ({"value": 0.023}, "It opens the cone: 3.3% of it is left."),
        ({"value": -0.02}, "It opens the cone: what is left is not told from 0."),
        ({"value": -0.023}, "Two sentences point apart on average now."),
        ({"value": 0.8}, "It makes the cone tighter: 300 sentences are too few to fit it on."),
        ({"value": -0.3}, "Two sentences point apart on average now."),
        (
            {"value": 0.65, "bound": 0.1},
            "Whether it opens the cone is undecided; about 4,000 sentences would decide it.",
        ),
        ({"value": 0.0, "before": 0.02}, "No cone was told from noise before."),
    ],
)
def test_summary_says_what_is_seen(judged: dict[str, float], words: str) -> None:
    found = result(**judged)
    first, second, third = found.summary()
    assert (
        f"to {judged['value']:.3f} ± 0.010, measured on sentences that it was not fitted on (each quarter of" in first
    )
    assert second == words
    assert "labelled pairs tell" in third
    # Nothing praises a cone for being open.
    assert "is open" not in " ".join(found.summary())


def test_two_prompts_are_told_apart() -> None:
    fitted_on = {"state": "other", "sentences": 400, "prompt": "query: "}
    _, said, *_ = replace(result(0.1), model={"prompt": None}, fitted_on=fitted_on).summary()
    assert said == "It was fitted with the prompt “query: ”, and measured without a prompt."


def test_what_is_measured_where_it_was_fitted_proves_nothing() -> None:
    said, unmeasured = result(0.0, held_out="there are too few").summary()
    assert unmeasured == QUALITY_NOT_MEASURED
    assert said.endswith(
        "measured on the 400 sentences that it was fitted on, which proves nothing: there are too few."
    )


def rows_around(mean: float, n: int, seed: int = 0) -> torch.Tensor:
    return mean + torch.randn(n, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_a_quarter_is_judged_by_what_the_others_fit(method: CenteringMethod) -> None:
    rows = rows_around(0.5, 700)
    found = center(vectors=rows, method=method)
    blocks = jackknife_blocks(torch.tensor([GROUP_OF[:700].count(group) for group in range(64)]))
    fold = blocks[torch.tensor(GROUP_OF[:700])] % 4
    total, pairs = [0.0, 0.0], 0
    for number in range(4):
        mine, others = rows[fold == number], rows[fold != number]
        fit = Centering.fit(moments_of(others), method=method)
        # Neighbours are in one block; pairs of two blocks count.
        block = blocks[torch.tensor(GROUP_OF[:700])][fold == number]
        apart = block[:, None] != block
        pairs += int(apart.sum())
        for at, side in enumerate((mine, fit(mine))):
            units = torch.nn.functional.normalize(side, dim=1)
            total[at] += float((units @ units.mT)[apart].sum())
    judged = found.held_out
    assert isinstance(judged, Judged)
    assert (judged.before, judged.value) == pytest.approx([one / pairs for one in total], abs=1e-9)
    assert judged.folds == 4
    assert judged.fitted_on == min(int((fold != number).sum()) for number in range(4))


def test_two_blocks_of_rows_for_each_quarter_are_the_fewest() -> None:
    """64 rows are eight blocks, and 63 are seven."""
    few, enough = (center(vectors=rows_around(0.3, n)).held_out for n in (63, 64))
    assert few == "there are too few rows to judge it on others than those it is fitted on: 63"
    assert isinstance(enough, Judged)


def test_the_held_out_value_is_that_of_new_rows_and_not_that_of_the_rows_fitted_on() -> None:
    """In-sample −1/(n−1) whatever the data; held out, what a mean of so few rows does to others."""
    fitted, new = [], []
    for seed in range(20):
        found = center(vectors=rows_around(0.3, 64, seed))
        assert found.after is not None
        assert isinstance(found.held_out, Judged)
        assert found.after.anisotropy < 0
        fitted.append(found.held_out.value)
        others = rows_around(0.3, 400, seed + 1000)
        few = Centering.fit(moments_of(rows_around(0.3, 48, seed)))
        new.append(plain_anisotropy(few(others)))
    assert sum(fitted) / 20 == pytest.approx(sum(new) / 20, abs=0.012)
    assert sum(new) / 20 > 0.015


def test_a_centering_of_few_rows_is_said_to_close_the_cone(tmp_path: Path) -> None:
    rows = rows_around(0.08, 1200)
    state = vectors(rows[:12]).state
    state.save(tmp_path / "few.safetensors")
    found = center(vectors=rows[12:], state=tmp_path / "few.safetensors")
    assert "makes the cone tighter: 12 vectors are too few" in found.summary()[1]


def test_options_that_do_not_fit_are_refused(folder: Path, minilm: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "minilm.safetensors"
    minilm.state.save(path)
    with pytest.raises(ValueError, match="model, corpus, state: got none"):
        center()
    with pytest.raises(ValueError, match="corpus: got none"):
        center(folder)
    with pytest.raises(ValueError, match="model: got none"):
        center(corpus=SENTENCES, state=path)
    with pytest.raises(ValueError, match="components: got 2"):
        center("no such model", SENTENCES, components=2)
    with pytest.raises(ValueError, match="state: got width 384; it must be 32"):
        center(folder, SENTENCES, state=path)
    with pytest.raises(ValueError, match=r"layer: got 3; the measurement kept the sentence vectors of \[2, 6\]"):
        center_of(minilm, layer=3)


def cone_center(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["center", *(str(argument) for argument in arguments)])


def test_command(folder: Path, tmp_path: Path) -> None:
    corpus, file, report = tmp_path / "corpus.txt", tmp_path / "c.safetensors", tmp_path / "r.json"
    corpus.write_text("\n".join(SENTENCES))
    arguments = ["--model", folder, "--corpus", corpus, "--method", "whitening", "--shrinkage", "0.2", "-o", file]
    done = cone_center(*arguments, "--json", report)
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())
    assert Centering.load(file).fingerprint() == found["manifest"]["centering_fingerprint"]
    lines = done.stdout.splitlines()
    assert lines[0] == "whitening, shrinkage 0.2 at layer 3 (encoder.layer.2)"
    for name in ("before", "after"):
        cells = next(line for line in lines if line.startswith(name)).split()
        assert cells[1:3] == [f"{found[name]['value']:.4f}", f"{found[name]['stderr']:.4f}"]
    assert max(map(len, lines)) <= 80
    assert " ".join(found["summary"]) in " ".join(done.stdout.split())
    alone = cone_center(*arguments, "--json", "-")
    assert json.loads(alone.stdout)["after"] == found["after"]


def test_command_on_a_state(folder: Path, tmp_path: Path) -> None:
    state, file = tmp_path / "s.safetensors", tmp_path / "c.safetensors"
    measure(folder, SENTENCES, second_moment=True, save_state=state)
    done = cone_center("--state", state, "--layer", "1", "--method", "all-but-the-top", "--output", file)
    assert done.exit_code == 0, done.output
    assert "all-but-the-top, 1 component at layer 1 (encoder.layer.0)" in done.stdout
    assert "after: a saved state has no sentence vectors" in " ".join(done.stdout.split())
    assert Centering.load(file).layer == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "m"],
        ["--state", "s", "--corpus", "c.txt"],
        ["--state", "s", "--components", "2"],
        ["--state", "s", "--shrinkage", "0.5", "--method", "mean"],
        ["--state", "s", "--method", "whitening", "--shrinkage", "1.5"],
        ["--state", "s", "--method", "all-but-the-top", "--components", "0"],
        ["--state", "s", "--method", "median"],
        ["--state", "s", "--output", "s"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = cone_center(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_the_command_knows_every_method() -> None:
    choice = next(parameter for parameter in command.params if parameter.name == "method").type
    assert tuple(choice.choices) == tuple(METHODS)  # type: ignore[attr-defined]
    for method in METHODS:
        check_method(method, None, None)


def test_example(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, file = tmp_path / "corpus.txt", tmp_path / "opened.safetensors"
    corpus.write_text("\n".join(SENTENCES))
    arguments = ["centering.py", "--model", folder, "--corpus", corpus, "--output", file]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[:3]] == list(METHODS)
    assert set(load_file(file)) == {"mean", "matrix"}
