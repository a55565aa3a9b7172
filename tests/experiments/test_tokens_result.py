"""What is said of classes of tokens, of numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cone_kernels.experiments.tokens import _typical_exponent
from cone_kernels.experiments.tokens_result import MASSIVE, TokensResult, _named
from cone_kernels.names import TOKEN_DIVISIONS
from cone_kernels.statistics.claims import Claim
from tests.experiments.test_tokens import of_class, of_numbers

GROWS = Claim(0.4, 0.0, 0.01)


def result(layers: int = 3) -> TokensResult:
    """Of layers at which there is a cone, but for the first one."""
    return of_numbers(*[(0.2, 0.9, 0.3)] * layers, contextual=GROWS)


@pytest.mark.parametrize(
    ("by", "name", "words"),
    [
        ("special", "text", "the tokens of the text"),
        ("special", "[CLS]", "the [CLS] tokens"),
        ("frequency", "special", "the special tokens"),
        ("frequency", "11 to 100", "the tokens of ranks 11 to 100"),
        ("position", "3 to 4", "the tokens in place “3 to 4”"),
        ("norm", "2 to 4", "the tokens of norms from 6 to 12"),
    ],
)
def test_classes_are_called_by_their_division(by: str, name: str, words: str) -> None:
    assert _named(replace(of_class(1, 0.5, 0.0, name), by=by), 3.0) == words


@pytest.mark.parametrize(
    ("counts", "exponent"),
    [
        ({-1: (1, 1), 3: (2, 0)}, -1),  # the half of them
        ({-1: (1, 0), 3: (2, 0)}, 3),
        ({3: (0, 2), 4: (1, 0), -1: (1, 0)}, 3),  # in whatever order
        ({0: (1, 0), 1: (1, 0), 2: (3, 0)}, 2),
        ({}, None),
    ],
)
def test_the_median_token_is_in_one_class_of_norms(counts: dict[int, tuple[int, int]], exponent: int | None) -> None:
    found = {number: {"count": torch.tensor(by_group)} for number, by_group in counts.items()}
    assert _typical_exponent(found) == exponent


def of_norms(found: TokensResult) -> str:
    return found.summary()[list(TOKEN_DIVISIONS).index("norm")]


def test_the_class_that_exceeds_its_share_most_is_told_with_where_it_does() -> None:
    found = result()
    last = found.layers[2]
    last = replace(last, typical_norm=6.4, token=replace(last.token, anisotropy=0.5))
    found = replace(found, layers=(*found.layers[:2], last))
    many = [of_class(2, 0.6, 0.2), of_class(1, 0.5, 0.1), of_class(1, 0.55, 0.3, "8 to 16")]
    begin = "By their norm, the tokens of norms of 102 and more exceed their share of the tokens most, at layer 2"
    end = (
        ": 10.0% of the tokens make 60.0% ± 0.2% of the cone. Without them the mean cosine is 0.200 in place of 0.500, "
        "a wider cone."
    )
    at = " (more than their share at layers 1 and 2)"
    assert of_norms(replace(found, classes=tuple(many))) == f"{begin}{at}{end}"
    assert of_norms(replace(found, classes=tuple(many[:1]))) == f"{begin}{end}"


def test_why_no_class_exceeds_its_share() -> None:
    begin = "By their norm, no tokens make more of the cone than their share of the tokens"
    few = of_class(1, 0.5, 0.0)
    unknown, within = (replace(few, excess=Claim(0.4, 0.0, bound)) for bound in (math.nan, 0.5))
    told, untold = f"{begin}, as far as can be told.", f"{begin}, for there are too few groups of sentences to tell."
    assert of_norms(replace(result(), classes=(unknown,))) == of_norms(result()) == untold
    assert of_norms(replace(result(), classes=(unknown, within))) == told


def test_massive_activations_are_told_where_they_are() -> None:
    def said(*layers: int) -> str:
        return replace(result(), classes=tuple(of_class(at, 0.3 + at / 10, 0.0) for at in layers)).summary()[4]

    none = "No token at any layer is 16 times as long as the median one: there are no massive activations."
    begin = "Tokens more than 8 times as long as the median one, massive activations, are there at layer"
    assert said() == none
    assert replace(result(), classes=(of_class(1, 0.5, 0.0, "8 to 16"),)).summary()[4] == none
    assert replace(result(), classes=(replace(of_class(1, 0.5, 0.0, MASSIVE), by="position"),)).summary()[4] == none
    assert said(0) == f"{begin} 0."  # where there is no cone
    assert said(1, 2) == f"{begin}s 1 and 2; at layer 2 they are 10.0% of the tokens and make 50.0% of the cone."


def test_without_a_cone_there_is_nothing_to_share() -> None:
    words = "At no layer is there a cone of tokens to share: their mean cosine is not told from 0."
    assert result(layers=1).summary() == (words,)
    assert len(result(layers=2).summary()) == len(TOKEN_DIVISIONS) + 3


def test_a_class_is_found_by_all_its_names() -> None:
    one, other = of_class(1, 0.5, 0.0), of_class(2, 0.5, 0.0, "1 to 2")
    found = replace(result(), classes=(one, other))
    assert found.at(1, "norm", MASSIVE) is one
    assert found.at(2, "norm", "1 to 2") is other
    assert found.at(2, "norm", MASSIVE) is found.at(1, "position", MASSIVE) is found.at(0, "norm", MASSIVE) is None
