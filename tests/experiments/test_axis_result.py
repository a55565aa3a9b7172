"""What is said of an axis, shown and written: on components made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from cone_kernels.experiments.axis_result import AxisResult, Component, SentenceProjection, degrees, excerpt
from cone_kernels.experiments.axis_vectors import AxisVectors
from cone_kernels.experiments.frequency import FrequencyRelation
from cone_kernels.experiments.vocabulary import TokenProjection

NOTHING = {"length": math.nan, "token_frequency": math.nan, "norm": math.nan}
FAR = {"furthest": [5.0, 1.0], "random_furthest": {"mean": 3.0, "p95": 4.0}}


def component(**changed: Any) -> Component:
    given: dict[str, Any] = {"eigenvalue": 2.0, "explained_variance_ratio": 0.25, "residual": 1e-9, "eigengap": 1.0}
    given |= {"top": (SentenceProjection("high", 1.5, 7),), "bottom": (SentenceProjection("low", -0.25, 3),)}
    given |= {"tokens_top": (), "tokens_bottom": (), "correlations": NOTHING}
    return Component(**{**given, **changed})


def result(*components: Component, **changed: Any) -> AxisResult:
    given: dict[str, Any] = {"model": {"architecture": "BertModel"}, "corpus": {"name": "c"}, "layer": 4}
    given |= {"layer_name": "block", "sentences": 1234, "mean_cosine": math.nan, "uncentered_mean_cosine": 0.5}
    given |= {"centered_uncentered_cosine": 0.25, "vocabulary": FAR, "vectors_file": None, "reasons": ()}
    given |= {"manifest": {}, "vectors": AxisVectors}
    return AxisResult(components=components, **{**given, **changed})


def test_what_the_first_axis_carries_and_what_lies_at_its_ends() -> None:
    assert result(component()).summary() == (
        "The first axis of layer 4 carries 25.0% of the variance of 1,234 sentence vectors.",
        "At its upper end lies “high” (+1.5), at its lower end “low” (-0.25).",
    )
    first = result(component(), component(explained_variance_ratio=0.125)).summary()[0]
    assert first.endswith("of the variance of 1,234 sentence vectors, the first 2 together 37.5%.")


@pytest.mark.parametrize(("eigengap", "said"), [(0.19, True), (0.2, False)])
def test_a_second_axis_within_a_tenth_is_told(eigengap: float, said: bool) -> None:
    words = "The second axis carries nearly as much, so another sample could turn the first towards it."
    assert (result(component(eigengap=eigengap)).summary()[1] == words) == said


def test_three_tokens_of_each_end_are_told() -> None:
    top, bottom = (tuple(TokenProjection(f"{one}{at}", at, 0.0) for at in range(4)) for one in "tb")
    found = component(tokens_top=top, tokens_bottom=bottom)
    far = "Of the vocabulary, “t0”, “t1”, “t2” lie furthest along it, “b0”, “b1”, “b2” furthest against it"
    assert result(found).summary()[2] == f"{far}."
    # One random direction in twenty lies further out than 4.
    near = {**FAR, "furthest": [4.0, 9.0]}
    assert result(found, vocabulary=near).summary()[2] == (
        f"{far}; along random directions tokens lie as far out (4.0 standard deviations here, up to 4.0 there), so "
        "these say nothing of the axis."
    )


def test_whether_common_words_carry_it_is_told_of_tokens_and_of_sentences() -> None:
    relations = {of: FrequencyRelation(400, 0.5, 0.05, 0.1, 0.1, 0.2) for of in ("tokens", "sentences")}
    said = result(component(frequency=relations)).summary()[2]
    tokens, sentences = (relations[of].in_words(of) for of in ("tokens", "sentences"))
    assert said == f"Is it carried by common words? {tokens[0].upper()}{tokens[1:]}; {sentences}."
    assert said.startswith("Is it carried by common words? Common words lie at its upper end")


@pytest.mark.parametrize(
    ("correlations", "sentences", "words"),
    [
        # Of 1,002 sentences |r| is known to ± 0.075.
        (
            {"length": 0.4, "token_frequency": -0.7, "norm": 0.2},
            1002,
            "frequency of the sentence's tokens in the corpus most: r = -0.70.",
        ),
        (
            {"length": 0.65, "token_frequency": -0.7, "norm": 0.2},
            1002,
            "frequency of the sentence's tokens in the corpus: r = -0.70.",
        ),
        (
            {"length": 0.4, "token_frequency": -0.65, "norm": 0.7},
            1002,
            "It goes with the norm of the sentence vector: r = +0.70.",
        ),
        # One that is close to it is enough.
        (
            {"length": 0.1, "token_frequency": 0.69, "norm": 0.7},
            1002,
            "It goes with the norm of the sentence vector: r = +0.70.",
        ),
        (
            {"length": 0.1, "token_frequency": -0.1, "norm": math.nan},
            1002,
            "It goes with none of length, token frequency: every |r| is below 0.3.",
        ),
        (
            {"length": 0.1, "token_frequency": -0.29, "norm": math.nan},
            1002,
            "Whether it goes with token frequency is undecided: 1,002 sentences are too few to tell it from an accide",
        ),
        (
            {"length": 0.28, "token_frequency": -0.29, "norm": 0.0},
            1002,
            "Whether it goes with length, token frequency is undecided: 1,002 sentences are too few",
        ),
    ],
)
def test_what_the_axis_goes_with(correlations: dict[str, float], sentences: int, words: str) -> None:
    said = result(component(correlations=correlations), sentences=sentences).summary()
    assert len(said) == 3
    assert words in said[2]


def test_of_what_does_not_vary_nothing_is_said() -> None:
    assert len(result(component()).summary()) == 2


@pytest.mark.parametrize(
    ("angle", "words"),
    [
        (80.3, "It stands across the mean direction (80°): what sentences share is not what tells them apart."),
        (79.7, "It stands at 80° to the mean direction."),
        (10.3, "It stands at 10° to the mean direction."),
        (9.7, "It is nearly the mean direction (10°): sentences differ most in how far they go along it."),
    ],
)
def test_the_angle_to_the_mean_is_across_from_80_degrees_and_along_up_to_10(angle: float, words: str) -> None:
    assert result(component(), mean_cosine=math.cos(math.radians(angle))).summary()[2] == words


def test_an_angle_is_from_zero_to_ninety_degrees() -> None:
    assert [degrees(one) for one in (1.0, 1 + 1e-12, 0.0)] == [0.0, 0.0, 90.0]
    assert degrees(0.5) == pytest.approx(60, rel=1e-12)
    assert math.isnan(degrees(math.nan))


@pytest.mark.parametrize(
    ("text", "width", "line"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abcde…"),
        ("abcd efg", 6, "abcd…"),
        ("a\t\x00b\n c", 9, "a b c"),
    ],
)
def test_an_excerpt_is_one_line_of_its_width(text: str, width: int, line: str) -> None:
    assert excerpt(text, width) == line


def test_ends_are_cut_to_seventy_characters_and_tokens_to_twenty() -> None:
    long = (SentenceProjection("x" * 71, 1.0, 0),)
    tokens = (TokenProjection("y" * 21, 0, 1.0),)
    said = result(component(top=long, bottom=long, tokens_top=tokens, tokens_bottom=tokens)).summary()
    assert said[1].count("“" + "x" * 69 + "…”") == 2
    assert said[2].count("“" + "y" * 19 + "…”") == 2


def test_json_has_null_for_what_is_not_defined() -> None:
    first = component(eigengap=math.nan, correlations={**NOTHING, "length": 0.5})
    first = replace(first, frequency={"tokens": FrequencyRelation(400, 0.5, 0.05, 0.1, 0.1, 0.2)})
    data = result(first, vectors_file="axis.safetensors", reasons=("why",)).to_dict()
    assert data["components"] == [
        {
            "eigenvalue": 2.0,
            "explained_variance_ratio": 0.25,
            "residual": 1e-9,
            "eigengap": None,
            "top": [{"text": "high", "projection": 1.5, "sentence": 7}],
            "bottom": [{"text": "low", "projection": -0.25, "sentence": 3}],
            "tokens_top": [],
            "tokens_bottom": [],
            "correlations": {"length": 0.5, "token_frequency": None, "norm": None},
            "frequency": {"tokens": first.frequency["tokens"].to_dict()},
        }
    ]
    names = ("mean_cosine", "uncentered_mean_cosine", "centered_uncentered_cosine", "vectors_file", "reasons")
    assert [data[name] for name in names] == [None, 0.5, 0.25, "axis.safetensors", ["why"]]


def test_repr_has_a_line_for_every_axis() -> None:
    known = {"length": 0.5, "token_frequency": -0.25, "norm": math.nan}
    shown = repr(result(component(correlations=known), component(eigenvalue=1.0), mean_cosine=0.125))
    assert shown.splitlines() == [
        "AxisResult(BertModel, layer 4, 1234 sentences of c)",
        "  |cos| with the mean direction 0.1250",
        "  axis  eigenvalue  of variance  r length  r token_frequency  r norm",
        "     1           2       25.00%     0.500             -0.250     nan",
        "     2           1       25.00%       nan                nan     nan",
    ]


def test_results_that_differ_in_the_object_of_their_vectors_alone_are_equal() -> None:
    other: Any = None
    assert result(component()) == result(component(), vectors=other)
