"""What is left of a mean cosine without a few dimensions: vector by vector where that can be, else from the sums."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from cone_kernels import ConeState, metrics
from cone_kernels.corpora import Corpus
from cone_kernels.experiments import layers, run, vectors
from cone_kernels.experiments.layers import layers_of, shape_of
from cone_kernels.experiments.rogue_dimensions import MOST_LEFT_OUT, WithoutRogue
from cone_kernels.experiments.without_rogue import AMONG, SENTENCES
from cone_kernels.models import load_model
from cone_kernels.report.inline import plain
from cone_kernels.report.node import Node
from cone_kernels.report.tables.layers import without_rogue
from cone_kernels.runs.measurement import from_state
from cone_kernels.vector_files import Vectors
from tests.support.encoding_folders import dense, save_encoder, save_tiny_encoder
from tests.support.tiny_checkpoints import save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [f"w{4 + i % 60} w{5 + i * 7 % 50} w{6 + i * 11 % 43}" for i in range(400)]
MASSIVE = [3, 17]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with two massive dimensions at each layer, as large models have them."""
    folder = tmp_path_factory.mktemp("massive")
    save_checkpoint(folder)
    model = AutoModel.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        if name.endswith("LayerNorm.bias"):
            parameter.data[MASSIVE] = torch.tensor([9.0, -6.0])
    model.save_pretrained(folder)
    return folder


def pooled(folder: Path, texts: Sequence[str]) -> Tensor:
    """(L, n, D) the mean of each sentence's hidden states."""
    return hidden_states(folder, texts).mean(2)


def hidden_states(folder: Path, texts: Sequence[str]) -> Tensor:
    """(L, n, T, D) of texts that are all of one length: the tokenizer refuses others, for nothing is padded."""
    loaded = load_model(folder)
    with torch.no_grad():
        output = loaded.model(**loaded.tokenizer(texts, return_tensors="pt"), output_hidden_states=True)
    return torch.stack(output.hidden_states).double()


def mean_cosine(rows: Tensor, without: Sequence[int] = ()) -> float:
    """Over all pairs, as its definition says."""
    kept = torch.ones(rows.shape[1], dtype=torch.bool)
    kept[list(without)] = False
    unit = torch.nn.functional.normalize(rows[:, kept], dim=1)
    # The sum over all pairs, in stretches: of 16,384 rows the products of all pairs would not fit into the cache.
    total = sum(float((stretch @ unit.T).sum()) for stretch in unit.split(256))
    return (total - len(unit)) / (len(unit) * (len(unit) - 1))


def jackknife(rows: Tensor, without: Sequence[int]) -> float:
    """The standard error over 64 groups, the rows of each left out in turn."""
    groups = torch.tensor(metrics_groups(len(rows)))
    left_out = torch.tensor([mean_cosine(rows[groups != group], without) for group in groups.unique()])
    m = len(left_out)
    return float(((m - 1) / m * (left_out - left_out.mean()).square().sum()).sqrt())


def metrics_groups(n: int) -> list[int]:
    from cone_kernels.sums import jackknife_groups

    return list(jackknife_groups(torch.arange(n)).tolist())


def test_of_few_sentences_it_is_exact(folder: Path) -> None:
    texts = TEXTS[:100]
    found = layers(folder, texts, rogue=2)
    hidden = pooled(folder, texts)
    for at, row in enumerate(found.layers):
        assert sorted(one.dimension for one in row.rogue_dimensions) == MASSIVE
        assert row.without_rogue.value == pytest.approx(mean_cosine(hidden[at], MASSIVE), abs=1e-6)
        assert row.without_rogue.stderr == pytest.approx(jackknife(hidden[at], MASSIVE), abs=1e-6)
        assert row.without_rogue.count == 100
    entry = found.to_dict()["layers"][2]
    names = ("", "_stderr", "_count")
    values = [entry[f"anisotropy_without_rogue{name}"] for name in names]
    one = found.layers[2].without_rogue
    assert values == [one.value, one.stderr, 100]
    (said,) = [line for line in found.summary() if line.startswith("A few dimensions")]
    most = max(found.layers, key=lambda row: sum(one.share for one in row.rogue_dimensions))
    left = most.without_rogue
    assert said.endswith(f"of the mean cosine, which is {left.value:.3f} ± {left.stderr:.3f} without them.")


