"""Whether centring helps, by labelled pairs: the scores, the folds, the verdict, whole commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from cone_kernels.centering import Centering
from cone_kernels.cli import main
from cone_kernels.corpora.pairs import LabelledPairs
from cone_kernels.corpora.reading import CorpusError
from cone_kernels.experiments import quality, query_ranks
from cone_kernels.experiments.held_out import FOLDS
from cone_kernels.experiments.pair_cosines import PairCosines, _cosines
from cone_kernels.experiments.quality import Judged, layers_of, of_layer
from cone_kernels.experiments.quality_fits import LayerFits, Settings, fits_of, moments_of
from cone_kernels.experiments.quality_result import Place, Quality, verdict_of
from cone_kernels.experiments.quality_scores import PairItems
from cone_kernels.experiments.query_ranks import QueryRanks
from cone_kernels.names import QUALITY_METHODS, QUALITY_NOT_MEASURED
from cone_kernels.report import _draw_both, figure, write_report
from cone_kernels.report.figures.panel import Panel
from cone_kernels.statistics import ranking
from cone_kernels.statistics.estimates import joined
from cone_kernels.statistics.ranking import auc
from tests.support.encoding_folders import save_encoder
from tests.support.tiny_checkpoints import word_tokenizer
from tests.support.tiny_models import tiny_model
from tests.support.undrawn import DRAWN_BY, undrawn

DIM = 12


def labelled(groups: int, of_each: int = 2, measure: str = "auc", seed: int = 0) -> LabelledPairs:
    """Premises with so many hypotheses each; the labels are drawn by chance."""
    generator = np.random.default_rng(seed)
    n = groups * of_each
    pairs = tuple((groups + at, at % groups) for at in range(n)) if measure == "mrr" else ()
    pairs = pairs or tuple((at % groups, groups + at) for at in range(n))
    labels = {"auc": generator.integers(0, 2, n), "spearman": generator.normal(size=n)}.get(measure, ())
    return LabelledPairs(
        name="pairs.jsonl",
        sha256="0",
        measure=measure,
        columns=("premise", "hypothesis", "label"),
        positive="1",
        texts=tuple(f"t{at}" for at in range(groups + n)),
        pairs=pairs,
        labels=tuple(map(float, labels)),
        negatives=(),
        dropped={},
        examples=(),
    )


def rows_of(pairs: LabelledPairs, seed: int = 0, mean: float = 2.0) -> Tensor:
    """Vectors in a cone, of which the first direction varies most."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(4, 1, DIM, dtype=torch.float64)
    return mean + torch.randn(len(pairs.texts), DIM, generator=generator, dtype=torch.float64) * scale


def items_of(pairs: LabelledPairs) -> PairItems:
    return PairItems(pairs, torch.ones(len(pairs.texts), dtype=torch.bool))


def plain_cosines(rows: Tensor, pairs: Tensor) -> Tensor:
    units = normalize(rows, dim=1)
    return (units[pairs[:, 0]] * units[pairs[:, 1]]).sum(1)


def test_a_group_is_in_one_fold_and_folds_are_alike_in_size() -> None:
    items = items_of(labelled(40, of_each=3))
    for group in range(40):
        assert len(set(items.fold[items.group == group].tolist())) == 1
    assert torch.bincount(items.fold).tolist() == [30] * FOLDS
    assert (items.text_fold[items.pairs] == items.fold[:, None]).all()


def test_large_groups_are_placed_first_and_small_ones_fill_up() -> None:
    """One premise with 24 hypotheses and 48 with one: the large one alone, and 16 in each other fold."""
    pairs = tuple((0, 49 + at) for at in range(24)) + tuple((1 + at, 73 + at) for at in range(48))
    labels = tuple(float(at % 2) for at in range(72))
    texts = tuple(f"t{at}" for at in range(121))
    items = items_of(replace(labelled(4), texts=texts, pairs=pairs, labels=labels))
    assert sorted(torch.bincount(items.fold).tolist()) == [16, 16, 16, 24]


def test_as_many_directions_as_were_asked_for_are_taken_away() -> None:
    moments = moments_of(rows_of(labelled(30)))
    for asked in (1, 4, 10):  # 10 of 12 are more than are tried where none are asked for
        found = fits_of(moments, asked, None)["all-but-the-top"]
        assert isinstance(found, Centering)
        assert found.components == asked


