"""Which tokens make the cone: every class and word over all pairs, from the hidden states that the model gives."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from cone_kernels.cli import main
from cone_kernels.corpora import Corpus
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.result import Estimate
from cone_kernels.experiments.tokens import tokens
from cone_kernels.experiments.tokens_result import (
    MASSIVE,
    TokenClass,
    TokensLayer,
    TokensResult,
    Words,
    WordSimilarity,
    _norms,
)
from cone_kernels.models import load_model
from cone_kernels.names import TOKEN_DIVISIONS
from cone_kernels.runs import token_plan
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.options import RunOptions
from cone_kernels.runs.token_plan import KEPT, LEAST_SENTENCES, TokenPlan
from cone_kernels.runs.token_sums import TokenSums
from cone_kernels.state.sentence_batch import SentenceBatch
from cone_kernels.statistics.claims import Claim
from cone_kernels.sums import jackknife_blocks, jackknife_groups
from tests.support.tiny_checkpoints import WORDS, save_checkpoint, word_tokenizer
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Some words are in most sentences, some in one; a word may come twice in a sentence. Sentences of one length make a
# batch: of few lengths a pass has few forwards, and 12 tokens have places of every class below 17.
LENGTHS = [1, *((2, 5, 12)[i % 3] for i in range(89))]
TEXTS = [" ".join(WORDS[(i * j * 7 + j) % (9 + i % 80)] for j in range(length)) for i, length in enumerate(LENGTHS)]
OPTIONS: dict[str, Any] = {"threads": 1, "device": "cpu"}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    blocks = {"bert": "num_hidden_layers", "gpt2": "n_layer"}[request.param]
    tiny_model(request.param, **{blocks: 2}).save_pretrained(folder)  # type: ignore[operator]
    word_tokenizer(special=request.param == "bert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> TokensResult:
    return tokens(folder, TEXTS, **OPTIONS)


class Plain:
    """Every token of the corpus: its hidden states (layers, D), its sentence, its id, whether it is special."""

    def __init__(self, folder: Path, texts: list[str]) -> None:
        loaded, corpus = load_model(folder), Corpus.from_sentences(texts)
        states, self.sentence, self.ids, self.place, self.last = [], [], [], [], []
        self.special: list[bool] = []
        for number, text in enumerate(corpus):
            ids = loaded.tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                found = loaded.model(**ids, output_hidden_states=True).hidden_states
            states.append(torch.stack([hidden[0].double() for hidden in found], 1))
            row = ids["input_ids"][0].tolist()
            self.ids += row
            self.special += [one in (2, 3) for one in row]
            self.sentence += [number] * len(row)
            self.place += range(1, len(row) + 1)
            self.last += [at == len(row) for at in range(1, len(row) + 1)]
        self.states = torch.cat(states)  # (n, layers, D)
        self.own = np.array([not one for one in self.special])

    def units(self, layer: int) -> Tensor:
        return torch.nn.functional.normalize(self.states[:, layer], dim=1)

    def names(self, by: str, layer: int) -> list[str]:
        if by == "special":
            return [
                {2: "[CLS]", 3: "[SEP]"}[one] if s else "text" for one, s in zip(self.ids, self.special, strict=True)
            ]
        if by == "position":
            return [_place(at, last) for at, last in zip(self.place, self.last, strict=True)]
        if by == "frequency":
            counts = Counter(one for one, s in zip(self.ids, self.special, strict=True) if not s)
            order = sorted(counts, key=lambda one: (-counts[one], one))
            rank = {one: order.index(one) + 1 for one in order}
            return [
                "special" if s else "1 to 10" if rank[one] <= 10 else "11 to 100"
                for one, s in zip(self.ids, self.special, strict=True)
            ]
        norms = self.states[:, layer].norm(dim=1).tolist()
        exponents = [math.floor(math.log2(one / 0.8)) for one in norms]
        typical = sorted(exponents)[(len(exponents) + 1) // 2 - 1]
        classes = TOKEN_DIVISIONS["norm"].classes
        return [classes[min(max(one - typical + 2, 0), len(classes) - 1)] for one in exponents]


def _place(at: int, last: bool) -> str:
    if at == 1:
        return "first"
    if last:
        return "last"
    if at == 2:
        return "second"
    edges = {"3 to 4": 4, "5 to 8": 8, "9 to 16": 16}
    return next(name for name, end in edges.items() if at <= end)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder, TEXTS)


def off_diagonal(cosines: Tensor) -> float:
    n = len(cosines)
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))) if n > 1 else math.nan


@pytest.mark.parametrize("by", TOKEN_DIVISIONS)
def test_classes_are_those_of_all_pairs(by: str, result: TokensResult, plain: Plain) -> None:
    for row in result.layers:
        u, names = plain.units(row.layer), plain.names(by, row.layer)
        cosines = u @ u.T
        cosines.fill_diagonal_(0)
        found = [one for one in result.classes if (one.layer, one.by) == (row.layer, by)]
        assert {one.name: one.tokens for one in found} == Counter(names)
        for one in found:
            mine = torch.tensor([name == one.name for name in names])
            assert one.share.value == pytest.approx(float(cosines[mine].sum() / cosines.sum()), abs=1e-6)
            assert one.tokens_share == float(mine.double().mean())
            assert one.excess.estimate == pytest.approx(one.share.value - one.tokens_share)
            within, without = off_diagonal(cosines[mine][:, mine]), off_diagonal(cosines[~mine][:, ~mine])
            assert one.within.value == pytest.approx(within, abs=1e-6, nan_ok=True)
            assert one.without.value == pytest.approx(without, abs=1e-6, nan_ok=True)
            assert one.opens.estimate == pytest.approx(row.token.anisotropy - without, abs=1e-6, nan_ok=True)
            if not bool(mine.all()):
                assert one.across.value == pytest.approx(float(cosines[mine][:, ~mine].mean()), abs=1e-6)


def test_the_typical_norm_is_where_the_class_of_the_median_token_begins(result: TokensResult, plain: Plain) -> None:
    for row in result.layers:
        norms = plain.states[:, row.layer].norm(dim=1)
        begins = row.typical_norm
        assert begins <= float(norms.sort().values[(len(norms) + 1) // 2 - 1]) < 2 * begins
        typical = result.at(row.layer, "norm", "1 to 2")
        assert typical is not None
        assert typical.tokens == int(((begins <= norms) & (norms < 2 * begins)).sum())


def test_shares_add_up_to_one(result: TokensResult) -> None:
    for row in result.layers:
        for by in TOKEN_DIVISIONS:
            mine = [one for one in result.classes if (one.layer, one.by) == (row.layer, by)]
            assert sum(one.share.value for one in mine) == pytest.approx(1, abs=1e-12)
            assert sum(one.tokens for one in mine) == row.token.count


def test_words_and_sentences_are_as_in_the_paper(result: TokensResult, plain: Plain) -> None:
    sentences_of: dict[int, dict[int, int]] = {}
    for at, (one, sentence) in enumerate(zip(plain.ids, plain.sentence, strict=True)):
        if plain.own[at]:
            sentences_of.setdefault(one, {}).setdefault(sentence, at)  # the first in the sentence
    eligible = {one: list(at.values()) for one, at in sentences_of.items() if len(at) >= LEAST_SENTENCES}
    assert result.words.eligible == len(eligible)
    words = [int(name[1:]) for name in result.words.names]
    assert len(set(words)) == min(token_plan.WORDS, len(eligible))
    assert set(words) <= set(eligible)
    owners = np.array(plain.sentence)[plain.own]
    for row in result.layers:
        u, x = plain.units(row.layer), plain.states[:, row.layer]
        own_units = u[torch.from_numpy(plain.own)]
        cosines, same = own_units @ own_units.T, torch.from_numpy(owners[:, None] == owners[None])
        baseline = float(cosines[~same].mean())
        found = row.similarity
        assert found.baseline.value == pytest.approx(baseline, abs=1e-6)
        each = [off_diagonal(u[eligible[word]] @ u[eligible[word]].T) for word in words]
        assert found.self_similarity.value == pytest.approx(np.mean(each), abs=1e-6)
        assert found.self_similarity.stderr == pytest.approx(np.std(each, ddof=1) / len(each) ** 0.5, abs=1e-6)
        assert found.self_adjusted.value == pytest.approx(np.mean(each) - baseline, abs=1e-6)
        intra = []
        for number in sorted(set(owners)):
            rows = x[torch.from_numpy(plain.own)][torch.from_numpy(owners == number)]
            if len(rows) > 1:
                intra.append(float(torch.cosine_similarity(rows, rows.mean(0, keepdim=True)).mean()))
        assert found.intra_sentence.value == pytest.approx(np.mean(intra), abs=1e-6)
        assert found.intra_adjusted.value == pytest.approx(np.mean(intra) - baseline, abs=1e-6)
        shares = []
        for word in words:
            singular = np.linalg.svd(x[_evenly(eligible[word])].numpy(), compute_uv=False)
            shares.append(singular[0] ** 2 / (singular**2).sum())
        assert found.explained.value == pytest.approx(np.mean(shares), abs=1e-6)
        assert 0 < found.explained_adjusted.value < found.explained.value
        # The bounds that any sentence has: it is no less than 1/√T for orthogonal tokens, and 1 for equal ones.
        assert 0 < found.intra_of_drawn < 1


def _evenly(occurrences: list[int]) -> list[int]:
    n = len(occurrences)
    return occurrences if n <= KEPT else [occurrences[at * n // KEPT] for at in range(KEPT)]


def numbers(result: TokensResult) -> Any:
    data = result.to_dict()
    return {name: data[name] for name in ("layers", "classes", "words", "summary")}


def about(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: about(one) for name, one in value.items()}
    if isinstance(value, list):
        return [about(one) for one in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("cut", [{"token_budget": 40}, {"shard_size": 19}, {"shard_size": 33, "token_budget": 90}])
def test_batches_and_shards_do_not_matter(cut: dict[str, int], folder: Path, result: TokensResult) -> None:
    assert numbers(tokens(folder, TEXTS, **OPTIONS, **cut)) == about(numbers(result))


def test_a_shard_that_begins_again_counts_once(
    folder: Path, result: TokensResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, calls = TokenSums.take, []

    def short_of_memory(self: TokenSums, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("out of memory")
        take(self, *arguments)

    monkeypatch.setattr(TokenSums, "take", short_of_memory)
    again = tokens(folder, TEXTS, **OPTIONS)
    assert again.manifest["out_of_memory"] == 1
    assert numbers(again) == about(numbers(result))


def test_errors_are_those_of_the_jackknife(folder: Path, result: TokensResult, plain: Plain) -> None:
    """Blocks of eight sentences are left out in turn: what is then measured gives the error."""
    assert numbers(tokens(folder, TEXTS, **OPTIONS)) == numbers(result)
    groups = jackknife_groups(torch.arange(1 + plain.sentence[-1]))
    block = jackknife_blocks(torch.bincount(groups, minlength=64))[groups]
    cosines = plain.units(2) @ plain.units(2).T
    cosines.fill_diagonal_(0)
    first, of_token = torch.tensor(plain.place) == 1, block[torch.tensor(plain.sentence)]
    left_out = []
    for number in range(int(block.max()) + 1):
        rest = of_token != number
        left_out.append(float(cosines[first & rest][:, rest].sum() / cosines[rest][:, rest].sum()))
    n = len(left_out)
    wanted = float(((n - 1) * torch.tensor(left_out).double().var(correction=0)).sqrt())
    one = result.at(2, "position", "first")
    assert one is not None
    assert one.share.stderr == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("options", [{"dtype": "float64"}, {"dtype": "bfloat16"}, {"baseline": "shuffled-tokens"}])
def test_other_precisions_and_baselines(options: dict[str, str], folder: Path, result: TokensResult) -> None:
    found = tokens(folder, TEXTS, **OPTIONS, **options)  # type: ignore[arg-type]
    assert [one.name for one in found.classes if one.by != "norm"] == [
        one.name for one in result.classes if one.by != "norm"
    ]
    if options.get("dtype") == "float64":
        assert numbers(found)["classes"] == about(numbers(result)["classes"])
    if options.get("dtype") == "bfloat16":
        for one in result.classes:
            other = found.at(one.layer, one.by, one.name)
            if one.by != "norm":
                assert other is not None
                assert other.share.value == pytest.approx(one.share.value, abs=0.02)


def test_word_vectors_have_one_layer_and_no_special_token(tmp_path: Path) -> None:
    """Of a word there is one vector: its occurrences are all the same."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(WORDS), 8, generator=generator) + 1
    lines = [f"{word} {' '.join(f'{one:.4f}' for one in row.tolist())}" for word, row in zip(WORDS, rows, strict=True)]
    (tmp_path / "words.vec").write_text("\n".join([f"{len(WORDS)} 8", *lines]))
    found = tokens(tmp_path / "words.vec", TEXTS, **OPTIONS)
    assert {one.name for one in found.classes if one.by == "special"} == {"text"}
    assert found.layers[0].similarity.self_similarity.value == pytest.approx(1, abs=1e-6)
    assert found.layers[0].similarity.explained.value == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def massive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose [SEP] is huge at the embeddings, and points where all tokens do."""
    folder = tmp_path_factory.mktemp("massive")
    model = save_checkpoint(folder, "gpt2", special=True)
    with torch.no_grad():
        model.wte.weight[:, 0] += 0.5  # type: ignore[union-attr, operator, index]
        model.wte.weight[3] = 0  # type: ignore[union-attr, index]
        model.wte.weight[3, 0] = 100  # type: ignore[union-attr, index]
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_massive_activations_are_found(massive: Path) -> None:
    found = tokens(massive, TEXTS * 3, **OPTIONS, dedup=False)
    one = found.at(0, "norm", MASSIVE)
    separators = found.at(0, "special", "[SEP]")
    assert one is not None
    assert separators is not None
    assert one.tokens == separators.tokens == 3 * len(TEXTS)
    assert one.excess.verdict == separators.excess.verdict == "greater"
    assert one.opens.verdict == "greater"
    assert one.share.value == pytest.approx(separators.share.value)
    said = " ".join(found.summary())
    assert "massive activations, are there at layer" in said
    assert f"make {one.share.value:.1%} of the cone" in said
    more = [one for one in found.classes if one.by == "special" and one.excess.verdict == "greater"]
    most = max(more, key=lambda one: one.excess.estimate)
    named = "the tokens of the text" if most.name == "text" else f"the {most.name} tokens"
    assert f"{named} exceed their share of the tokens most, at layer {most.layer}" in said


def test_tokens_of_one_length_are_one_class() -> None:
    """Of width 64 all have the length 8, but for rounding: no class of norms begins there."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(30, 64, generator=generator, dtype=torch.float64), dim=1) * 8
    rows[0] *= 2
    plan = TokenPlan.of_counts(*(np.zeros(0, np.int64) for _ in range(4)))
    sums = TokenSums(plan)
    columns = {"input_ids": np.zeros(30, np.int64)}
    shard = EncodedShard(0, columns, [10] * 3, np.ones(30, np.int64), 0)
    sums.begin_shard(shard)
    sums.begin_batch(shard, [0, 1, 2])
    batch = SentenceBatch.of(rows.reshape(3, 10, 64), torch.ones(3, 10, dtype=torch.bool), None, None)
    sums.take(0, rows.reshape(3, 10, 64), batch)
    sums.end_shard()
    counts = {number: int(one["count"].sum()) for number, one in sums.layers[0].divisions["norm"].items()}
    assert sorted(counts.values()) == [1, 29]


