"""What is said of the quality of vectors: whole sentences, from numbers that are given."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cone_kernels.experiments.held_out import FOLDS
from cone_kernels.experiments.quality import layers_of
from cone_kernels.experiments.quality_result import (
    Fit,
    MethodQuality,
    Place,
    Quality,
    QualityLayer,
    Verdict,
    error_in_words,
    verdict_of,
)
from cone_kernels.names import QUALITY_METHODS
from cone_kernels.statistics.claims import Claim
from cone_kernels.statistics.estimates import Estimates

OUTPUT = Place("output", None)


def method(raw: float, difference: float, bound: float = 0.02, reason: str | None = None) -> MethodQuality:
    return MethodQuality(raw + difference, Claim(difference, 0.0, bound), 0.008, {}, reason)


def layer(at: Place, raw: float, **differences: float) -> QualityLayer:
    """Each method changes it by so much, and 0.02 is told from noise; that of NaN cannot be fitted."""
    methods = {
        name.replace("_", "-"): method(raw, value, reason="too few" if math.isnan(value) else None)
        for name, value in differences.items()
    }
    return QualityLayer(*at, raw, 0.01, {}, methods, (1,) * 4)


LAYERS = (
    layer(Place(0, "mean"), 0.6, mean=0.15, whitening=0.01),
    layer(Place(1, "mean"), 0.72, mean=0.01, whitening=0.03),
    layer(Place(2, "mean"), 0.69, mean=0.0, whitening=0.01),
    layer(OUTPUT, 0.7, mean=0.05, whitening=-0.04, all_but_the_top=0.012, partial_mean=math.nan),
)
FITS = (
    Fit("output", None, "pairs", 20, {"mean": (-0.012, 0.004)}),
    Fit("output", None, "pairs", 100, {"mean": (0.02, 0.0002)}),
    Fit("output", None, "corpus", 5000, {"mean": (0.04, 0.006)}, overlap=12),
    Fit(1, "mean", "pairs", 20, {"mean": (0.5, 0.1)}),
)
VERDICT = Verdict(
    decision="centre",
    layer="output",
    pooling=None,
    method="mean",
    value=0.75,
    claim=Claim(0.05, 0.0, 0.02),
    stderr=0.008,
    in_use=OUTPUT,
    in_use_value=0.7,
    best_raw=OUTPUT,
    raw_claim=Claim(0.0, 0.0, 0.0),
)


def said(layers: tuple[QualityLayer, ...] = LAYERS, fits: tuple[Fit, ...] = FITS, **verdict: Any) -> tuple[str, ...]:
    found = Quality("auc", 1200, 1200, 300, 4, {"texts": 900}, layers, fits, replace(VERDICT, **verdict), {})
    return found.summary()


def test_to_centre() -> None:
    assert said() == (
        "Centre: by the AUC of 1,200 labelled pairs, mean removal at the output serves best and takes it from the "
        "output as it is, 0.700 to 0.750 (+0.050 ± 0.008), tested on pairs that it was not fitted on.",
        "At the output whitening (−0.040 ± 0.008) harms; mean removal (+0.050 ± 0.008) helps; all but the top (+0.012 "
        "± 0.008) is not told from doing nothing.",
        "Some method helps at layers 0 and 1, most mean removal at layer 0: 0.600 to 0.750 (+0.150 ± 0.008).",
        "How many texts mean removal is fitted on: at the output it changes the quality by −0.012 ± 0.004 from 20 and "
        "+0.020 ± 0.0002 from 100; fitted on 5,000 sentences of the corpus by +0.040 ± 0.006, which has 12 of the "
        "pairs' 900 texts in it.",
    )


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (
            {"decision": "undecided", "value": 0.71, "claim": Claim(0.01, 0.0, 0.02)},
            "Whether to centre is undecided: by the AUC of 1,200 labelled pairs, the best is mean removal at the "
            "output, from the output as it is 0.700 to 0.710 (+0.010 ± 0.008), tested on pairs that it was not fitted "
            "on; about 4,800 pairs would decide it.",
        ),
        (
            {"decision": "do not", "value": 0.66, "claim": Claim(-0.04, 0.0, 0.02)},
            "Do not centre: by the AUC of 1,200 labelled pairs, even the best, mean removal at the output, takes it "
            "from the output as it is, 0.700 to 0.660 (−0.040 ± 0.008), tested on pairs that it was not fitted on.",
        ),
        (
            {"decision": "do not", "best_raw": Place(1, "mean"), "raw_claim": Claim(0.06, 0.0, 0.02)},
            "Do not centre: by the AUC of 1,200 labelled pairs, layer 1 as it is serves best, +0.060 against the "
            "output; no method at any layer reaches that, mean removal at the output comes next with +0.050 ± 0.008.",
        ),
    ],
)
def test_not_to_centre_and_not_to_know(verdict: dict[str, Any], words: str) -> None:
    assert said(**verdict)[0] == words


def test_what_is_not_known_is_not_said() -> None:
    assert said(in_use_value=math.nan) == ()
    assert said(value=math.nan) == ()
    alone = (layer(OUTPUT, 0.7, mean=0.05),)
    assert len(said(alone, ())) == 2
    unknown = Fit("output", None, "pairs", 20, {"mean": (math.nan, 0.1)})
    assert len(said(alone, (unknown,))) == 2
    assert said(alone, (FITS[0], replace(FITS[2], overlap=0)))[-1].endswith("of the corpus by +0.040 ± 0.006.")


def test_poolings_are_named_where_there_are_several() -> None:
    two = (LAYERS[0], layer(Place(0, "cls"), 0.61, mean=0.04), LAYERS[-1])
    assert "most mean removal at layer 0 (mean of all tokens)" in said(two)[2]
    assert said((*LAYERS[:1], *LAYERS[2:]))[2].startswith(
        "Some method helps at layer 0, most mean removal at layer 0: "
    )


def test_the_output_is_named_where_other_vectors_are_in_use() -> None:
    in_use = Place(1, "mean")
    assert said(in_use=in_use)[2].startswith(
        "Some method helps at layer 0 and the output, most mean removal at layer 0:"
    )
    assert said(LAYERS[1:], in_use=in_use)[2].startswith("Some method helps at the output, most mean removal at the ")


@pytest.mark.parametrize(
    ("centred", "raw", "decision"),
    [(0.8, 0.79, "centre"), (0.8, 0.8, "do not"), (0.6, 0.7, "do not"), (0.701, 0.7, "undecided")],
)
def test_centring_is_advised_where_no_layer_as_it_is_serves_as_well(centred: float, raw: float, decision: str) -> None:
    """Of the vectors in use, 0.7 as they are and `centred`, and those of a layer, `raw` as they are and 0.5."""
    layers = layer(OUTPUT, 0.7, mean=centred - 0.7), layer(Place(1, "mean"), raw, mean=0.5 - raw)
    values = torch.tensor([0.7, centred, raw, 0.5], dtype=torch.float64)
    found = verdict_of(layers, Estimates.of_errors(values, torch.full((4,), 0.002)), OUTPUT)
    assert (found.decision, found.layer, found.method, found.value) == (decision, "output", "mean", centred)


@pytest.mark.parametrize(
    ("first", "best", "difference"),
    [((0.0, -0.5, -0.4), 1, 0.0), ((0.2, -0.3, -0.2), 1, 0.0), ((0.3, -0.3, -0.2), 0, 0.1), ((math.nan,) * 3, 1, 0.0)],
)
def test_the_best_layer_as_it_is_is_the_one_in_use_where_none_is_better(
    first: tuple[float, float, float], best: int, difference: float
) -> None:
    """Of two layers, each as it is and after two methods, the second one is in use."""
    values = torch.tensor([*first, 0.2, 0.0, -0.1], dtype=torch.float64)
    layers = tuple(layer(Place(at, "mean"), math.nan, mean=0.0, whitening=0.0) for at in (0, 1))
    found = verdict_of(layers, Estimates.of_errors(values, torch.full((6,), 0.002)), Place(1, "mean"))
    assert found.best_raw == Place(best, "mean")
    assert found.raw_claim.estimate == pytest.approx(difference)
    assert (found.raw_claim == Claim(0.0, 0.0, 0.0)) == (best == 1)
    assert (found.layer, found.method, found.value) == (1, "mean", 0.0)


def test_each_layer_has_its_own_numbers() -> None:
    """Of two layers: the vectors as they are and after each method, whose numbers are all different."""
    width, others = 1 + len(QUALITY_METHODS), ("recall@1", "recall@10")
    values = torch.arange(2 * width, dtype=torch.float64).square() / 1000
    errors = torch.arange(1, 2 * width + 1, dtype=torch.float64) / 100
    every = Estimates.of_errors(values, errors)
    also = torch.arange(2 * width * 3, dtype=torch.float64).reshape(2, width, 3)  # (layers, 1 + methods, measures)
    judged: list[Any] = [
        SimpleNamespace(
            place=Place(at, "mean"),
            estimates=every.at(torch.arange(width) + at * width),
            also=also[at],
            reasons={"whitening": "too few"},
            components=(at + 1,) * FOLDS,
        )
        for at in (0, 1)
    ]
    for at, row in enumerate(layers_of(judged, every, others)):
        raw = at * width
        assert (row.layer, row.pooling, row.components) == (at, "mean", (at + 1,) * FOLDS)
        assert (row.raw, row.raw_stderr) == pytest.approx((float(values[raw]), float(errors[raw])))
        assert row.also == dict(zip(others, also[at, 0, 1:].tolist(), strict=True))
        assert list(row.methods) == list(QUALITY_METHODS)
        for place, (name, found) in enumerate(row.methods.items(), 1):
            assert found.value == float(values[raw + place])
            assert found.claim.estimate == pytest.approx(float(values[raw + place] - values[raw]))
            assert found.stderr == pytest.approx(float(torch.hypot(errors[raw + place], errors[raw])))
            assert found.also == dict(zip(others, also[at, place, 1:].tolist(), strict=True))
            assert found.reason == ("too few" if name == "whitening" else None)


def test_as_json_data() -> None:
    of_method = {"value": 0.8, "difference": 0.05, "stderr": 0.008, "verdict": "greater"}
    known = MethodQuality(0.8, Claim(0.05, 0.0, 0.02), 0.008, {})
    assert known.to_dict() == of_method
    assert replace(known, also={"mrr": 0.6, "recall@1": math.nan}).to_dict() == {
        **of_method,
        "also": {"mrr": 0.6, "recall@1": None},
    }
    nan = math.nan
    unknown = MethodQuality(nan, Claim(nan, 0.0, nan), 0.0, {}, "too few")
    nothing = {"value": None, "difference": None, "stderr": None, "verdict": "undecided", "reason": "too few"}
    assert unknown.to_dict() == nothing
    row = QualityLayer(3, "cls", 0.75, 0.01, {}, {"mean": known}, (2, None))
    of_row = {"layer": 3, "pooling": "cls", "raw": 0.75, "raw_stderr": 0.01}
    rest = {"methods": {"mean": of_method}, "components": [2, None]}
    assert row.to_dict() == {**of_row, **rest}
    assert replace(row, also={"mrr": 0.5}).to_dict() == {**of_row, "also": {"mrr": 0.5}, **rest}
    differences = {"mean": (0.02, 0.004), "whitening": (nan, 0.0)}
    fit = Fit("output", None, "pairs", 20, differences)
    of_fit = {
        "layer": "output",
        "pooling": None,
        "rows": 20,
        "methods": {"mean": {"difference": 0.02, "stderr": 0.004}, "whitening": {"difference": None, "stderr": None}},
    }
    assert fit.to_dict() == {**of_fit, "source": "pairs"}
    for overlap in (12, None):
        of_corpus = replace(fit, source="corpus", overlap=overlap)
        assert of_corpus.to_dict() == {**of_fit, "source": "corpus", "overlap": overlap}


def test_errors_never_show_as_zero() -> None:
    assert [error_in_words(one) for one in (0.0123, 0.0005, 0.00049, 0.0)] == ["0.012", "0.001", "0.0005", "0.000"]
