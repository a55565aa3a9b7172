"""The vocabulary along an axis, against a plain matrix product of the embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cone_kernels.experiments.vocabulary import VocabularyError, VocabularyProjection, project_vocabulary
from tests.support.moment_cases import normal
from tests.support.tiny_checkpoints import word_tokenizer
from tests.support.tiny_models import HIDDEN, VOCAB, ToyModel, tiny_model

AXES = normal(1, 2, HIDDEN, dtype=torch.float64, shift=0.0)[0]


def check(found: VocabularyProjection, embeddings: Tensor, ids: list[int], count: int, tolerance: float) -> None:
    """Highest and lowest tokens of `ids` are those of embeddings (V, d) times the axes, sorted whole."""
    names = word_tokenizer().convert_ids_to_tokens(range(VOCAB))
    expected = embeddings.detach().double().numpy() @ AXES.numpy().T  # (V, k)
    for axis, column in enumerate(expected.T):
        order = sorted(ids, key=lambda i: (-column[i], i))
        for tokens, wanted in ((found.highest[axis], order[:count]), (found.lowest[axis], order[::-1][:count])):
            assert [token.id for token in tokens] == wanted
            assert [token.token for token in tokens] == [names[i] for i in wanted]
            np.testing.assert_allclose([token.projection for token in tokens], column[wanted], atol=tolerance)


def test_projection_is_the_embedding_times_the_axis() -> None:
    model = tiny_model("bert")
    found = project_vocabulary(model, word_tokenizer(), AXES, 7)
    check(found, model.embeddings.word_embeddings.weight, list(range(VOCAB)), 7, 1e-12)
    assert found.to_dict() == {
        "tokens": VOCAB,
        "projected": "input embeddings",
        "rows_without_token": 0,
        "rows_not_finite": 0,
        "tokens_without_row": 0,
        "furthest": list(found.furthest),
        "random_furthest": dict(found.random_furthest),
    }


def test_how_far_out_tokens_lie_is_compared_with_random_directions() -> None:
    model = tiny_model("bert")
    weight = model.embeddings.word_embeddings.weight.detach()
    with torch.no_grad():
        weight[7:9] += 8 * weight.std() * torch.tensor([[1.0], [-1.0]]) * AXES[0].float()
    found = project_vocabulary(model, word_tokenizer(), AXES, 1)
    for axis, far in zip(AXES, found.furthest, strict=True):
        z = weight.double() @ axis
        z = ((z - z.mean()) / z.std(correction=0)).sort().values
        assert far == pytest.approx(float(z[-1] - z[0]) / 2, rel=1e-5)
    assert found.furthest[0] > found.random_furthest["p95"] > found.random_furthest["mean"] > 1


def test_more_tokens_asked_for_than_there_are() -> None:
    found = project_vocabulary(tiny_model("bert"), word_tokenizer(), AXES, 1000)
    assert len(found.highest[1]) == len(found.lowest[1]) == VOCAB


def test_low_precision_embeddings_are_taken_as_they_are() -> None:
    model = tiny_model("bert").to(torch.bfloat16)
    found = project_vocabulary(model, word_tokenizer(), AXES, 7)
    check(found, model.embeddings.word_embeddings.weight, list(range(VOCAB)), 7, 1e-12)


@pytest.mark.parametrize(
    ("architecture", "settings", "name"),
    [
        ("albert", {}, "encoder.embedding_hidden_mapping_in"),
        ("electra", {}, "embeddings_project"),
        ("deberta-v2", {"embedding_size": 16}, "embeddings.embed_proj"),
    ],
)
def test_narrow_embeddings_go_through_the_model_s_own_map(
    architecture: str, settings: dict[str, Any], name: str
) -> None:
    model: Any = tiny_model(architecture, **settings)
    weight = model.get_input_embeddings().weight
    assert weight.shape == (VOCAB, 16)
    with torch.no_grad():
        # A linear map in float64, so that nothing of the tolerance is its rounding.
        wide = model.double().get_submodule(name)(weight.double())  # (V, d)
    found = project_vocabulary(model, word_tokenizer(), AXES, 7)
    assert found.projected == f"input embeddings through {name}"
    check(found, wide, list(range(VOCAB)), 7, 1e-12)


def test_albert_as_wide_as_its_layers_still_has_its_map() -> None:
    model: Any = tiny_model("albert", embedding_size=HIDDEN).double()
    with torch.no_grad():
        wide = model.encoder.embedding_hidden_mapping_in(model.get_input_embeddings().weight)
    check(project_vocabulary(model, word_tokenizer(), AXES, 7), wide, list(range(VOCAB)), 7, 1e-12)


def test_padded_rows_are_left_out_and_counted() -> None:
    model: Any = tiny_model("bert")
    model.resize_token_embeddings(128)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[VOCAB:] = 1000 * AXES[0].float()
    found = project_vocabulary(model, word_tokenizer(), AXES, 7)
    check(found, model.embeddings.word_embeddings.weight, list(range(VOCAB)), 7, 1e-12)
    assert (found.tokens, found.rows_without_token, found.tokens_without_row) == (VOCAB, 128 - VOCAB, 0)


def test_tokens_beyond_the_matrix_and_gaps_in_the_ids_are_counted() -> None:
    tokenizer: Any = word_tokenizer()
    tokenizer.add_tokens(["new"])
    found = project_vocabulary(tiny_model("bert"), tokenizer, AXES, 7)
    assert (found.tokens, found.rows_without_token, found.tokens_without_row) == (VOCAB, 0, 1)

    class WithGap(type(tokenizer)):  # type: ignore[misc]
        def get_vocab(self) -> dict[str, int]:
            return {token: number for token, number in super().get_vocab().items() if number != 50}

    tokenizer.__class__ = WithGap
    model = tiny_model("bert")
    found = project_vocabulary(model, tokenizer, AXES, VOCAB)
    kept = [number for number in range(VOCAB) if number != 50]
    check(found, model.embeddings.word_embeddings.weight, kept, VOCAB, 1e-12)
    assert (found.tokens, found.rows_without_token) == (VOCAB - 1, 1)


def test_rows_that_are_not_finite_are_left_out_and_counted() -> None:
    model: Any = tiny_model("bert")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7, 3] = torch.nan
        model.embeddings.word_embeddings.weight[9, 0] = torch.inf
    found = project_vocabulary(model, word_tokenizer(), AXES, 7)
    kept = [number for number in range(VOCAB) if number not in {7, 9}]
    check(found, model.embeddings.word_embeddings.weight, kept, 7, 1e-12)
    assert (found.tokens, found.rows_not_finite) == (VOCAB - 2, 2)


class NoInput(ToyModel):
    """A model that, as CANINE does, hashes characters."""

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


class Narrow(ToyModel):
    """Its map takes three neighbouring tokens at once, as MobileBERT's does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_proj = nn.Linear(24, HIDDEN)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ToyModel, "ToyModel has no matrix of input embeddings"),
        (NoInput, "NoInput has no matrix of input embeddings"),
        (Narrow, "the input embeddings of Narrow have width 8, its layers 32, and no linear map"),
    ],
)
def test_a_vocabulary_that_cannot_be_projected_is_refused(model: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(VocabularyError, match=reason):
        project_vocabulary(model(), word_tokenizer(), AXES, 7)