def test_no_massive_activations_are_said(result: TokensResult) -> None:
    assert any("there are no massive activations" in line for line in result.summary())
    assert result.at(0, "norm", MASSIVE) is None


def test_one_sentence_tells_nothing(folder: Path) -> None:
    found = tokens(folder, ["w5 w6 w5 w7"], **OPTIONS)
    assert found.words.names == ()
    assert all(one.excess.verdict == "undecided" and math.isnan(one.share.stderr) for one in found.classes)
    assert all(math.isnan(row.similarity.self_similarity.value) for row in found.layers)
    assert found.summary() == ("At no layer is there a cone of tokens to share: their mean cosine is not told from 0.",)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def uneven(folder: Path) -> TokensResult:
    """Two sentences longer than all others, one of a single token and one of none."""
    return tokens(folder, [*TEXTS, " ".join(WORDS[:30]), " ".join(WORDS[5:35]), "w5", "nothing"], **OPTIONS)


def test_a_sentence_of_one_token_and_one_of_none(uneven: TokensResult) -> None:
    assert (
        sum(one.tokens for one in uneven.classes if (one.layer, one.by) == (1, "position"))
        == uneven.layers[1].token.count
    )
    json.dumps(uneven.to_dict(), allow_nan=False)


def test_a_class_of_no_token_is_left_out(result: TokensResult) -> None:
    assert all(one.tokens > 0 for one in result.classes)
    assert result.at(0, "position", "33 to 64") is None