@pytest.mark.parametrize(("size", "components"), [(20, 5), (3, 2)])
def test_of_few_texts_no_more_directions_are_taken_away_than_vary(size: int, components: int) -> None:
    items, rows = items_of(labelled(30)), rows_of(labelled(30))
    found = LayerFits(items, rows, of_layer(items, rows), Settings(components=5)).of_some(size)
    assert found is not None
    of_folds = [one["all-but-the-top"] for one in found]
    assert [one.components for one in of_folds if isinstance(one, Centering)] == [components] * FOLDS


def test_partial_mean_removal_takes_half_of_the_mean_away() -> None:
    rows = rows_of(labelled(30))
    found = fits_of(moments_of(rows), 1, None)["partial-mean"]
    assert isinstance(found, Centering)
    torch.testing.assert_close(found(rows), rows - rows.mean(0) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gone", [0, 1])
def test_what_rounding_leaves_of_a_long_vector_that_is_mapped_to_zero_is_no_direction(gone: int) -> None:
    """Of a vector of length 1e8 a map leaves 1e-6; the other one is short, and is not taken for the measure of both."""
    before, after = torch.ones(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    before[1 + gone], after[1 + gone], after[0] = 1e16, 1e-12, 1e-6
    assert float(_cosines(after, before)) == 0
    assert float(_cosines(after)) == pytest.approx(1)


def test_cosines_after_a_centring_are_those_of_mapped_vectors() -> None:
    pairs = labelled(30)
    items, rows = items_of(pairs), rows_of(pairs)
    layer = PairCosines(items, rows)
    top = Centering.fit(moments_of(rows), method="all-but-the-top", components=4)
    maps = {**fits_of(moments_of(rows), 3, 0.1), "raw": None}
    for fold in range(FOLDS):
        mine = items.pairs[items.fold == fold]
        for name, through in maps.items():
            assert not isinstance(through, str)
            wanted = plain_cosines(rows if through is None else through(rows), mine)
            torch.testing.assert_close(layer.scores(fold, through)[0], wanted, rtol=0, atol=1e-12, msg=name)
        by_components = layer.by_components(fold, top, [1, 4])
        torch.testing.assert_close(by_components[1], plain_cosines(top(rows), mine), rtol=0, atol=1e-12)
    alike = PairCosines(items, torch.ones_like(rows))
    assert not alike.scores(0, Centering.fit(moments_of(torch.ones_like(rows)))).any()


@pytest.mark.parametrize("block", [1, 130, 1 << 24])  # of one query at a time, of a few, of all
def test_queries_are_ranked_among_all_texts_but_themselves(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_ranks, "_BLOCK", block)
    pairs = labelled(20, measure="mrr")
    # A query that is a relevant text too, of another query.
    pairs = replace(pairs, pairs=(*pairs.pairs, (pairs.pairs[5][0], pairs.pairs[0][0])))
    items, rows = items_of(pairs), rows_of(pairs)
    assert items.measures == ("mrr", "recall@1", "recall@10")
    mean = Centering.fit(moments_of(rows))
    units = normalize(mean(rows), dim=1)
    found = torch.empty(3, len(items), dtype=torch.float64)
    layer, at_once, ranks_of = QueryRanks(items, rows), [], ranking.ranks_of
    monkeypatch.setattr(ranking, "ranks_of", lambda *given: (at_once.append(given[0].numel()), ranks_of(*given))[1])
    for fold in range(FOLDS):
        found[:, items.fold == fold] = layer.scores(fold, mean)
    assert max(at_once) <= max(block, len(items.candidates))
    for at, query in enumerate(items.queries.tolist()):
        others = [text for text in items.candidates.tolist() if text != query]
        order = sorted(others, key=lambda text: -float(units[query] @ units[text]))
        ranks = [1 + order.index(second) for first, second in pairs.pairs if first == query]
        assert float(found[0, at]) == pytest.approx(1 / min(ranks), abs=1e-12)
        for row, k in ((1, 1), (2, 10)):
            assert float(found[row, at]) == pytest.approx(np.mean([rank <= k for rank in ranks]), abs=1e-12)


@pytest.mark.parametrize("measure", ["auc", "spearman", "mrr"])
def test_what_is_tested_was_not_fitted_on(measure: str) -> None:
    pairs = labelled(24, measure=measure)
    items, rows = items_of(pairs), rows_of(pairs)
    changed = torch.where((items.text_fold == 0)[:, None], rows_of(pairs, seed=1) * 3, rows)
    before, after = (LayerFits(items, one, of_layer(items, one), Settings()) for one in (rows, changed))
    for method in QUALITY_METHODS:
        tested, others = ([one.of_others()[fold][method] for one in (before, after)] for fold in (0, 1))
        assert tested[0] == tested[1], method
        assert others[0] != others[1], method
    assert before.components[0] == after.components[0]
    few = [one.of_some(20) for one in (before, after)]
    assert few[0]
    assert few[1]
    assert few[0][0] == few[1][0]
    assert before.of_some(1000) is None


def test_values_are_those_of_folds_after_fits_on_the_others() -> None:
    pairs = labelled(32)
    items, rows = items_of(pairs), rows_of(pairs)
    judged = Judged(Place(0, "mean"), items, rows, Settings(components=2))
    labels, raw, centred = torch.tensor(pairs.labels), 0.0, 0.0
    for fold in range(FOLDS):
        mine = items.fold == fold
        mean = rows[items.text_fold != fold].mean(0)
        share = float(mine.double().mean())
        raw += share * roc_auc_score(labels[mine], plain_cosines(rows, items.pairs[mine]))
        centred += share * roc_auc_score(labels[mine], plain_cosines(rows - mean, items.pairs[mine]))
    assert judged.estimates.values[:2].tolist() == pytest.approx([raw, centred], abs=1e-12)
    assert judged.components == (2,) * FOLDS


def test_the_choice_of_texts_is_in_the_error_of_fits_on_some_of_the_pairs() -> None:
    pairs = labelled(24, measure="mrr")
    items = items_of(pairs)
    judged = Judged(Place(0, "mean"), items, rows_of(pairs), Settings(components=2))
    by_fold = torch.linspace(-0.2, 0.4, FOLDS, dtype=torch.float64).square()  # by how much other texts change a fold
    scores = judged._main + by_fold[items.fold]
    on_pairs, on_corpus = judged._fit("pairs", 20, scores).differences, judged._fit("corpus", 20, scores).differences
    for method in ("mean", "all-but-the-top"):
        (difference, error), (wanted, of_pairs) = on_pairs[method], on_corpus[method]
        assert difference == wanted
        assert error**2 - of_pairs**2 == pytest.approx(float(by_fold.var()), rel=1e-9)


def quality_of_rows(pairs: LabelledPairs, rows: Tensor) -> Any:
    items = items_of(pairs)
    judged = Judged(Place("output", None), items, rows, Settings())
    every = judged.estimates.condensed()
    return verdict_of(layers_of([judged], every, ()), every, Place("output", None))


def test_layers_are_compared_over_the_same_groups() -> None:
    pairs = labelled(32)
    items = items_of(pairs)
    rows = [rows_of(pairs, seed) for seed in (0, 1)]
    judged = [Judged(Place(at, "mean"), items, one, Settings(components=2)) for at, one in enumerate(rows)]
    every = joined([one.estimates for one in judged])
    condensed, width = every.condensed(), 1 + len(QUALITY_METHODS)
    first, second = torch.tensor([0]), torch.tensor([width])
    influences = torch.zeros(2, len(items), dtype=torch.float64)
    for fold in range(FOLDS):
        mine = items.fold == fold
        scores = torch.stack([plain_cosines(one, items.pairs[mine]) for one in rows])
        influences[:, mine] = auc(scores, torch.tensor(pairs.labels)[mine] > 0)[1] * float(mine.double().mean())
    sums = torch.zeros(32, dtype=torch.float64).index_add_(0, items.group, influences[1] - influences[0])
    wanted = float((sums.var() * 32).sqrt())
    for one in (every, condensed):
        assert float(one.at(second).less(one.at(first)).stderr) == pytest.approx(wanted, rel=1e-9)
    assert condensed.deviations.shape == (2 * width, 2 * width)


def test_a_method_that_cannot_be_fitted_has_a_reason_and_no_value() -> None:
    pairs = labelled(32)
    judged = Judged(
        Place(0, "cls"), items_of(pairs), torch.ones(len(pairs.texts), DIM, dtype=torch.float64), Settings()
    )
    (row,) = layers_of([judged], judged.estimates, ())
    assert row.raw == 0.5
    data = row.to_dict()["methods"]["whitening"]
    assert (data["value"], data["difference"], data["stderr"]) == (None, None, None)
    assert "all its vectors are alike" in data["reason"]
    assert verdict_of([row], judged.estimates, Place(0, "cls")).decision == "undecided"


def test_the_verdict_is_what_the_data_says() -> None:
    pairs = labelled(150)
    generator = torch.Generator().manual_seed(3)
    n, labels = len(pairs.texts), torch.tensor(pairs.labels, dtype=torch.float64)
    first, second = torch.tensor(pairs.pairs).unbind(1)
    noise = torch.randn(n, DIM, generator=generator, dtype=torch.float64)
    # One direction that has nothing to do with the labels varies more than all others.
    helped = noise.clone()
    helped[second] += 0.6 * labels[:, None] * noise[first]
    helped[:, 0] = 20 * torch.randn(n, generator=generator, dtype=torch.float64)
    verdict = quality_of_rows(pairs, helped)
    assert (verdict.decision, verdict.claim.verdict) == ("centre", "greater")
    assert verdict.method in ("all-but-the-top", "all-but-the-top-eigengap", "whitening")
    # How near a text is to the mean of all is what the labels go with.
    harmed = 1.0 + noise * torch.where(torch.arange(n) < 150, 0.7, 1.0)[:, None]
    harmed[second] = 1.0 + noise[second] * (1.6 - labels[:, None])
    verdict = quality_of_rows(pairs, harmed)
    assert (verdict.decision, verdict.claim.verdict) == ("do not", "less")
    verdict = quality_of_rows(pairs, 0.5 + noise)
    assert verdict.decision == "undecided"


def test_pairs_that_do_not_do_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"^pairs: pairs\.jsonl has 14 pairs .* 7 groups .* must be 8 groups or more"):
        items_of(labelled(7))
    one = labelled(20)
    joined_up = tuple((0 if at % 20 < 15 else first, second) for at, (first, second) in enumerate(one.pairs))
    with pytest.raises(CorpusError, match=r"one of them has 30; none may have more than half"):
        items_of(replace(one, pairs=(*joined_up, *((90, 91), (92, 93))), labels=(*one.labels, 0.0, 1.0),
                         texts=tuple(map(str, range(100)))))  # fmt: skip
    with pytest.raises(CorpusError, match="all labels are alike"):
        items_of(replace(one, labels=(1.0, *(0.0,) * 39)))
    fold = items_of(one).fold
    assert {float(label) for label, number in zip(one.labels, fold.tolist(), strict=True) if number != 2} == {0.0, 1.0}
    alike = tuple(1.0 if number == 2 else label for label, number in zip(one.labels, fold.tolist(), strict=True))
    with pytest.raises(CorpusError, match="in a quarter of them all labels are alike"):
        items_of(replace(one, labels=alike))
    without = torch.ones(len(one.texts), dtype=torch.bool)
    without[20] = False
    items = PairItems(one, without)
    assert (items.left_out, len(items), int(items.text_fold[20])) == (1, 39, -1)


def test_vectors_that_there_is_no_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(sentence=SimpleNamespace(dim=1000), layers=(0, 1, 2), output=SimpleNamespace(dim=500))
    measurement: Any = SimpleNamespace(state=state, model={"dtype": "float32"})
    pairs = labelled(100)
    assert quality._require_room(measurement, pairs, 2) == 300 * (3 * 2 * 1000 + 500) * 4
    with pytest.raises(OSError, match=r"^pairs: .* must have room for .* MB, and .* MB are free"):
        quality._require_room(measurement, replace(pairs, texts=range(10**12)), 1)
    monkeypatch.setattr(quality, "memory", lambda: {"available_bytes": 10**6})
    with pytest.raises(MemoryError, match=r"^pairs: the vectors of 300 texts at one layer take 5 MB .* 1 MB are free"):
        quality._require_room(measurement, pairs, 1)
    enough = quality._COPIES * 300 * 1000 * 4
    monkeypatch.setattr(quality, "memory", lambda: {"available_bytes": enough})
    assert quality._require_room(measurement, pairs, 1) == 300 * (3 * 1000 + 500) * 4
    monkeypatch.setattr(quality, "memory", lambda: {"available_bytes": enough - 1})
    with pytest.raises(MemoryError, match=r"^pairs: "):
        quality._require_room(measurement, pairs, 1)


@pytest.mark.parametrize("options", [None, {}, {"token_budget": 64}])
def test_the_texts_of_pairs_are_run_as_the_corpus_was(
    options: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vectors(measurement: Any, pairs: Any, pooling: str, options: Any, with_output: bool) -> Any:
        raise LookupError(options)

    monkeypatch.setattr(quality, "_require_room", lambda *_: 0)
    monkeypatch.setattr(quality, "_vectors", vectors)
    measurement: Any = SimpleNamespace(state=SimpleNamespace(pooling="mean"))
    with pytest.raises(LookupError) as given:
        quality.quality_of(measurement, labelled(20), layer="output", options=options)
    assert given.value.args == (options or {},)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["auc", "spearman", "mrr"])
def test_a_method_that_does_nothing_is_told_from_nothing_as_rarely_as_it_should(measure: str) -> None:
    pairs = labelled(120, of_each=3, measure=measure)
    items = items_of(pairs)
    labels = torch.tensor(pairs.labels or [0.0] * len(pairs.pairs), dtype=torch.float64)
    first, second = torch.tensor(pairs.pairs).unbind(1)
    wrong, runs = 0, 1000
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)
        signal, *jitters = (
            torch.randn(len(pairs.texts), DIM, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        strength = 0.5 if measure == "mrr" else 0.3 * labels[:, None]
        signal[second] += strength * signal[first] + 0.3 * signal[first]
        # What is vectors as they are, and what is a method, is drawn by chance.
        scores = []
        for jitter in jitters:
            layer = of_layer(items, 1 + signal + 0.7 * jitter)
            found = torch.empty(len(items), dtype=torch.float64)
            for fold in range(FOLDS):
                found[items.fold == fold] = layer.scores(fold)[0]
            scores.append(found)
        both = items.estimates(torch.stack(scores))
        change = both.at(torch.tensor([1])).less(both.at(torch.tensor([0])))
        wrong += float(change.p_values()[0]) < 0.05
    assert 0.03 <= wrong / runs <= 0.07


# Whole commands.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny_model("bert", num_hidden_layers=2).save_pretrained(folder)  # type: ignore[operator]
    word_tokenizer().save_pretrained(folder)
    return folder


def sentence(*numbers: int) -> str:
    return " ".join(f"w{4 + number % 90}" for number in numbers)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A corpus, and pairs of each kind."""
    base = tmp_path_factory.mktemp("pairs")
    premises = [sentence(at, 7 * at + 3, 11 * at + 5) for at in range(24)]
    near = [sentence(at, 7 * at + 3, 13 * at + 8) for at in range(24)]
    far = [sentence(17 * at + 40, 19 * at + 61) for at in range(24)]
    nli = [
        {"premise": premise, "hypothesis": text, "label": label}
        for at, premise in enumerate(premises)
        for text, label in ((near[at], "entailment"), (far[at], "contradiction"))
    ]
    relevant = zip(premises, near, strict=True)
    rows = {
        "nli.jsonl": "".join(json.dumps(record) + "\n" for record in [*nli, {**nli[0], "label": "-"}]),
        "sts.tsv": "sentence1\tsentence2\tscore\n"
        + "".join(f"{one['premise']}\t{one['hypothesis']}\t{at % 5 / 2}\n" for at, one in enumerate(nli)),
        "retrieval.csv": "query,positive\n" + "".join(f"{one},{two}\n" for one, two in relevant),
        "corpus.txt": "".join(f"{sentence(at, 3 * at, 5 * at + 1)}\n" for at in range(60)),
    }
    for name, text in rows.items():
        (base / name).write_text(text)
    return {name: base / name for name in rows}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_writes_what_the_contract_says(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "center.json"
    ran = invoke("center", "--model", folder, "--corpus", files["corpus.txt"], "--pairs", files["nli.jsonl"],
                 "--method", "all-but-the-top", "--components", 2, "--json", out)  # fmt: skip
    assert ran.exit_code == 0, ran.output
    data = json.loads(out.read_text())
    quality = data["quality"]
    assert {"measure", "pairs", "layers", "verdict"} <= set(quality)
    assert (quality["measure"], quality["pairs"], quality["groups"]) == ("auc", 48, 24)
    assert quality["file"]["dropped"] == {"no_label": 1}
    n_layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    assert [row["layer"] for row in quality["layers"]] == [*range(n_layers + 1), "output"][: len(quality["layers"])]
    for row in quality["layers"]:
        assert {"layer", "raw", "methods"} <= set(row)
        assert list(row["methods"]) == list(QUALITY_METHODS)
        for found in row["methods"].values():
            assert found["value"] == pytest.approx(row["raw"] + found["difference"], abs=1e-12)
            assert found["stderr"] >= 0
        assert row["components"] == [2] * FOLDS
    assert quality["verdict"]["decision"] in ("centre", "do not", "undecided")
    assert {fit["source"] for fit in quality["fits"]} == {"pairs", "corpus"}
    assert next(fit["rows"] for fit in quality["fits"] if fit["source"] == "corpus") == 60
    assert set(quality["summary"]) <= set(data["summary"])
    assert QUALITY_NOT_MEASURED not in data["summary"]
    assert "AUC of 48 labelled pairs of nli.jsonl" in ran.output
    assert figure(data).axes
    write_report(data, tmp_path / "report.html")
    assert "Does opening the cone help?" in (tmp_path / "report.html").read_text()


def test_without_pairs_it_says_that_nothing_was_measured(folder: Path, files: dict[str, Path]) -> None:
    ran = invoke("center", "--model", folder, "--corpus", files["corpus.txt"])
    assert "Whether the vectors serve better centred is not measured" in " ".join(ran.output.split())


def test_a_run_judges_every_pooling(
    folder: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def of_quality(panel: Panel, prefix: str) -> str:
        drawn.append(prefix)
        return _draw_both(panel, prefix) if prefix.startswith("quality") else undrawn(panel, prefix)

    monkeypatch.setattr(DRAWN_BY, of_quality)  # the other figures of a run have tests of their own
    ran = invoke("run", "--model", folder, "--corpus", files["corpus.txt"], "--pairs", files["retrieval.csv"],
                 "--pooling", "mean", "--pooling", "cls", "--out", tmp_path / "out")  # fmt: skip
    assert ran.exit_code == 0, ran.output
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    quality = data["models"][0]["quality"]
    assert (quality["measure"], quality["pairs"], quality["items"]) == ("mrr", 24, 24)
    assert {row["pooling"] for row in quality["layers"]} >= {"mean", "cls"}
    assert set(quality["layers"][-1]["also"]) == {"recall@1", "recall@10"}
    assert all(QUALITY_NOT_MEASURED not in one["summary"] for one in data["centering"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="quality"' in page
    assert drawn.count("quality") == page.count("drawing narrow") > 0
    assert "Does opening the cone help?" in page


def test_the_output_is_judged_as_the_model_pools_beside_layers_pooled_otherwise(
    folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """With --pooling cls a model of sentence-transformers ended in an error."""
    encoder = save_encoder(tmp_path / "encoder", folder, "mean", dim=32)
    found = {}
    for pooling in ("mean", "cls"):
        json_out = tmp_path / f"{pooling}.json"
        ran = invoke("center", "--model", encoder, "--corpus", files["corpus.txt"], "--pairs", files["nli.jsonl"],
                     "--pooling", pooling, "--output", tmp_path / pooling, "--json", json_out)  # fmt: skip
        assert ran.exit_code == 0, ran.output
        rows = json.loads(json_out.read_text())["quality"]["layers"]
        found[pooling] = {row["layer"]: row["raw"] for row in rows}
    assert found["cls"]["output"] == found["mean"]["output"] == found["mean"][2]
    assert found["cls"][2] != found["mean"][2]


def test_graded_scores_by_what_is_asked_for(folder: Path, files: dict[str, Path]) -> None:
    from cone_kernels.experiments import center

    found = center(folder, files["corpus.txt"], pairs=files["sts.tsv"], measure="spearman", limit=20)
    assert isinstance(found.quality, Quality)
    assert (found.quality.measure, found.quality.pairs) == ("spearman", 48)
    assert json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["center", "--state", "{corpus.txt}", "--pairs", "{nli.jsonl}"], "--pairs goes with --model and --corpus"),
        (["center", "--model", "m", "--corpus", "{corpus.txt}", "--measure", "auc"], "--measure goes with --pairs"),
        (["center", "--model", "m", "--corpus", "{corpus.txt}", "--pairs", "{corpus.txt}"], "must end in .jsonl"),
        (["center", "--model", "m", "--corpus", "{corpus.txt}", "--pairs", "{sts.tsv}", "--measure", "auc"],
         "for measure 'auc' they must be two"),
        (["run", "--model", "m", "--corpus", "{corpus.txt}", "--out", "o", "--pairs", "{nli.jsonl}", "--measure", "x"],
         "measure: got 'x'"),
    ],
)  # fmt: skip
def test_what_does_not_do_is_refused_before_anything_runs(
    files: dict[str, Path], arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [str(files[one[1:-1]]) if one.startswith("{") else one for one in arguments]
    ran = invoke(*named)
    assert ran.exit_code != 0
    assert words in " ".join(ran.output.split())