def test_of_many_a_draw_runs_once_more(folder: Path) -> None:
    found = layers(folder, TEXTS, rogue=2)
    drawn = [text for text, _ in Corpus.from_sentences(TEXTS).drawn(SENTENCES, among=AMONG)]
    assert len(set(drawn)) == SENTENCES
    hidden = pooled(folder, drawn)
    for at, row in enumerate(found.layers):
        assert row.without_rogue.count == SENTENCES
        assert row.without_rogue.value == pytest.approx(mean_cosine(hidden[at], MASSIVE), abs=1e-6)
    (said,) = [line for line in found.summary() if line.startswith("A few dimensions")]
    assert said.endswith("without them (256 of the sentences, drawn by chance).")


def test_the_records_decide_the_groups_of_the_draw(folder: Path) -> None:
    """Twins are one group: alone they would pass for independent sentences."""
    generator = random.Random(0)
    texts = [" ".join(f"w{generator.randrange(4, 90)}" for _ in range(12)) for _ in range(60)]
    records = [{"text": f"{text} w{90 + twin}", "of": index} for twin in (0, 1) for index, text in enumerate(texts)]
    grouped = layers(folder, records, field="text", rogue=2, group_by="of")
    alone = layers(folder, records, field="text", rogue=2)
    for row, other in zip(grouped.layers, alone.layers, strict=True):
        assert row.without_rogue.value == pytest.approx(other.without_rogue.value, abs=1e-12)
        assert row.without_rogue.stderr > 1.1 * other.without_rogue.stderr


def test_the_output_is_as_the_model_pools_whatever_the_layers_are(folder: Path, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder", folder, "mean")
    (by_cls, by_mean) = (layers(tmp_path / "encoder", TEXTS[:60], rogue=2, pooling=one) for one in ("cls", "mean"))
    assert by_cls.output is not None
    assert by_mean.output is not None
    assert by_cls.output.without_rogue == by_mean.output.without_rogue
    assert by_cls.output.without_rogue.value == pytest.approx(
        mean_cosine(pooled(folder, TEXTS[:60])[-1], MASSIVE), abs=1e-6
    )
    assert by_cls.layers[2].without_rogue.value != by_mean.layers[2].without_rogue.value
    first = hidden_states(folder, TEXTS[:60])[-1, :, 0]
    assert by_cls.layers[-1].without_rogue.value == pytest.approx(mean_cosine(first, MASSIVE), abs=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_run_says_the_same(folder: Path, tmp_path: Path) -> None:
    found = run([folder], Corpus.from_sentences(TEXTS[:80]), out=tmp_path / "run", rogue=2, table="csv")
    alone = layers(folder, TEXTS[:80], rogue=2)
    for row, other in zip(found.models[0].layers.layers, alone.layers, strict=True):
        assert row.without_rogue.count == 80
        assert row.without_rogue.value == pytest.approx(other.without_rogue.value, abs=1e-9)
    header, first, *_ = (tmp_path / "run" / "layers.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    one = found.models[0].layers.layers[0].without_rogue
    assert float(cells["anisotropy_without_rogue"]) == one.value
    assert float(cells["anisotropy_without_rogue_stderr"]) == one.stderr


def test_what_can_be_read_once_and_a_state_have_the_sums_alone(folder: Path) -> None:
    once = layers(folder, iter(TEXTS[:100]), rogue=2)
    of_state = layers_of(from_state(once.state), rogue=2)
    for found in (once, of_state):
        assert all(row.without_rogue.count == 0 and math.isnan(row.without_rogue.value) for row in found.layers)
        (said,) = [line for line in found.summary() if line.startswith("A few dimensions")]
        assert said.endswith("; so much of the vectors lies there that the sums do not tell what it is without them.")


def test_nothing_runs_again_where_no_dimensions_carry_much(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, seed=2)
    calls: list[int] = []
    found = layers(tmp_path, TEXTS[:100], rogue=1, progress=lambda progress: calls.append(progress.sentences))
    assert all(claim.verdict != "greater" for claim in found.claims.share)
    assert all(row.without_rogue.count == 0 for row in found.layers)
    assert calls == sorted(calls)


def test_one_layer_of_many_that_a_dimension_carries_is_enough(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, seed=3)
    found = layers(tmp_path, TEXTS[:100], rogue=1)
    assert {claim.verdict for claim in found.claims.share} == {"greater", "less"}
    assert [row.without_rogue.count for row in found.layers] == [100] * 4


def test_so_is_the_output_alone(tmp_path: Path) -> None:
    encoder = save_tiny_encoder(
        tmp_path / "encoder", "mean", seed=2, then=[dense(32, 32, "torch.nn.modules.linear.Identity")]
    )
    file = encoder / "2_Dense" / "model.safetensors"
    weights = load_file(file)
    weights["linear.bias"][5] = 40
    save_file(weights, file)
    found = layers(encoder, TEXTS[:100], rogue=1)
    assert all(claim.verdict != "greater" for claim in found.claims.share)
    assert found.output is not None
    assert [one.dimension for one in found.output.rogue_dimensions] == [5]
    assert found.output.without_rogue.count == 100


def test_of_vectors_whose_share_is_undecided_the_sums_tell_it(tmp_path: Path) -> None:
    mean = np.full(9, (0.76 / 8) ** 0.5)
    mean[4] = 0.24**0.5
    rows = mean + 0.3 * np.random.default_rng(0).standard_normal((80, 9))
    found = vectors(Vectors.from_rows(rows), rogue=1)
    assert found.share is not None
    assert found.share.verdict == "undecided"
    assert found.without_rogue.count == 0
    assert math.isfinite(found.without_rogue.value)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"anisotropy_without_rogue": 0.4567, "anisotropy_without_rogue_stderr": 0.0123}, "0.4567 ± 0.0123"),
        ({"anisotropy_without_rogue": 0.4567, "anisotropy_without_rogue_stderr": None}, "about 0.46 ± –"),
        ({"anisotropy_without_rogue": None, "anisotropy_without_rogue_stderr": None}, "–"),
    ],
)
def test_cells_of_the_report(row: dict[str, float | None], shown: str) -> None:
    assert plain(without_rogue(Node(row))) == shown