def test_few_groups_have_no_error(uneven: TokensResult) -> None:
    """Of a word that two sentences have, no error is known, and nothing is said."""
    one = uneven.at(1, "position", "17 to 32")
    assert one is not None
    assert one.excess.verdict == "undecided"
    assert math.isnan(one.share.stderr)


def test_a_class_of_a_result_is_a_row_of_the_table(result: TokensResult) -> None:
    table = result.to_pandas()
    assert len(table) == len(result.classes)
    assert {"layer", "by", "name", "tokens", "share_value", "share_stderr", "excess_verdict"} <= set(table.columns)


def test_what_cannot_be_done_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="options: got workers"):
        tokens(folder, TEXTS, workers=2)  # type: ignore[call-arg]
    sums = TokenSums(TokenPlan.of(load_model(folder), TEXTS))
    with pytest.raises(ValueError, match=r"checkpoint: got .* with token_sums"):
        RunOptions(token_sums=sums, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="shard: got 0/2 with token_sums"):
        RunOptions(token_sums=sums, shard="0/2")


def test_a_corpus_that_changes_is_refused(folder: Path) -> None:
    class Changing:
        reads = 0

        def __iter__(self) -> Any:
            self.reads += 1
            return iter(TEXTS if self.reads <= 2 else TEXTS[::-1])  # looked at, counted, run

    with pytest.raises(ValueError, match="corpus: got other sentences when it was read again"):
        tokens(folder, Changing(), **OPTIONS)


