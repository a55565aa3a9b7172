"""Whether an axis goes with how common words are: against plain ranks, and against directions that chance draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from cone_kernels.experiments.axis import axis
from cone_kernels.experiments.axis_result import AxisResult
from cone_kernels.experiments.frequency import FrequencyRelation, drawn_directions, of_sentences, of_tokens
from cone_kernels.experiments.vocabulary import TokenEmbeddings
from cone_kernels.report import write_report
from tests.support.moment_cases import normal
from tests.support.tiny_checkpoints import save_checkpoint

SENTENCES = [" ".join(f"w{4 + (i * (j + 3) + j * j) % 90 * (i % (j + 2) > 0)}" for j in range(6)) for i in range(60)]
D, V = 10, 400
COUNTS = (1000 / torch.arange(1, V + 1).double()).long() * (torch.arange(V) % 7 != 3)


def embeddings(along: Tensor, strength: float) -> TokenEmbeddings:
    """Random ones, shifted along a direction by how rare a token is."""
    weight = normal(V, D, dtype=torch.float64, seed=2, shift=0)
    weight += strength * torch.linspace(-1, 1, V, dtype=torch.float64)[:, None] * along
    return TokenEmbeddings(weight, "", None)


def basis(at: int) -> Tensor:
    return torch.eye(D, dtype=torch.float64)[at]


def test_of_tokens_is_the_plain_rank_correlation() -> None:
    found = embeddings(basis(0), 0.5)
    axes = torch.stack([basis(0), basis(3)])
    drawn = drawn_directions(torch.eye(D, dtype=torch.float64))
    relations = of_tokens(found, COUNTS, axes, drawn)
    seen = COUNTS > 0
    for axis_, relation in zip(axes, relations, strict=True):
        rho = spearmanr(found.weight[seen] @ axis_, COUNTS[seen]).statistic
        assert relation.rows == int(seen.sum())
        assert relation.correlation == pytest.approx(rho, abs=1e-12)
    by_chance = np.abs([spearmanr(found.weight[seen] @ one, COUNTS[seen]).statistic for one in drawn])
    assert relations[0].random_mean == pytest.approx(by_chance.mean(), abs=1e-12)
    assert relations[0].random_p95 == pytest.approx(np.quantile(by_chance, 0.95), abs=1e-12)


def test_an_axis_of_common_words_is_told_from_others() -> None:
    covariance = torch.diag(torch.linspace(0.5, 2, D, dtype=torch.float64))
    drawn = drawn_directions(covariance)
    carried, plain = of_tokens(embeddings(basis(0), 3.0), COUNTS, torch.stack([basis(0), basis(1)]), drawn)
    assert carried.claim.verdict == "greater"
    assert "common words lie at its lower end, more than at those of other directions" in carried.in_words("tokens")
    assert plain.claim.verdict == "less"
    assert "no more than at those of other directions" in plain.in_words("tokens")
    # Where every direction goes with frequency, no axis is told from them.
    every = torch.ones(D, dtype=torch.float64)
    relations = of_tokens(embeddings(every, 3.0), COUNTS, basis(0)[None], drawn_directions(torch.ones(D, D).double()))
    assert relations[0].claim.verdict != "greater"


def test_the_error_is_that_of_other_tokens() -> None:
    """Of vocabularies drawn anew the correlation spreads as its standard error says."""
    found = []
    for seed in range(60):
        weight = normal(V, 1, dtype=torch.float64, seed=seed, shift=0) + torch.linspace(-1, 1, V).double()[:, None]
        counts = torch.arange(V, 0, -1)
        found += of_tokens(
            TokenEmbeddings(weight, "", None), counts, torch.ones(1, 1).double(), torch.ones(2, 1).double()
        )
    spread = np.std([one.correlation for one in found], ddof=1)
    assert spread == pytest.approx(np.mean([one.stderr for one in found]), rel=0.35)


def test_drawn_directions_have_the_covariance() -> None:
    values = torch.tensor([9.0, 1.0, 0.0], dtype=torch.float64)
    drawn = drawn_directions(torch.diag(values))
    assert drawn.norm(dim=1).tolist() == pytest.approx([1] * len(drawn))
    assert float(drawn[:, 2].abs().max()) < 1e-4
    # Of normal numbers with deviations 3 and 1 the mean of x²/(x² + y²) is 3/(3 + 1); of so many, give or take 0.035.
    assert float(drawn[:, 0].square().mean()) == pytest.approx(0.75, abs=0.1)


def test_embeddings_go_through_the_models_map() -> None:
    linear = nn.Linear(4, D).double()
    weight = normal(9, 4, dtype=torch.float64)
    axes = normal(2, D, dtype=torch.float64, seed=1)
    found = TokenEmbeddings(weight, "map", linear).projected(torch.tensor([1, 8, 9]), axes)
    torch.testing.assert_close(found[:2], (linear(weight[[1, 8]]) @ axes.mT).detach())
    assert bool(found[2].isnan().all())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> AxisResult:
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder)
    return axis(str(folder), SENTENCES, k=2, top=2, tokens=2)


def test_the_command_answers_it(result: AxisResult, tmp_path: Path) -> None:
    for component in result.components:
        assert set(component.frequency) == {"tokens", "sentences"}
        sentences = component.frequency["sentences"]
        assert sentences.correlation == pytest.approx(component.correlations["token_frequency"], abs=1e-9)
        assert sentences.rows == result.sentences
    data = json.loads(json.dumps(result.to_dict()))
    assert data["components"][0]["frequency"]["tokens"]["random"]["p95"] > 0
    assert any(line.startswith("Is it carried by common words? ") for line in result.summary())
    write_report(data, tmp_path / "report.html")
    assert "directions drawn from the covariance" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_of_sentences_has_the_errors_of_independent_sentences() -> None:
    relations = of_sentences(11, torch.tensor([0.5, -0.2, 0.1, -0.3], dtype=torch.float64), 2)
    assert [one.rows for one in relations] == [11, 11]
    assert [one.correlation for one in relations] == [0.5, -0.2]
    # (1 - r²)/√(n - 2); both are judged together (Šidák), with n - 2 degrees of freedom.
    assert [one.stderr for one in relations] == pytest.approx([0.25, 0.32])
    t = scipy.stats.t.ppf(0.5 + 0.95**0.5 / 2, 9)
    for one in relations:
        assert one.bound == pytest.approx(t / math.sqrt(9 + t**2))
        assert (one.random_mean, one.random_p95) == pytest.approx((0.2, 0.29))
    (few,) = of_sentences(3, torch.tensor([0.5, 0.1], dtype=torch.float64), 1)
    assert few.stderr == 0.75


def test_tokens_are_eight_that_have_an_embedding() -> None:
    found = embeddings(basis(0), 1.0)
    found.weight[2] = math.nan
    axes = torch.stack([basis(0), basis(1)])
    relations = of_tokens(found, torch.tensor([0, 4, 2, 3, 1, 9, 7, 7, 5, 6]), axes, basis(2)[None])
    assert [one.rows for one in relations] == [8, 8]
    assert of_tokens(found, torch.tensor([0, 4, 2, 3, 1, 9, 7, 7, 5]), axes, basis(2)[None]) == []


def test_what_is_not_defined_is_not_said() -> None:
    assert of_sentences(9, torch.tensor([0.5, torch.nan, 0.1]), 1) == []
    assert of_sentences(2, torch.ones(5), 1) == []
    assert of_sentences(9, torch.full((5,), torch.nan), 1) == []
    drawn = drawn_directions(torch.eye(D, dtype=torch.float64))
    assert of_tokens(embeddings(basis(0), 1.0), torch.tensor([0, 4, 2, 0, 1]), basis(0)[None], drawn) == []


@pytest.mark.parametrize(
    ("correlation", "bound", "words"),
    [
        ("+0.40", 0.01, "common words lie at its upper end, more than at those of other directions"),
        ("-0.40", 0.01, "common words lie at its lower end, more than at those of other directions"),
        ("+0.20", 0.01, "common words lie at its ends no more than at those of other directions"),
        ("+0.40", 0.3, "whether common words lie at its ends more than at those of other directions is undecided"),
    ],
)
def test_what_it_says_of_sentences_and_of_tokens(correlation: str, bound: float, words: str) -> None:
    relation = FrequencyRelation(3000, float(correlation), 0.15, bound, 0.2, 0.35)
    assert relation.in_words("tokens") == (
        f"{words}: rho = {correlation} (s.e. 0.15) over 3,000 tokens, where directions drawn from the covariance have "
        "|rho| 0.20 on average and one in twenty more than 0.35"
    )
    assert relation.in_words("sentences") == (
        f"{words.replace('common', 'sentences of common')}: r = {correlation} (s.e. 0.15) over 3,000 sentences, where "
        "directions drawn from the covariance have |r| 0.20 on average and one in twenty more than 0.35"
    )