@pytest.mark.parametrize("times", [1, 4, 40, 400])
def test_the_sums_tell_it_to_two_decimals_or_not(times: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 60, dtype=torch.float64, generator=generator) + torch.randn(60, generator=generator)
    sizes = (0.3 * torch.randn(400, dtype=torch.float64, generator=generator)).exp() * times
    x[:, :2] *= sizes[:, None]
    state = ConeState.of_vectors(60)
    state.add_output(x, torch.arange(400))
    assert state.output is not None
    found, without, _ = shape_of(state.output, 2, float(metrics.anisotropy(state.output)))
    exact = mean_cosine(x, [one.dimension for one in found])
    assert without.count == 0
    assert math.isnan(without.value) if times > 4 else without.value == pytest.approx(exact, abs=0.005)


def test_the_sums_give_a_ratio_of_means() -> None:
    x = torch.randn(200, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    state = ConeState.of_vectors(12)
    state.add_output(x, torch.arange(200))
    assert state.output is not None
    found, without, _ = shape_of(state.output, 2, float(metrics.anisotropy(state.output)))
    unit = torch.nn.functional.normalize(x, dim=1)
    out = [one.dimension for one in found]
    left_out = float(unit[:, out].square().sum(1).mean())
    assert left_out < MOST_LEFT_OUT
    assert without.value == pytest.approx(
        (mean_cosine(x) - sum(one.contribution for one in found)) / (1 - left_out), abs=1e-12
    )


@pytest.mark.parametrize("n", [500, 20_000])
def test_of_vectors_stretches_are_read_once_more(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((n, 16)).astype(np.float32) + 0.5
    rows[:, 4] += 30 * rng.lognormal(size=n)
    rows[7] = 0
    np.save(tmp_path / "v.npy", rows)
    found = vectors(tmp_path / "v.npy", rogue=1)
    assert [one.dimension for one in found.rogue_dimensions] == [4]
    without = np.delete(rows.astype(np.float64), 7, 0)
    if n > 64 * 256:
        starts = [(n - 256) * k // 63 for k in range(64)]
        indices = np.concatenate([np.arange(start, start + 256) for start in starts])
        without = rows[indices[indices != 7]].astype(np.float64)
    assert found.without_rogue.count == len(without)
    assert found.without_rogue.value == pytest.approx(mean_cosine(torch.from_numpy(without), [4]), abs=1e-9)
    (said,) = [line for line in found.summary() if line.startswith("One dimension")]
    value, error = found.without_rogue.value, found.without_rogue.stderr
    drawn = "" if n == 500 else f" ({len(without):,} of the vectors, spread evenly over all)"
    assert said.endswith(f", which is {value:.3f} ± {error:.3f} without it{drawn}.")


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (
            WithoutRogue(0.414, 0.012, 256),
            ", which is 0.414 ± 0.012 without them (256 of the sentences, drawn by chance)",
        ),
        (WithoutRogue(0.414, 0.012, 300), ", which is 0.414 ± 0.012 without them"),
        (WithoutRogue(0.414, math.nan, 300), ", which is 0.414 without them"),
        (WithoutRogue(0.414), ", which would be about 0.41 without them"),
    ],
)
def test_words(without: WithoutRogue, words: str) -> None:
    assert without.in_words(3, 300, "sentences") == words