def cone(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_the_command_shows_tables_and_sentences(folder: Path, result: TokensResult, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS))
    source = ("tokens", "--model", folder, "--corpus", tmp_path / "corpus.txt", "--threads", "1", "--device", "cpu")
    done = cone(*source, "--json", tmp_path / "tokens.json")
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "tokens.json").read_text())
    kept = {name: data[name] for name in ("layers", "classes", "words", "summary")}
    assert kept == numbers(result)
    assert (data["schema"], data["experiment"]) == ("cone_kernels/tokens/1", "tokens")
    shown = " ".join(done.stdout.split())
    for line in result.summary():
        assert line in shown
    assert "Share of the cone and of the tokens, by place" in shown
    assert "How contextual words are" in shown
    for flag in ("--workers", "--checkpoint", "--state"):
        refused = cone(*source, flag, "2")
        assert refused.exit_code == 2
        assert "No such option" in refused.output


CLASS_KEYS = {
    "layer": int,
    "by": str,
    "name": str,
    "tokens": int,
    "tokens_share": float,
    "share": {"value", "stderr"},
    "within": {"value", "stderr"},
    "across": {"value", "stderr"},
    "without": {"value", "stderr"},
    "excess": {"value", "bound", "verdict"},
    "opens": {"value", "bound", "verdict"},
}


