"""Experiment 4 on spaces whose relation is known: the same, rotated, of another width, and against plain numpy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cone_kernels import ConeState
from cone_kernels.corpora import Corpus
from cone_kernels.experiments.axes_pair import Chance
from cone_kernels.experiments.rotation import rotation, rotation_of
from cone_kernels.experiments.rotation_result import RotationResult
from cone_kernels.models import load_model
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement, from_state
from cone_kernels.runs.sentence_vectors import SentenceVectors
from cone_kernels.statistics.directions import random_cosine_mean, random_cosine_p_value, random_cosine_quantile
from tests.support.moment_cases import normal
from tests.support.recording_probe import plain_anisotropy
from tests.support.tiny_checkpoints import save_checkpoint

SENTENCES = [f"w{4 + i % 90} w{4 + i * i % 83} w{4 + i * 7 % 71}" for i in range(40)]


def rows_of(measurement: Measurement, layer: int) -> Tensor:
    """(n, D) float64"""
    return torch.cat([block for _, block in measurement.vectors[layer].blocks()]).double()


def of_rows(rows: Tensor, name: str, fingerprint: str = "one", layer: int = 0) -> Measurement:
    """A measurement as if a model had given these sentence vectors (n, D)."""
    state = ConeState.empty([layer], rows.shape[1], second_moment=True)
    state.sentence.update(rows)
    measurement = from_state(state)
    corpus = {**measurement.corpus, "name": "rows", "fingerprint": fingerprint}
    vectors = {layer: SentenceVectors.from_rows(rows)}
    return replace(measurement, model={**measurement.model, "name": name}, corpus=corpus, vectors=vectors)


def plain_axes(rows: Tensor) -> np.ndarray:
    """Eigenvectors of the covariance, (d, d) rows, the first one first."""
    return np.linalg.eigh(np.cov(rows.numpy().T))[1].T[::-1]


def orthogonal(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, dtype=torch.float64, seed=seed, shift=0)).Q


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
    return rotation([folder, other, folder], SENTENCES, k=3)


def test_minilm_against_itself(minilm: Measurement) -> None:
    found = rotation_of([minilm, minilm], layer=-1)
    for matrix in (found.axis_cosine, found.mean_cosine, found.functional_cosine):
        np.testing.assert_allclose(matrix, np.ones((2, 2)), atol=1e-9)
    np.testing.assert_allclose(found.principal_angles, np.zeros((2, 2, 4)), atol=1e-9)
    rows = rows_of(minilm, 6)
    wanted = plain_anisotropy(rows - rows.mean(0))
    np.testing.assert_allclose(found.centered_anisotropy, np.full((2, 2), wanted), atol=1e-9)
    assert found.p_value == ((0.0, 0.0), (0.0, 0.0))
    assert found.verdict == (("share", "share"), ("share", "share"))
    assert re.search(r"share the space of their top \d axes: overlap 1.00 \(from 1.00 to 1.00", found.summary()[0])
    assert "carries over" in found.summary()[1]


def test_minilm_against_its_rotated_space(minilm: Measurement) -> None:
    rows = rows_of(minilm, 2)
    turn = orthogonal(384, 3)
    axes, mean = plain_axes(rows), rows.mean(0).numpy()
    found = rotation_of([of_rows(rows, "minilm"), of_rows(rows @ turn.T, "turned")])
    q = turn.numpy()
    assert found.axis_cosine[0][1] == pytest.approx(abs(axes[0] @ q @ axes[0]), abs=1e-8)
    assert found.mean_cosine[0][1] == pytest.approx(abs(mean @ q @ mean) / (mean @ mean), abs=1e-8)
    angles = np.degrees(np.arccos(np.linalg.svd(axes[:4] @ q @ axes[:4].T)[1]))
    np.testing.assert_allclose(found.principal_angles[0][1], np.sort(angles), atol=1e-6)
    assert found.functional_cosine[0][1] == pytest.approx(1, abs=1e-9)
    # The centring vector of the one does nothing for the other.
    first, second = rows, rows @ turn.T
    wanted = [[plain_anisotropy(a - b.mean(0)) for b in (first, second)] for a in (first, second)]
    np.testing.assert_allclose(found.centered_anisotropy, wanted, atol=1e-9)
    assert found.null[0][1] == Chance(random_cosine_mean(384), random_cosine_quantile(0.95, 384))
    assert found.p_value[0][1] == random_cosine_p_value(found.axis_cosine[0][1], 384)
    chance, same, *means = found.summary()
    assert found.verdict == (("share", "differ"), ("differ", "share"))
    assert "axes of minilm and turned are no closer than chance: |cos| 0.0" in chance
    assert "of directions drawn from their covariances one pair in twenty has more than 0." in chance
    assert "their axes correlate with |r| 1.000. It is the same axis in a rotated space." in same
    # Both means are in the vectors then, at a right angle: the cone is tighter than before.
    assert len(means) == 2
    assert all(f"makes the cone tighter: {wanted[0][1]:.3f}." in line for line in means)


def test_minilm_against_a_model_of_another_width(minilm: Measurement, folder: Path, snli: Path) -> None:
    tiny = measure(folder, snli, limit=200, second_moment=True, keep_vectors=[-1])
    found = rotation_of([minilm, tiny], layer=-1)
    assert [model.hidden_size for model in found.models] == [384, 32]
    data = found.to_dict()
    for name in ("axis_cosine", "mean_cosine", "centered_anisotropy", "principal_angles", "p_value", "null"):
        assert data[name][0][1] is None
        assert data[name][1][0] is None
        assert data[name][1][1] is not None
    assert [reason for reason in found.reasons if "(32, 384): directions of different spaces have no angle" in reason]
    along = [rows.numpy() @ plain_axes(rows)[0] for rows in (rows_of(minilm, 6), rows_of(tiny, 3))]
    wanted = abs(np.corrcoef(along[0], along[1])[0, 1])
    assert found.functional_cosine[0][1] == pytest.approx(wanted, abs=1e-6)
    assert found.functional_cosine[1][0] == found.functional_cosine[0][1]
    assert "are 384 and 32 wide, so their axes have no angle; over the same sentences" in found.summary()[0]


def test_models_of_one_width_against_numpy(folder: Path, other: Path, result: RotationResult) -> None:
    rows = []
    for path in (folder, other):
        loaded = load_model(path)
        with torch.no_grad():
            outputs = [loaded.model(**loaded.tokenizer(text, return_tensors="pt")) for text in SENTENCES]
        rows.append(torch.stack([output.last_hidden_state[0].double().mean(0) for output in outputs]))
    rows.append(rows[0])
    axes = [plain_axes(x) for x in rows]
    means = [x.mean(0).numpy() for x in rows]
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            unit = [mean / np.linalg.norm(mean) for mean in (means[i], means[j])]
            along = [x.numpy() @ basis[0] for x, basis in ((a, axes[i]), (b, axes[j]))]
            assert result.axis_cosine[i][j] == pytest.approx(abs(axes[i][0] @ axes[j][0]), abs=1e-5)
            assert result.mean_cosine[i][j] == pytest.approx(abs(unit[0] @ unit[1]), abs=1e-6)
            assert result.functional_cosine[i][j] == pytest.approx(abs(np.corrcoef(*along)[0, 1]), abs=1e-5)
            assert result.centered_anisotropy[i][j] == pytest.approx(plain_anisotropy(a - b.mean(0)), abs=1e-5)
    assert [model.level.anisotropy for model in result.models] == pytest.approx(
        list(map(plain_anisotropy, rows)), abs=1e-5
    )
    assert result.models[0].explained_variance_ratio == pytest.approx(
        np.linalg.eigvalsh(np.cov(rows[0].numpy().T))[-1] / np.trace(np.cov(rows[0].numpy().T)), abs=1e-5
    )


def test_to_dict_is_strict_json(result: RotationResult) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert list(data) == [
        "schema",
        "experiment",
        "models",
        "corpus",
        "k",
        "axis_cosine",
        "mean_cosine",
        "principal_angles",
        "centered_anisotropy",
        "centered_stderr",
        "functional_cosine",
        "null",
        "p_value",
        "verdict",
        "axis_stderr",
        "overlap",
        "dependence",
        "reasons",
        "summary",
        "manifest",
    ]
    assert data["verdict"] == [list(row) for row in result.verdict]
    pair = result.pairs[0][1]
    assert pair is not None
    assert data["overlap"][1][0]["value"] == pair.overlap.value
    assert (data["overlap"][0][0], data["axis_stderr"][0][0]) == (None, None)
    assert (data["schema"], data["experiment"], data["k"]) == ("cone_kernels/rotation/1", "rotation", 3)
    assert data["axis_cosine"] == [list(row) for row in result.axis_cosine]
    assert [len(angles) for row in data["principal_angles"] for angles in row] == [3] * 9
    model = data["models"][1]
    assert (model["architecture"], model["hidden_size"], model["layer"]) == ("BertModel", 32, 3)
    assert (model["anisotropy"], model["count"]) == (result.models[1].level.anisotropy, 40)
    assert len({model["name"] for model in data["models"]}) == 3
    assert data["corpus"]["sentences"] == 40
    assert data["corpus"]["tokens"] == 3 * 40 * 5
    assert [run["dtype"] for run in data["manifest"]["measurements"]] == ["float32"] * 3
    assert data["summary"] == list(result.summary())
    assert (data["reasons"], result.n_bad) == ([], 0)


def test_saved_states_have_no_functional_comparison(folder: Path, other: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, file in zip((folder, other), files, strict=True):
        measure(path, SENTENCES, second_moment=True, save_state=file)
    states = rotation(state=files)
    mixed = rotation([folder], SENTENCES, state=files[1:])
    whole = rotation([folder, other], SENTENCES)
    for found in (states, mixed):
        np.testing.assert_allclose(found.axis_cosine, whole.axis_cosine, atol=1e-12)
        np.testing.assert_allclose(found.mean_cosine, whole.mean_cosine, atol=1e-12)
        assert math.isnan(found.functional_cosine[0][1])
    assert [model.name for model in states.models] == ["a", "b"]
    assert np.isnan(states.centered_anisotropy).all()
    # The vectors of the model can be centred with the mean of the state.
    np.testing.assert_allclose(mixed.centered_anisotropy[0], whole.centered_anisotropy[0], atol=1e-12)
    assert np.isnan(mixed.centered_anisotropy[1]).all()
    assert mixed.reasons == ("centered_anisotropy, functional_cosine of b: a saved state has no sentence vectors",)
    assert states.corpus["sentences"] == 40
    json.dumps(states.to_dict(), allow_nan=False)


def test_other_sentences_have_no_functional_comparison() -> None:
    rows = normal(50, 6, dtype=torch.float64)
    found = rotation_of([of_rows(rows, "a"), of_rows(rows[:40] * 2, "b", fingerprint="two")], k=2)
    assert math.isnan(found.functional_cosine[0][1])
    assert found.functional_cosine[0][0] == pytest.approx(1, abs=1e-12)
    assert found.reasons == ("functional_cosine of a and b: they were measured on other sentences",)
    assert found.to_dict()["corpus"]["sentences"] is None


def test_vectors_left_out_are_left_out_of_both() -> None:
    rows = normal(60, 6, dtype=torch.float64) * torch.linspace(1, 3, 6, dtype=torch.float64)
    first, second = rows.clone(), rows @ orthogonal(6, 0)
    first[3], first[4, 2], second[9], second[12] = 0, math.nan, math.inf, 0
    found = rotation_of([of_rows(first, "a"), of_rows(second, "b")], k=2)
    both = torch.ones(60, dtype=torch.bool).index_fill(0, torch.tensor([3, 4, 9, 12]), False)
    left_out = (torch.tensor([3, 4]), torch.tensor([9, 12]))
    used = [
        rows[torch.ones(60, dtype=torch.bool).index_fill(0, without, False)]
        for rows, without in zip((first, second), left_out, strict=True)
    ]
    along = [rows[both].numpy() @ plain_axes(of)[0] for rows, of in zip((first, second), used, strict=True)]
    assert found.functional_cosine[0][1] == pytest.approx(abs(np.corrcoef(*along)[0, 1]), abs=1e-9)
    wanted = plain_anisotropy(used[0] - used[1].mean(0))
    assert found.centered_anisotropy[0][1] == pytest.approx(wanted, abs=1e-9)
    assert found.n_bad == 2


def test_a_subspace_that_the_sentences_do_not_span_has_no_angles() -> None:
    flat = normal(50, 2, dtype=torch.float64) @ normal(2, 6, dtype=torch.float64, seed=1)
    found = rotation_of([of_rows(flat, "flat"), of_rows(normal(50, 6, dtype=torch.float64), "full")], k=3)
    assert [[angles is None for angles in row] for row in found.principal_angles] == [[True, True], [True, False]]
    assert found.reasons == ("principal_angles of flat: its sentence vectors vary in fewer directions than k",)


def test_a_mean_of_zero_has_no_direction() -> None:
    half = torch.round(4 * normal(25, 6, dtype=torch.float64, shift=0))
    half[half.abs().sum(1) == 0] = 1
    found = rotation_of([of_rows(torch.cat([half, -half]), "even"), of_rows(half.repeat(2, 1) + 3, "full")], k=2)
    assert np.isnan(found.mean_cosine).tolist() == [[True, True], [True, False]]
    assert found.reasons == ("mean_cosine of even: the mean of its sentence vectors is zero",)


def test_few_sentences_that_have_a_vector_in_both_models_are_told() -> None:
    rows = normal(40, 6, dtype=torch.float64)
    first, second = rows.clone(), rows.clone()
    first[:20], second[21:] = 0, 0
    found = rotation_of([of_rows(first, "a"), of_rows(second, "b")], k=1)
    assert math.isnan(found.functional_cosine[0][1])
    assert "functional_cosine of a and b: they have too few sentence vectors in common" in found.reasons


# The spread of vectors with two axes that are nearly alike, then a gap.
SPREAD = torch.tensor([3.0, 2.95, *torch.linspace(1.2, 0.3, 18).tolist()], dtype=torch.float64)


def spread_rows(n: int, seed: int) -> Tensor:
    return normal(n, 20, dtype=torch.float64, seed=seed, shift=0) * SPREAD


def test_two_samples_of_one_model_share_their_axes_though_the_first_ones_are_swapped() -> None:
    rows, others = spread_rows(600, 0), spread_rows(600, 1)
    found = rotation_of([of_rows(rows, "a"), of_rows(others, "b", fingerprint="two")])
    # The one axis is no one's: the two swap places from sample to sample.
    assert found.axis_cosine[0][1] < 0.9
    assert found.verdict == (("share", "share"), ("share", "share"))
    said = found.summary()[0]
    assert said.startswith("a and b share the space of their top 2 axes: overlap 1.0")
    pair = found.to_dict()["overlap"][0][1]
    assert (pair["axes"], pair["needed"]) == (2, None)
    assert pair["value"] < pair["corrected"] < pair["high"]
    assert pair["low"] > 0.81
    assert all(0.8 < half < 1 for half in pair["halves"])
    # In what these vectors vary, directions are closer than in the whole space.
    null = found.null[0][1]
    assert null is not None
    assert pair["null"]["p95"] > null.p95**2
    assert found.to_dict()["axis_stderr"][0][1] > 0


def test_axes_of_few_sentences_are_undecided_and_how_many_would_do_is_told() -> None:
    found = rotation_of([of_rows(spread_rows(24, 0), "a"), of_rows(spread_rows(24, 1), "b", fingerprint="two")])
    assert found.verdict[0][1] == "undecided"
    said = found.summary()[0]
    assert said.startswith("Whether a and b share their axis is undecided by 24 sentences: |cos| ")
    needed = re.search(r"About ([\d,]+) sentences would decide it", said)
    assert needed is not None
    assert int(needed[1].replace(",", "")) == found.to_dict()["overlap"][0][1]["needed"] > 24


def test_axes_that_are_partly_apart_differ() -> None:
    rows = spread_rows(600, 0)
    apart = rows.clone()
    apart[:, [1, 10]] = rows[:, [10, 1]]
    found = rotation_of([of_rows(rows, "a"), of_rows(apart, "b"), of_rows(rows * 2, "c")])
    assert found.verdict == (("share", "differ", "share"), ("differ", "share", "differ"), ("share", "differ", "share"))
    shared, differ, *_ = found.summary()
    assert shared == "a and c share the space of their top 2 axes: overlap 1.00 (from 1.00 to 1.00 with its error)."
    assert differ.startswith(
        "The spaces of the top 2 axes of a and c on one side and b on the other differ: overlap 0.5"
    )


def test_of_more_than_two_models_that_share_their_axes_any_two_do() -> None:
    rows = spread_rows(600, 0)
    found = rotation_of([of_rows(times * rows, name) for times, name in ((1, "a"), (2, "b"), (3, "c"))])
    said = found.summary()[0]
    assert (found.k, [len(angles or ()) for angles in found.principal_angles[0]]) == (4, [4, 4, 4])
    shared = "a, b and c share the space of their top 2 axes: overlap 1.00 (from 1.00 to 1.00 with its error)"
    assert said == f"{shared} between any two."


def test_axes_of_long_topics_are_told_with_a_warning() -> None:
    topics = spread_rows(32, 0).repeat_interleave(64, 0)[:2000] + 0.3 * spread_rows(2000, 1)
    found = rotation_of([of_rows(topics + 1, "a"), of_rows(spread_rows(2000, 2) + 1, "b", fingerprint="two")])
    assert [one.warning for one in found.dependence] == [True, False]
    assert "Neighbouring sentences are alike over long stretches" in found.summary()[-1]


def test_states_are_judged_as_if_sentences_were_normal() -> None:
    states = []
    for seed in (0, 1):
        state = ConeState.empty([0], 20, second_moment=True)
        state.sentence.update(spread_rows(600, seed))
        states.append(state)
    found = rotation(state=states)
    assert found.verdict[0][1] == "share"
    assert found.to_dict()["overlap"][0][1]["halves"] == [None, None]


def test_each_model_has_its_layer(folder: Path, minilm: Measurement) -> None:
    found = rotation([folder, load_model(folder)], iter(SENTENCES), layer=[1, -1], k=1)
    assert [(model.layer, model.layer_name) for model in found.models] == [
        (1, "encoder.layer.0"),
        (3, "encoder.layer.2"),
    ]
    assert [model.name.rpartition(" ")[2] for model in found.models] == ["L1", "L3"]
    assert found.functional_cosine[0][1] < 1
    layers = rotation_of([minilm, minilm], layer=[2, 6])
    assert layers.models[0].level.anisotropy > 0.7 > 0.1 > layers.models[1].level.anisotropy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": ["m"], "corpus": ["w5"]}, "model, state: got 1 in all"),
        ({"model": [], "state": []}, "model, state: got 0 in all"),
        ({"model": ["m", "n"]}, "model, corpus: got one without the other"),
        ({"state": ["a", "b"], "corpus": ["w5"]}, "model, corpus: got one without the other"),
        ({"model": ["m", "n"], "corpus": ["w5"], "layer": [1, 2, 3]}, "layer: got 3 numbers for 2 models"),
        ({"model": ["m", "n"], "corpus": ["w5"], "k": 0}, "k: got 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rotation(**options)


def test_one_model_in_place_of_several_is_refused(folder: Path) -> None:
    for model in (str(folder), folder, load_model(folder)):
        with pytest.raises(TypeError, match="it must be a sequence of them"):
            rotation(model, SENTENCES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state: got"):
        rotation([folder], SENTENCES, state="s.safetensors")


def test_states_and_corpora_that_give_no_axis_are_refused(folder: Path) -> None:
    good = of_rows(normal(9, 6, dtype=torch.float64), "good")
    bare = from_state(ConeState.empty([0], 6))
    for measurement, words in (
        (bare, "state: got state without second moments"),
        (of_rows(torch.ones(1, 6), "short"), "corpus: got 1 sentence vectors of short at layer 0"),
        (of_rows(torch.ones(9, 6), "alike"), "corpus: got equal sentence vectors of alike at layer 0"),
    ):
        with pytest.raises(ValueError, match=words):
            rotation_of([good, measurement], k=1)
    with pytest.raises(ValueError, match="k: got 7; it must be from 1 to d = 6"):
        rotation_of([good, good], k=7)
    with pytest.raises(ValueError, match="layer: got 1; the measurement kept the sentence vectors of"):
        rotation_of([measure(folder, SENTENCES, second_moment=True, keep_vectors=[3])] * 2, layer=1)


def test_a_corpus_that_changes_is_refused(folder: Path) -> None:
    class Growing:
        size = 10

        def __iter__(self) -> Iterator[str]:
            self.size += 1
            return iter(SENTENCES[: self.size])

    with pytest.raises(ValueError, match="corpus: got other sentences when it was read again"):
        rotation([folder, folder], Corpus.from_sentences(Growing()))


@pytest.mark.parametrize("left_out", [[0], range(3, 11)])
def test_errors_are_paired_where_a_model_has_no_vector_for_some_sentences(left_out: Sequence[int]) -> None:
    """What the choice of sentences does to two models of the same vectors cancels, but for those left out."""
    rows = spread_rows(300, 0)
    second = rows.clone()
    second[list(left_out)] = 0
    found = rotation_of([of_rows(rows, "a"), of_rows(second, "b")], k=2)
    pair = found.pairs[0][1]
    assert pair is not None
    assert found.verdict[0][1] == "share"
    own = rotation_of([of_rows(rows, "a"), of_rows(rows, "b")], k=2).pairs[0][1]
    apart = rotation_of([of_rows(rows, "a"), of_rows(spread_rows(300, 1), "b", fingerprint="two")], k=2).pairs[0][1]
    assert own is not None
    assert apart is not None
    assert own.overlap.noise <= pair.overlap.noise < apart.overlap.noise / 10
