"""What is said of a centering, shown and written: on levels and judgements made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cone_kernels.centering import Centering
from cone_kernels.experiments.centering_result import CenteringResult
from cone_kernels.experiments.dependence import Dependence
from cone_kernels.experiments.held_out import Judged
from cone_kernels.experiments.level import Level
from cone_kernels.experiments.quality_result import Quality
from cone_kernels.names import QUALITY_NOT_MEASURED
from cone_kernels.statistics.claims import Claim
from tests.experiments.test_quality_result import FITS, LAYERS, VERDICT

BEFORE, AFTER = Level(0.5, 0.01, 1000, 0, 0, 1.0), Level(-0.001, 0.02, 900, 0, 0, 1.0)
UNDEFINED = Level(math.nan, math.nan, 1, 0, 0, 1.0, "a pair needs two")
QUALITY = Quality("auc", 1200, 1200, 300, 4, {"texts": 900}, LAYERS, FITS, VERDICT, {})


def centering(method: Any = "mean", components: int = 0, shrinkage: float | None = None) -> Centering:
    directions = torch.eye(components, 12, dtype=torch.float64) if components else None
    matrix = None if shrinkage is None else torch.eye(12, dtype=torch.float64)
    mean = torch.zeros(12, dtype=torch.float64)
    return Centering(method, "sentence", 4, 400, mean, directions, matrix, shrinkage, None)


def judgement(value: float, bound: float = 0.02, folds: int = 4, stderr: float = 0.015625) -> Judged:
    """0.5 before; 0.015625 is a binary fraction, so that twice that is known to the last bit."""
    return Judged(value, stderr, 0.5, Claim(value - 0.5, 0.0, bound), folds, 300)


def result(held_out: Judged | str | None = None, **changed: Any) -> CenteringResult:
    given: dict[str, Any] = {"model": {}, "corpus": {}, "layer": 4, "layer_name": "block", "before": BEFORE}
    given |= {"after": AFTER, "fitted_on": {"state": None, "sentences": 4000}, "cone": Claim(0.5, 0.0, 0.05)}
    given |= {"file": None, "manifest": {}, "centering": centering()}
    return CenteringResult(held_out=held_out or judgement(0.25), **{**given, **changed})


def test_four_quarters_are_told_apart_from_a_state_that_fits_and_rows_that_measure() -> None:
    assert result().summary() == (
        "Subtracting the mean takes the mean cosine of two sentences at layer 4 from 0.500 to 0.250 ± 0.016, measured "
        "on sentences that it was not fitted on (each quarter of 4,000 sentences, fitted on the other three).",
        "It opens the cone: 50.0% of it is left.",
        QUALITY_NOT_MEASURED,
    )
    other = result(judgement(0.25, folds=1), fitted_on={"state": "other", "sentences": 4000})
    assert other.summary()[0].endswith(" ± 0.016, measured on 900 sentences, fitted on the 4,000 sentences of other.")
    assert "not fitted on (each quarter" in result(judgement(0.25, folds=2)).summary()[0]


def test_of_vectors_no_layer_is_told() -> None:
    of_vectors: dict[str, Any] = {"model": {"vectors": {}}, "layer": "output"}
    said = result(**of_vectors).summary()
    assert said[0].startswith("Subtracting the mean takes the mean cosine of two vectors from 0.500 to 0.250")
    assert "measured on vectors that it was not fitted on (each quarter of 4,000 vectors" in said[0]
    alone = result(after=None, **of_vectors)
    assert alone.summary() == (
        "The centering was fitted on 4,000 vectors; the mean cosine of two vectors is 0.500 without it.",
    )
    assert alone.reasons == (
        "after: a saved state has none of its vectors to apply the centering to; give the vectors too",
    )
    assert result(after=None).reasons == (
        "after: a saved state has no sentence vectors to apply the centering to; give a model and a corpus too",
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "mean"}, "Subtracting the mean takes"),
        (
            {"method": "all-but-the-top", "components": 1},
            "Subtracting the mean and projecting out the top direction takes",
        ),
        (
            {"method": "all-but-the-top", "components": 2},
            "Subtracting the mean and projecting out the top 2 directions takes",
        ),
        ({"method": "whitening", "shrinkage": 0.125}, "Whitening with shrinkage 0.125 takes"),
    ],
)
def test_each_method_has_its_words(options: dict[str, Any], words: str) -> None:
    assert result(centering=centering(**options)).summary()[0].startswith(f"{words} the mean cosine")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        # Two standard errors of 1/64 on either side of 0 are not told from it.
        (0.03125, "It opens the cone: what is left is not told from 0."),
        (0.04, "It opens the cone: 8.0% of it is left."),
        (-0.03125, "It opens the cone: what is left is not told from 0."),
        (-0.04, "Two sentences point apart on average now."),
        (0.6, "It makes the cone tighter: 300 sentences are too few to fit it on."),
    ],
)
def test_what_is_left_is_told_from_nothing_by_two_standard_errors(value: float, words: str) -> None:
    assert result(judgement(value)).summary()[1] == words


def test_without_a_cone_nothing_is_opened_and_few_rows_do_not_decide() -> None:
    assert result(cone=Claim(0.01, 0.0, 0.05)).summary()[1] == "No cone was told from noise before."
    # A bound of twice the change: four times as many rows as the 1,000 of before.
    undecided = result(judgement(0.25, bound=0.5)).summary()[1]
    assert undecided == "Whether it opens the cone is undecided; about 4,000 sentences would decide it."
    assert result(judgement(0.25, bound=math.nan)).summary()[1] == "Whether it opens the cone is undecided."


def test_prompts_are_told_where_they_differ() -> None:
    fitted_on = {"state": "other", "sentences": 4000, "prompt": "query: "}
    said = result(fitted_on=fitted_on, model={"prompt": None}).summary()
    assert said[1] == "It was fitted with the prompt “query: ”, and measured without a prompt."
    assert len(result(fitted_on=fitted_on, model={"prompt": "query: "}).summary()) == 3


def test_what_was_measured_where_it_was_fitted_is_said_to_prove_nothing() -> None:
    assert result("there are too few").summary() == (
        "Subtracting the mean takes the mean cosine of two sentences at layer 4 from 0.500 to -0.001, measured on the "
        "4,000 sentences that it was fitted on, which proves nothing: there are too few.",
        QUALITY_NOT_MEASURED,
    )
    assert result("there are too few").reasons == ("held_out: there are too few",)


def test_of_what_is_not_defined_the_reasons_alone_are_told() -> None:
    neither = result("there are too few", before=UNDEFINED, after=UNDEFINED)
    assert neither.summary() == ()
    assert neither.reasons == (
        "before: a pair needs two",
        "after: a pair needs two",
        "held_out: there are too few",
    )
    assert neither.to_dict()["reason"] == "; ".join(neither.reasons)
    assert result(after=UNDEFINED).summary() == result(before=UNDEFINED).summary() == ()
    assert result(before=UNDEFINED, after=None).summary() == ()
    assert "reason" not in result().to_dict()


def test_quality_and_dependence_are_told_after_the_cone() -> None:
    alike = Dependence(0.5, 0.2)
    found = result(quality=QUALITY, dependence=alike)
    assert found.summary()[2:] == (*QUALITY.summary(), *alike.summary("sentences"))
    assert result(quality="the pairs of this run tell").summary()[2:] == ("the pairs of this run tell",)
    assert result(before=UNDEFINED, quality=QUALITY).summary() == QUALITY.summary()
    of_vectors = result(model={"vectors": {}}, dependence=alike)
    assert of_vectors.summary()[-1].startswith("Neighbouring vectors are alike")


def test_json_has_null_for_what_was_not_measured() -> None:
    data = result(quality=QUALITY, dependence=Dependence(0.5, 0.2)).to_dict()
    assert data["before"] == {"value": 0.5, "stderr": 0.01}
    assert data["after"] == {"value": -0.001, "stderr": 0.02}
    assert data["held_out"] == judgement(0.25).to_dict()
    assert data["dependence"] == {"autocorrelation": 0.5, "threshold": 0.2, "warning": True}
    assert data["quality"] == QUALITY.to_dict()
    bare = result("there are too few", after=None, quality="said elsewhere").to_dict()
    assert (bare["after"], bare["held_out"], bare["dependence"]) == (None, None, None)
    assert "quality" not in bare


def test_repr_has_what_was_fitted_and_both_levels() -> None:
    shown = repr(result())
    assert shown == (
        "CenteringResult(Centering(mean, 12 wide, layer 4, from 400 sentences), mean cosine before 0.5000 (0.0100), "
        "after -0.0010 (0.0200))"
    )
    assert repr(result(after=None)).endswith("before 0.5000 (0.0100), after not measured)")