def test_json_has_every_class_with_its_claims(result: TokensResult) -> None:
    data = result.to_dict()
    assert set(data) >= {"schema", "experiment", "model", "corpus", "layers", "classes", "contextual", "words"}
    for one in data["classes"]:
        assert list(one) == list(CLASS_KEYS)
        for name, kind in CLASS_KEYS.items():
            assert set(one[name]) == kind if isinstance(kind, set) else isinstance(one[name], kind)
    assert isinstance(result.classes[0], TokenClass)
    similarity = data["layers"][0]["similarity"]
    assert {"baseline", "self_adjusted", "intra_adjusted", "intra_of_drawn", "explained_adjusted"} <= set(similarity)


@pytest.mark.parametrize(
    ("name", "words"),
    [("below 0.5", "below 1.6"), ("0.5 to 1", "from 1.6 to 3.2"), ("1 to 2", "from 3.2 to 6.4"),
     (MASSIVE, "of 51.2 and more")],
)  # fmt: skip
def test_classes_of_norms_in_numbers(name: str, words: str) -> None:
    """Where the median token lies from 3.2 to 6.4."""
    assert _norms(name, 3.2) == words


def of_numbers(*rows: tuple[float, float, float], contextual: Claim) -> TokensResult:
    """Of layers with these adjusted self-similarities, and explained variances: raw, and less that of any tokens."""
    layers = []
    for at, (self_adjusted, explained, explained_adjusted) in enumerate(rows):
        numbers = {one.name: Estimate(0.5, 0.001) for one in fields(WordSimilarity)}
        numbers |= {name: Estimate(value, 0.001) for name, value in (
            ("self_adjusted", self_adjusted), ("explained", explained), ("explained_adjusted", explained_adjusted),
        )}  # fmt: skip
        level = Level(0.4, 0.001, 900, 0, 0, 1.0)
        layers.append(TokensLayer(at, "", level, Claim(0.4 * (at > 0), 0.0, 0.01), 3.2, WordSimilarity(**numbers)))
    return TokensResult({}, {}, tuple(layers), (), contextual, Words(("w",) * 7, 9, 2, 9, 9), {})


def of_class(layer: int, share: float, opens: float, name: str = MASSIVE) -> TokenClass:
    known = Estimate(share, 0.002)
    excess, opened = Claim(share - 0.1, 0.0, 0.01), Claim(opens, 0.0, 0.01)
    return TokenClass(layer, "norm", name, 90, 0.1, known, excess, known, known, Estimate(0.4 - opens, 0.001), opened)


def test_words_move_as_their_claim_says_and_differ_most_by_what_is_adjusted() -> None:
    rows = ((0.2, 0.9, 0.3), (0.3, 0.8, 0.1), (0.6, 0.7, 0.4))
    grows = of_numbers(*rows, contextual=Claim(0.4, 0.0, 0.01)).summary()
    assert grows[-2].endswith("any two tokens grows from 0.200 ± 0.001 at layer 0 to 0.600 ± 0.001 at layer 2.")
    assert "explains 0.400 ± 0.001 more than that of as many tokens' at layer 2, where it is most" in grows[-1]
    assert grows[-1].endswith(" and 0.100 ± 0.001 at layer 1, where it is least.")
    falls = of_numbers(*rows[::-1], contextual=Claim(-0.4, 0.0, 0.01)).summary()
    assert "any two tokens falls from 0.600 ± 0.001 at layer 0 to 0.200" in falls[-2]
    alike = of_numbers(*rows, contextual=Claim(0.4, 0.0, 0.5)).summary()
    assert "is 0.200 ± 0.001 at layer 0 and, not told from that, 0.600 ± 0.001 at layer 2." in alike[-2]


@pytest.mark.parametrize(("opens", "words"), [(0.1, "0.300 in place of 0.400, a wider cone."),
                                              (-0.1, "0.500 in place of 0.400, a tighter cone."),
                                              (0.0, "0.400 in place of 0.400.")])  # fmt: skip
def test_long_tokens_are_told_where_there_is_a_cone_to_share(opens: float, words: str) -> None:
    """At layer 0 there is none, whatever their share of it is."""
    found = of_numbers((0.2, 0.9, 0.3), (0.3, 0.8, 0.1), contextual=Claim(0.1, 0.0, 0.01))
    classes = of_class(0, 0.8, 0.0), of_class(1, 0.5, opens), of_class(1, 0.45, 0.3, "8 to 16")
    said = replace(found, classes=classes[1:]).summary()[list(TOKEN_DIVISIONS).index("norm")]
    assert said.startswith(
        "By their norm, the tokens of norms of 51.2 and more exceed their share of the tokens most, "
    )
    assert said.endswith(f"10.0% of the tokens make 50.0% ± 0.2% of the cone. Without them the mean cosine is {words}")
    massive = " ".join(replace(found, classes=classes).summary())
    assert "at layer 1 they are 10.0% of the tokens and make 50.0% of the cone." in massive
